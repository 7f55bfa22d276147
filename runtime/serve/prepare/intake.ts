/**
 * Where bodies are prepared: short ones at once where they are, long ones by threads, so that one long prompt delays
 * nobody else. There is a lane for long bodies and one for very long ones, each with one thread and its own queue: what
 * takes seconds holds up its own kind alone. Enters: bytes. Leaves: prepared bodies, or SluiceError. Must not know HTTP.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { SluiceError } from '../../errors.ts';
import type { TokenizerSource } from '../../tokenizer/definition.ts';
import type { Words } from '../../tokenizer/words.ts';
import type { ModelFacts } from './model-facts.ts';
import { type BodyKind, type Prepared, prepare } from './prepare.ts';
import type { PrepareAnswer, PrepareJob } from './thread.ts';

/** About 8 ms of work; sending it to a thread costs less than that. */
const shortBytes = 4096;
/** The most of each lane: the first takes below a second. */
const laneBytes = [256 << 10, Number.POSITIVE_INFINITY];

export class Intake {
  readonly #words: Words;
  readonly #lanes: readonly Lane[];

  constructor(words: Words) {
    this.#words = words;
    this.#lanes = laneBytes.map(() => new Lane(words.source));
  }

  /** Bodies that wait for a thread or are with one. */
  get pending(): number {
    return this.#lanes.reduce((sum, lane) => sum + lane.pending, 0);
  }

  /** Takes `bytes` over. Throws SluiceError: what is wrong with the request, or the signal's own when it fires. */
  async prepare<K extends BodyKind>(
    kind: K,
    bytes: Uint8Array | undefined,
    model: ModelFacts,
    signal: AbortSignal,
  ): Promise<Prepared<K>> {
    if (bytes === undefined || bytes.byteLength <= shortBytes)
      return prepare(kind, bytes, model, this.#words);
    const lane = this.#lanes[laneBytes.findIndex((most) => bytes.byteLength <= most)]!;
    return (await lane.run({ kind, bytes: ownBytes(bytes), model }, signal)) as Prepared<K>;
  }

  async close(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.close()));
  }
}

/** Bytes that can be given away: those that share their memory with others are copied. */
function ownBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = bytes.byteLength === bytes.buffer.byteLength && bytes.buffer instanceof ArrayBuffer;
  return whole ? new Uint8Array(bytes.buffer as ArrayBuffer) : Uint8Array.from(bytes);
}

interface Waiting {
  readonly job: PrepareJob;
  readonly signal: AbortSignal;
  resolve(prepared: Prepared): void;
  reject(error: unknown): void;
}

/** One thread, started with the first job, and the jobs before it. */
class Lane {
  readonly #source: TokenizerSource;
  readonly #queue: Waiting[] = [];
  #thread: Worker | undefined;
  #current: Waiting | undefined;
  #closed = false;

  constructor(source: TokenizerSource) {
    this.#source = source;
  }

  get pending(): number {
    return this.#queue.length + (this.#current === undefined ? 0 : 1);
  }

  run(job: PrepareJob, signal: AbortSignal): Promise<Prepared> {
    return new Promise((resolve, reject) => {
      const waiting = { job, signal, resolve, reject };
      // Whoever gives up hears so at once; its job, when a thread has it already, ends unheard.
      const giveUp = () => {
        const place = this.#queue.indexOf(waiting);
        if (place >= 0) this.#queue.splice(place, 1);
        reject(endedBy(signal));
      };
      if (signal.aborted) return giveUp();
      signal.addEventListener('abort', giveUp, { once: true });
      this.#queue.push(waiting);
      this.#next();
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    const refused = new SluiceError('unavailable', 'the server is shutting down');
    for (const { reject } of this.#queue.splice(0)) reject(refused);
    this.#current?.reject(refused);
    this.#current = undefined;
    await this.#thread?.terminate();
  }

  #next(): void {
    if (this.#current !== undefined) return;
    this.#current = this.#queue.shift();
    if (this.#current === undefined) return;
    if (this.#closed) {
      this.#current.reject(new SluiceError('unavailable', 'the server is shutting down'));
      this.#current = undefined;
      return;
    }
    this.#thread ??= this.#start();
    const { job } = this.#current;
    this.#thread.postMessage(job, [job.bytes.buffer]);
  }

  #start(): Worker {
    // The extension differs between source and dist.
    const file = path.join(import.meta.dirname, `thread${path.extname(import.meta.filename)}`);
    const thread = new Worker(file, { workerData: this.#source, name: 'sluice-prepare' });
    // A server that ends does not wait for it.
    thread.unref();
    thread.on('message', (answer: PrepareAnswer) => {
      const current = this.#current;
      this.#current = undefined;
      this.#next();
      if (current !== undefined) settle(current, answer);
    });
    const ended = (cause: unknown) => {
      if (this.#thread !== thread) return;
      this.#thread = undefined;
      this.#current?.reject(new SluiceError('unavailable', 'a tokenizer thread ended', { cause }));
      this.#current = undefined;
      this.#next();
    };
    thread.on('error', ended);
    thread.on('exit', ended);
    return thread;
  }
}

function settle({ resolve, reject }: Waiting, answer: PrepareAnswer): void {
  if ('prepared' in answer) resolve(answer.prepared);
  else if ('stack' in answer) reject(new Error(answer.stack));
  else {
    const { code, message, param } = answer;
    reject(new SluiceError(code, message, param === null ? {} : { param }));
  }
}

function endedBy({ reason }: AbortSignal): SluiceError {
  if (reason instanceof SluiceError) return reason;
  return new SluiceError('unavailable', 'the request was ended before its prompt was read');
}
