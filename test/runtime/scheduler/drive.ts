/** The smallest loop around a scheduler: greedy, with the reference engine, checking what must hold after each step. */
import assert from 'node:assert';
import { BlockPool } from '../../../runtime/kv/block-pool.ts';
import { KvCache } from '../../../runtime/kv/kv-cache.ts';
import { TokenChain } from '../../../runtime/kv/token-chain.ts';
import { type Schedule, Scheduler, type SchedulerOptions } from '../../../runtime/scheduler/scheduler.ts';
import { Sequence } from '../../../runtime/scheduler/sequence.ts';
import { ReferenceEngine, referenceGreedy } from '../../support/reference-engine.ts';
import { checkConservation } from '../kv/conservation.ts';

export const blockTokens = 4;
export const vocabulary = 64;

export const usual: SchedulerOptions = {
  maxBatchSize: 8,
  stepTokens: 16,
  maxLength: 256,
  maxQueueSize: 1000,
  inFlightBatching: true,
  chunkedPrefill: true,
  prefixAware: true,
  maxNumSteps: 1,
};

export interface Arrival {
  readonly prompt: readonly number[];
  readonly tokens: number;
  readonly choices?: number;
  readonly priority?: number;
  readonly salt?: string;
  readonly needsAllRows?: boolean;
}

/** Refuses those calls of `take`, counted from 1. */
class FailingPool extends BlockPool {
  calls = 0;
  failing: ReadonlySet<number> = new Set();

  override take(count: number): number[] | undefined {
    return this.failing.has(++this.calls) ? undefined : super.take(count);
  }
}

export class Drive {
  readonly pool: FailingPool;
  readonly kv: KvCache;
  readonly scheduler: Scheduler;
  readonly engine: ReferenceEngine;
  readonly sequences: Sequence[] = [];
  /** Number of the request and choice, in the order in which they ended. */
  readonly finished: string[] = [];
  readonly #promptLengths = new Map<number, number>();
  readonly #arrivals: Arrival[] = [];

  constructor(blocks: number, options: Partial<SchedulerOptions> & { prefixCaching?: boolean } = {}) {
    const { prefixCaching = true, ...rest } = options;
    const policy = { ...usual, ...rest };
    this.pool = new FailingPool(blocks);
    this.kv = new KvCache(this.pool, { blockTokens, prefixCaching });
    this.scheduler = new Scheduler(this.kv, policy);
    this.engine = new ReferenceEngine({
      blockCount: blocks,
      blockTokens,
      vocabulary,
      maxStepTokens: policy.stepTokens,
      maxBatchSize: policy.maxBatchSize,
    });
  }

  add(arrival: Arrival): Sequence {
    const request = this.#arrivals.length;
    const sequence = new Sequence({
      request,
      choice: 0,
      chain: new TokenChain(arrival.prompt, blockTokens, arrival.salt),
      maxLength: arrival.prompt.length + arrival.tokens,
      priority: arrival.priority ?? 0,
      order: request,
      choices: arrival.choices ?? 1,
      needsAllRows: arrival.needsAllRows ?? false,
    });
    this.#arrivals.push(arrival);
    this.#promptLengths.set(request, arrival.prompt.length);
    this.scheduler.add(sequence);
    this.sequences.push(sequence);
    return sequence;
  }

  /** One visit to the scheduler and the steps that it allows. */
  step(): Schedule | undefined {
    const schedule = this.scheduler.schedule();
    this.check();
    for (let step = 0; step < (schedule?.steps ?? 0); step++) this.#run(schedule!, step === 0);
    return schedule;
  }

  /** Runs until nothing is left; fails when that takes longer than any fair order could. */
  finish(): void {
    const work = this.#arrivals.reduce((sum, { prompt, tokens, choices = 1 }) => {
      return sum + choices * (prompt.length + tokens);
    }, 1);
    for (let steps = 0; !this.scheduler.idle; steps++) {
      assert(steps < work * 20, `${this.scheduler.waiting.length} sequences starve after ${steps} steps`);
      this.step();
    }
    assert.equal(this.kv.used, 0, 'blocks in use when nothing runs');
  }

  /** The answer of a finished sequence must be what a run without blocks gives. */
  checkAnswers(): void {
    for (const sequence of this.sequences) {
      const { prompt } = this.#arrivals[sequence.request]!;
      const answer = [...sequence.chain.slice(prompt.length, sequence.chain.length)];
      assert.deepEqual(
        answer,
        expected(prompt, sequence.choice, answer.length),
        `request ${sequence.request}`,
      );
    }
  }

  check(): void {
    const tables = this.scheduler.running.map((sequence) => sequence.table);
    checkConservation(this.kv, tables);
    for (const sequence of this.scheduler.waiting) assert.equal(sequence.table.blocks.length, 0);
  }

  #run(schedule: Schedule, first: boolean): void {
    const slices = schedule.slices.filter((slice) => slice.sequence.state === 'running');
    if (slices.length === 0) return;
    this.#checkOwners(slices);
    const chosen = new Map<Sequence, number>();
    const batch = slices.map(({ sequence, tokens }) => ({
      tokens: sequence.chain.slice(sequence.table.length, sequence.table.length + tokens),
      position: sequence.table.length,
      blocks: sequence.table.blocks,
      logits: tokens === sequence.remaining ? ('last' as const) : ('none' as const),
    }));
    this.engine.step({ slices: batch, copies: first ? schedule.copies : [] }, (slice, _row, logits) => {
      chosen.set(slices[slice]!.sequence, logits.greatest());
    });
    for (const slice of slices) {
      const { sequence } = slice;
      this.scheduler.commit(slice);
      const token = chosen.get(sequence);
      if (token === undefined) continue;
      sequence.needsAllRows = false;
      const { choices } = sequence;
      sequence.choices = 1;
      const forks = Array.from({ length: choices - 1 }, (_, i) => this.scheduler.fork(sequence, i + 1));
      this.sequences.push(...forks);
      for (const each of [sequence, ...forks])
        this.#append(each, (token + each.choice * Number(choices > 1)) % vocabulary);
      this.check();
    }
  }

  /** Whoever writes to a block is the only one who holds it, and nobody can find it. */
  #checkOwners(slices: Schedule['slices']): void {
    for (const { sequence, tokens } of slices) {
      const { blocks, length } = sequence.table;
      const written = blocks.slice(Math.floor(length / blockTokens), this.kv.blocksFor(length + tokens));
      for (const block of written) {
        assert.equal(this.pool.references(block), 1, `block ${block} is written by one of several owners`);
        assert(!this.kv.prefixes?.has(block), `block ${block} is written while others can find it`);
      }
    }
  }

  #append(sequence: Sequence, token: number): void {
    sequence.chain.push(token);
    if (sequence.chain.length < sequence.maxLength) return;
    this.scheduler.finish(sequence);
    this.finished.push(`${sequence.request}.${sequence.choice}`);
  }
}

/** Choice c takes the most likely token, c ids further, first and goes on greedily: so that forks differ. */
function expected(prompt: readonly number[], choice: number, tokens: number): number[] {
  if (tokens === 0) return [];
  const [greedy] = referenceGreedy(prompt, 1, vocabulary);
  const first = (greedy! + choice) % vocabulary;
  return [first, ...referenceGreedy([...prompt, first], tokens - 1, vocabulary)];
}
