/**
 * Which sequences run in the next step, and how many tokens of each. Enters: sequences, and word of what ran; leaves:
 * slices and row copies. Decides and keeps books only: no engine, no clock, no tensor.
 *
 * Nothing starves: both lists are kept in order; the first of the running always gets a slice; of the waiting, those that
 * are largely cached go first, but after `mostPassed` of them the one they passed does, and whoever is asked and lacks blocks
 * or slots is waited for. Who waits for another's prefix waits for a sequence that runs.
 */
import assert from 'node:assert';
import { SluiceError } from '../errors.ts';
import { type KvCache, noMatch, type RowCopy } from '../kv/kv-cache.ts';
import { insertSorted, remove, Sequence } from './sequence.ts';

/** Which rotary table a sequence of so many tokens uses. */
export interface RopePolicy {
  variant(length: number): number;
  /** Whether a sequence whose variant changes while it grows is run anew, so that all its keys are of one table. */
  readonly recomputes: boolean;
}

const oneTable: RopePolicy = { variant: () => 0, recomputes: false };

export interface SchedulerOptions {
  readonly maxBatchSize: number;
  /** Most tokens in a step. */
  readonly stepTokens: number;
  /** Longest sequence that the model takes. */
  readonly maxLength: number;
  /** Most sequences waiting; beyond, requests are refused. */
  readonly maxQueueSize: number;
  /** Prefill shares steps with decoding; otherwise the two alternate. */
  readonly inFlightBatching: boolean;
  /** A prompt may be split over steps to fit beside others; otherwise it holds the others up until it has run. */
  readonly chunkedPrefill: boolean;
  /** Requests that share a prefix wait for the first of them to run it, then go together and first. */
  readonly prefixAware: boolean;
  /** Decode steps between two visits to the scheduler. */
  readonly maxNumSteps: number;
  /** Absent: one table for all. */
  readonly rope?: RopePolicy;
}

export interface Slice {
  readonly sequence: Sequence;
  /** Tokens to run, from `sequence.table.length` on. */
  readonly tokens: number;
}

export interface Schedule {
  readonly slices: readonly Slice[];
  readonly copies: readonly RowCopy[];
  /** Steps that may be run before the next call; more than 1 only when every slice is one token that ends a sequence. */
  readonly steps: number;
}

interface Draft {
  readonly slices: Slice[];
  readonly copies: RowCopy[];
  left: number;
}

/** So many of the waiting are looked at for a better order. */
const window = 64;

/** So many later sequences go before one, and those of the step in which the last of them goes. */
export const mostPassed = 64;

export class Scheduler {
  readonly kv: KvCache;
  /** Longest sequence that fits the model and, alone, the pool. */
  readonly capacity: number;
  readonly waiting: Sequence[] = [];
  readonly running: Sequence[] = [];
  preemptions = 0;
  /** Prompt tokens found in the cache. */
  prefixHitTokens = 0;
  readonly #options: SchedulerOptions;
  readonly #rope: RopePolicy;
  #prefilledLast = false;

  constructor(kv: KvCache, options: SchedulerOptions) {
    this.kv = kv;
    this.#options = options;
    this.#rope = options.rope ?? oneTable;
    this.capacity = Math.min(options.maxLength, kv.pool.size * kv.blockTokens);
  }

  get idle(): boolean {
    return this.waiting.length === 0 && this.running.length === 0;
  }

  /** Takes a new sequence in. Throws `context_exceeded` when it can never run, `overloaded` when too many wait. */
  add(sequence: Sequence): void {
    const { chain } = sequence;
    if (
      chain.length > this.capacity ||
      (chain.length === this.capacity && sequence.maxLength > chain.length)
    ) {
      const { size } = this.kv.pool;
      throw new SluiceError(
        'context_exceeded',
        `the prompt has ${chain.length} tokens, and with at least one new token it must fit ${this.capacity}: the ` +
          `longest sequence is ${this.#options.maxLength} tokens, the KV cache holds ${size * this.kv.blockTokens} ` +
          `(${size} blocks of ${this.kv.blockTokens})`,
        { param: 'prompt' },
      );
    }
    if (this.waiting.length >= this.#options.maxQueueSize) {
      throw new SluiceError(
        'overloaded',
        `${this.waiting.length} requests are waiting and at most ${this.#options.maxQueueSize} may: try again later`,
      );
    }
    sequence.maxLength = Math.min(sequence.maxLength, this.capacity);
    this.#chooseRope(sequence);
    insertSorted(this.waiting, sequence);
  }

  /** The next step; undefined when there is nothing to run. */
  schedule(): Schedule | undefined {
    this.#giveUpOutgrown();
    const draft: Draft = { slices: [], copies: [], left: this.#options.stepTokens };
    const prefillAlone = this.#prefillAlone();
    if (prefillAlone) this.#prefill(draft);
    this.#prefilledLast = draft.slices.length > 0;
    if (draft.slices.length === 0) {
      this.#decode(draft);
      if (this.#options.inFlightBatching || draft.slices.length === 0) this.#prefill(draft);
    }
    if (draft.slices.length === 0) return undefined;
    return { slices: draft.slices, copies: draft.copies, steps: this.#steps(draft) };
  }

  /** After a step: the slice's rows are in the blocks. */
  commit(slice: Slice): void {
    const { sequence, tokens } = slice;
    this.kv.commit(sequence.table, sequence.chain, sequence.table.length + tokens);
  }

  /** A second sequence that goes on from the same tokens. It waits, as if preempted, when the batch is full. */
  fork(sequence: Sequence, choice: number): Sequence {
    assert(sequence.state === 'running', `sequence ${sequence.request} forks while ${sequence.state}`);
    const { request, maxLength, priority, order } = sequence;
    const chain = sequence.chain.fork();
    const child = new Sequence({
      request,
      choice,
      chain,
      maxLength,
      priority,
      order,
      choices: 1,
      needsAllRows: false,
    });
    if (this.running.length < this.#options.maxBatchSize) {
      child.table = this.kv.fork(sequence.table);
      child.state = 'running';
      insertSorted(this.running, child);
    } else {
      insertSorted(this.waiting, child);
    }
    return child;
  }

  /** The sequence leaves, its blocks with it. */
  finish(sequence: Sequence): void {
    if (sequence.state === 'running') {
      this.kv.release(sequence.table);
      remove(this.running, sequence);
    } else if (sequence.state === 'waiting') {
      remove(this.waiting, sequence);
    }
    sequence.state = 'finished';
  }

  /** Prefill goes without decoding: it is its turn, or a prompt that may not be split needs the step. */
  #prefillAlone(): boolean {
    const { inFlightBatching, chunkedPrefill, stepTokens } = this.#options;
    if (!inFlightBatching && !this.#prefilledLast) return true;
    if (chunkedPrefill) return false;
    if (this.running.some((sequence) => sequence.remaining > 1)) return true;
    const [first] = this.#candidates();
    return first !== undefined && this.#uncached(first) > stepTokens - this.running.length;
  }

  #decode(draft: Draft): void {
    for (let i = 0; i < this.running.length && draft.left > 0; i++) {
      const sequence = this.running[i]!;
      if (sequence.remaining !== 1) continue;
      let copies = this.kv.reserve(sequence.table, sequence.chain.length);
      while (copies === undefined && sequence.state === 'running') {
        this.#preempt(this.running.at(-1)!);
        if (sequence.state === 'running') copies = this.kv.reserve(sequence.table, sequence.chain.length);
      }
      if (copies !== undefined) addSlice(draft, sequence, 1, copies);
    }
  }

  /** First the prompts already begun, then the waiting. */
  #prefill(draft: Draft): void {
    for (const sequence of this.running) {
      const begun = sequence.remaining > 1;
      if (begun && draft.left > 0) addSlice(draft, sequence, Math.min(sequence.remaining, draft.left), []);
    }
    const full = draft.left === 0 || this.running.length >= this.#options.maxBatchSize;
    if (full || this.waiting.length === 0) return;
    for (const sequence of this.#candidates()) {
      if (draft.left === 0 || !this.#hasSlots(sequence)) return;
      if (this.#awaitsPrefix(sequence)) continue;
      const whole = this.#options.chunkedPrefill || draft.slices.length === 0;
      if (!whole && this.#uncached(sequence) > draft.left) return;
      const copies = this.#admit(sequence);
      if (copies === undefined) return;
      addSlice(draft, sequence, Math.min(sequence.remaining, draft.left), copies);
    }
  }

  /**
   * The waiting in order, of each priority the largely cached ones first: were others to run before them, they could lose
   * what is cached. Who has been passed often enough goes before those.
   */
  #candidates(): Sequence[] {
    const waiting = this.waiting.slice(0, window);
    if (!this.#options.prefixAware || this.kv.prefixes === undefined) return waiting;
    const turns = new Map(waiting.map((each) => [each, this.#turn(each)]));
    return waiting.sort((a, b) => a.priority - b.priority || turns.get(a)! - turns.get(b)!);
  }

  #turn(sequence: Sequence): number {
    if (sequence.passed >= mostPassed) return 0;
    return this.#uncached(sequence) * 2 <= sequence.chain.length ? 1 : 2;
  }

  #hasSlots(sequence: Sequence): boolean {
    const taken = this.running.reduce((sum, other) => sum + other.choices, 0);
    return taken === 0 || taken + sequence.choices <= this.#options.maxBatchSize;
  }

  /** Whether a sequence that runs is about to fill blocks that this one can then share. */
  #awaitsPrefix(sequence: Sequence): boolean {
    if (!this.#options.prefixAware || this.kv.prefixes === undefined || sequence.needsAllRows) return false;
    const { blockTokens } = this.kv;
    const limit = Math.floor((sequence.chain.length - 1) / blockTokens);
    let found = -1;
    return this.running.some((other) => {
      if (other.remaining <= 1) return false;
      const shared = sequence.chain.sharedBlocks(other.chain, limit) * blockTokens;
      if (shared <= other.table.length) return false;
      if (found < 0) found = this.kv.find(sequence.chain).tokens;
      return shared >= found + blockTokens;
    });
  }

  #uncached(sequence: Sequence): number {
    return sequence.chain.length - (sequence.needsAllRows ? 0 : this.kv.find(sequence.chain).tokens);
  }

  /** Gives a waiting sequence blocks for all its tokens, unless those that run may soon need them. */
  #admit(sequence: Sequence): readonly RowCopy[] | undefined {
    this.#chooseRope(sequence);
    const { chain } = sequence;
    const match = sequence.needsAllRows ? noMatch : this.kv.find(chain);
    const growth = this.running.length;
    if (this.kv.needed(match, chain.length) + growth > this.kv.pool.free) return undefined;
    const started = this.kv.start(match, chain.length);
    if (started === undefined) return undefined;
    for (const other of this.waiting.slice(0, this.waiting.indexOf(sequence))) {
      if (other.priority === sequence.priority) other.passed++;
    }
    remove(this.waiting, sequence);
    sequence.state = 'running';
    sequence.table = started.table;
    insertSorted(this.running, sequence);
    if (sequence.cachedTokens === undefined) this.prefixHitTokens += match.tokens;
    sequence.cachedTokens ??= match.tokens;
    return started.copies;
  }

  #preempt(sequence: Sequence): void {
    this.#giveUp(sequence);
    this.preemptions++;
  }

  /** Its blocks are given up; it waits in its old place and will be recomputed from its tokens. */
  #giveUp(sequence: Sequence): void {
    this.kv.release(sequence.table);
    remove(this.running, sequence);
    sequence.state = 'waiting';
    insertSorted(this.waiting, sequence);
  }

  /** Sequences that have grown into another rotary table: their keys are all to be made with it. */
  #giveUpOutgrown(): void {
    if (!this.#rope.recomputes) return;
    for (const sequence of [...this.running]) {
      if (sequence.chain.ropeVariant !== this.#rope.variant(sequence.chain.length)) this.#giveUp(sequence);
    }
  }

  /** Before its first row runs: the table that fits its length. */
  #chooseRope(sequence: Sequence): void {
    const variant = this.#rope.variant(sequence.chain.length);
    if (variant !== sequence.chain.ropeVariant) sequence.chain = sequence.chain.withRopeVariant(variant);
  }

  /** As many steps as every sequence of a pure decode batch has room for, in tokens and in blocks. */
  #steps(draft: Draft): number {
    const decoding = draft.slices.every(({ sequence }) => sequence.remaining === 1);
    const forking = draft.slices.some(({ sequence }) => sequence.choices > 1);
    if (!decoding || forking || draft.slices.length < this.running.length) return 1;
    const sequences = draft.slices.map((slice) => slice.sequence);
    const missing =
      (steps: number) =>
      (sum: number, { table, chain }: Sequence) =>
        sum + Math.max(0, this.kv.blocksFor(chain.length + steps - 1) - table.blocks.length);
    let steps = Math.min(
      this.#options.maxNumSteps,
      ...sequences.map((each) => each.maxLength - each.chain.length),
    );
    const outgrown = ({ chain }: Sequence): boolean =>
      this.#rope.variant(chain.length + steps - 1) !== chain.ropeVariant;
    while (steps > 1 && this.#rope.recomputes && sequences.some(outgrown)) steps--;
    while (steps > 1 && sequences.reduce(missing(steps), 0) > this.kv.pool.free) steps--;
    if (steps <= 1) return 1;
    const reserved = sequences.every((each) => this.kv.reserve(each.table, each.chain.length + steps - 1));
    return reserved ? steps : 1;
  }
}

function addSlice(draft: Draft, sequence: Sequence, tokens: number, copies: readonly RowCopy[]): void {
  draft.slices.push({ sequence, tokens });
  draft.copies.push(...copies);
  draft.left -= tokens;
}
