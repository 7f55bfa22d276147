/**
 * Ranks that are threads of one process, meeting in one shared memory. Enters: the memory that `shareMemory` made, a
 * rank's number. Must not know graphs or sessions.
 *
 * All-reduce of count floats: every rank writes its part, one barrier, then, when the sum is small, every rank adds
 * all parts for itself; when it is large, every rank adds a share of it and a second barrier makes the shares
 * visible. Parts go to one of two buffers as the number of barriers before is even or odd: nobody writes a buffer again
 * before all ranks have passed another barrier, that is, have read it.
 *
 * Machine code passes the same barriers and uses the same buffers (`meeting`).
 *
 * A rank that throws must call `fail`. One that dies without a word is noticed by those who wait for it: its thread is
 * gone from /proc/self/task.
 */
import { existsSync, readlinkSync } from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../../errors.ts';
import { addressOf } from '../../ort/library.ts';
import { createMemory, instantiateKernel, reservedBytes } from '../kernels/kernel-module.ts';
import { type Collective, type MeetingPlace, rankPlace } from './collective.ts';
import { type Spin, Waiter } from './waiter.ts';

/** Positions of the words, each on a cache line of its own, behind the kernels' part of the memory. */
const line = 16;
const firstWord = reservedBytes / 4;
const arrivedWord = firstWord;
const generationWord = firstWord + line;
const broadcastWord = firstWord + 2 * line;
const broadcastLengthWord = firstWord + 3 * line;
/** 0, or 1 + the rank that failed. */
const failedWord = firstWord + 4 * line;
const closedWord = firstWord + 5 * line;
/** Length in bytes and the UTF-8 text of the failure. */
const reasonWord = firstWord + 6 * line;
const reasonBytes = 4096;
/** The native thread ids of the ranks; 0 before a rank has joined, or where they are not known. */
const threadsWord = reasonWord + reasonBytes / 4;
const mostRanks = 1024;
const sleepersWord = threadsWord + mostRanks;
/** Each rank's own words, a line for each; then how often it looks for a broadcast. */
const ownWord = sleepersWord + line;
const broadcastSpins = rankPlace.second / 4 + 2;
const dataWord = ownWord + mostRanks * line;

/** How often a waiting rank looks whether the others still live. */
const aliveCheckMs = 100;
/** From this many floats on, sharing the additions is worth a second barrier. */
const sharedSumFloats = 32_768;

export interface ThreadCollectiveOptions {
  readonly ranks: number;
  /** The largest all-reduce, in floats. */
  readonly reduceFloats: number;
  /** The longest broadcast, in words. */
  readonly broadcastWords: number;
  /** Whether waiting may spin: every rank has a core of its own. */
  readonly spin: boolean;
}

export interface SharedCollective extends ThreadCollectiveOptions {
  readonly memory: WebAssembly.Memory;
}

const aligned = (words: number): number => Math.ceil(words / line) * line;

/** The memory that ranks share; goes to each rank's thread as it is. */
export function shareMemory(options: ThreadCollectiveOptions): SharedCollective {
  const words =
    dataWord + aligned(options.broadcastWords) + (2 * options.ranks + 1) * aligned(options.reduceFloats);
  return { ...options, memory: createMemory(words * 4) };
}

interface ReduceKernel {
  sumParts(parts: number, stride: number, ranks: number, to: number, count: number): void;
  spin: Spin;
}

export class ThreadCollective implements Collective {
  readonly rank: number;
  readonly ranks: number;
  readonly #words: Int32Array;
  readonly #floats: Float32Array;
  readonly #kernel: ReduceKernel;
  readonly #barrierWaiter: Waiter;
  readonly #broadcastWaiter: Waiter;
  /** Word of the first part of each of the two buffers. */
  readonly #parts: readonly [number, number];
  readonly #sums: number;
  readonly #reduceFloats: number;
  readonly #stride: number;
  readonly #own: number;
  readonly meeting: MeetingPlace;
  #broadcasts = 0;

  constructor(shared: SharedCollective, rank: number) {
    this.rank = rank;
    this.ranks = shared.ranks;
    this.#words = new Int32Array(shared.memory.buffer);
    this.#floats = new Float32Array(shared.memory.buffer);
    this.#kernel = instantiateKernel<ReduceKernel>('reduce', shared.memory);
    const spin = shared.spin ? this.#kernel.spin : undefined;
    this.#own = ownWord + rank * line;
    this.#barrierWaiter = new Waiter(this.#words, spin, this.#own + rankPlace.spins / 4);
    this.#broadcastWaiter = new Waiter(this.#words, spin, this.#own + broadcastSpins);
    this.#reduceFloats = shared.reduceFloats;
    this.#stride = aligned(shared.reduceFloats);
    const first = dataWord + aligned(shared.broadcastWords);
    this.#parts = [first, first + this.ranks * this.#stride];
    this.#sums = first + 2 * this.ranks * this.#stride;
    this.meeting = {
      words: addressOf(this.#words),
      arrived: arrivedWord * 4,
      generation: generationWord * 4,
      failed: failedWord * 4,
      sleepers: sleepersWord * 4,
      own: this.#own * 4,
      ownBytes: line * 4,
      parts: first * 4,
      partBytes: this.#stride * 4,
      bufferBytes: this.ranks * this.#stride * 4,
      assist: () => this.#assist(),
    };
    Atomics.store(this.#words, threadsWord + rank, nativeThread());
  }

  contribution(count: number): Float32Array {
    const start = this.#parts[this.#parity()] + this.rank * this.#stride;
    return this.#floats.subarray(start, start + count);
  }

  /** Which of the two buffers is the next reduction's. */
  #parity(): 0 | 1 {
    return (Atomics.load(this.#words, generationWord) & 1) as 0 | 1;
  }

  allReduce(count: number): Float32Array {
    if (count > this.#reduceFloats) throw new RangeError(`an all-reduce of ${count} floats`);
    const parity = this.#parity();
    const parts = this.#parts[parity];
    this.barrier();
    if (count < sharedSumFloats) {
      // Into this rank's part of the other buffer, which all ranks have finished reading.
      const own = this.#parts[parity === 0 ? 1 : 0] + this.rank * this.#stride;
      this.#kernel.sumParts(parts * 4, this.#stride * 4, this.ranks, own * 4, count);
      return this.#floats.subarray(own, own + count);
    }
    const share = Math.ceil(count / this.ranks / line) * line;
    const from = Math.min(count, this.rank * share);
    const length = Math.min(share, count - from);
    this.#kernel.sumParts((parts + from) * 4, this.#stride * 4, this.ranks, (this.#sums + from) * 4, length);
    this.barrier();
    return this.#floats.subarray(this.#sums, this.#sums + count);
  }

  barrier(): void {
    const words = this.#words;
    const generation = Atomics.load(words, generationWord);
    if (Atomics.load(words, failedWord) !== 0) this.#throwFailure();
    if (Atomics.add(words, arrivedWord, 1) === this.ranks - 1) {
      Atomics.store(words, arrivedWord, 0);
      Atomics.store(words, generationWord, generation + 1);
      Atomics.notify(words, generationWord);
      return;
    }
    this.#outlast(generation, 'wait');
    if (Atomics.load(words, failedWord) !== 0) this.#throwFailure();
  }

  /** Returns when the generation is over; `sleep`: spinning has been in vain. */
  #outlast(generation: number, how: 'wait' | 'sleep'): void {
    // Who comes last may be machine code, which has sleepers woken only where there are some.
    Atomics.add(this.#words, sleepersWord, 1);
    try {
      this.#barrierWaiter[how](generationWord, generation, this.#check, aliveCheckMs);
    } finally {
      Atomics.sub(this.#words, sleepersWord, 1);
    }
  }

  #assist(): void {
    const words = this.#words;
    const left = words[this.#own + rankPlace.left / 4]!;
    if (Atomics.load(words, generationWord) !== left) Atomics.notify(words, generationWord);
    else this.#outlast(left, 'sleep');
    if (Atomics.load(words, failedWord) !== 0) this.#throwFailure();
  }

  broadcast(message?: Int32Array): Int32Array | undefined {
    const words = this.#words;
    if (Atomics.load(words, failedWord) !== 0) this.#throwFailure();
    if (this.rank === 0) {
      if (message === undefined) throw new TypeError('rank 0 broadcasts');
      words.set(message, dataWord);
      Atomics.store(words, broadcastLengthWord, message.length);
      Atomics.add(words, broadcastWord, 1);
      Atomics.notify(words, broadcastWord);
      return message;
    }
    this.#broadcastWaiter.wait(broadcastWord, this.#broadcasts, this.#check, Number.POSITIVE_INFINITY);
    if (Atomics.load(words, failedWord) !== 0) this.#throwFailure();
    if (Atomics.load(words, closedWord) !== 0) return undefined;
    this.#broadcasts = (this.#broadcasts + 1) | 0;
    return words.subarray(dataWord, dataWord + Atomics.load(words, broadcastLengthWord));
  }

  close(): void {
    Atomics.store(this.#words, closedWord, 1);
    this.#wakeAll();
  }

  fail(reason: string): void {
    this.#fail(this.rank, reason);
  }

  #fail(rank: number, reason: string): void {
    const text = new TextEncoder().encode(reason).subarray(0, reasonBytes - 4);
    // The first failure is the cause; later ones follow from it.
    if (Atomics.compareExchange(this.#words, reasonWord, 0, text.length + 1) === 0) {
      new Uint8Array(this.#words.buffer, reasonWord * 4 + 4, text.length).set(text);
      Atomics.store(this.#words, failedWord, rank + 1);
    }
    this.#wakeAll();
  }

  /** Changes every word that is waited for, so that spinning and sleeping ranks look at the flags. */
  #wakeAll(): void {
    for (const word of [generationWord, broadcastWord]) {
      Atomics.add(this.#words, word, 1);
      Atomics.notify(this.#words, word);
    }
  }

  readonly #check = (): void => {
    if (Atomics.load(this.#words, failedWord) !== 0) this.#throwFailure();
    for (let rank = 0; rank < this.ranks; rank++) {
      const thread = Atomics.load(this.#words, threadsWord + rank);
      if (thread !== 0 && !existsSync(`/proc/self/task/${thread}`)) this.#fail(rank, 'its thread has died');
    }
  };

  #throwFailure(): never {
    const rank = Atomics.load(this.#words, failedWord) - 1;
    const bytes = Math.max(0, Atomics.load(this.#words, reasonWord) - 1);
    const text = new Uint8Array(this.#words.buffer, reasonWord * 4 + 4, bytes).slice();
    throw new SluiceError('engine_failed', `rank ${rank}: ${new TextDecoder().decode(text)}`);
  }
}

/** The calling thread's id, 0 where /proc does not tell it. */
function nativeThread(): number {
  try {
    return Number(path.basename(readlinkSync('/proc/thread-self')));
  } catch {
    return 0;
  }
}
