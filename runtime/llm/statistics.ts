/**
 * Numbers that the engine's thread writes after each step and the caller's thread reads whenever it likes, in shared
 * memory: reading them costs nothing and works while a long step runs. Aligned 64-bit stores do not tear on the
 * processors that Node runs on.
 */

const fields = [
  /** Sequences with blocks, and without. */
  'running',
  'waiting',
  'blocksUsed',
  'blocksTotal',
  /** Since the start, as all that follow but the last three. */
  'preemptions',
  'prefixHitTokens',
  /** Tokens run for prompts, recomputation included; prefix hits are not. */
  'promptTokens',
  'generatedTokens',
  'steps',
  /** Sequences over all steps: divided by `steps`, the mean batch size. */
  'stepSequences',
  /** Time spent in steps. */
  'stepMs',
  /** Of the last step. */
  'batchSize',
  'batchTokens',
  /** When the engine's thread last gave a sign of life, in `monotonicMs`. */
  'aliveAtMs',
] as const;

export type LoopStatistics = Record<(typeof fields)[number], number>;

export class SharedStatistics {
  readonly memory: SharedArrayBuffer;
  readonly #values: Float64Array;

  constructor(memory = new SharedArrayBuffer(fields.length * 8)) {
    this.memory = memory;
    this.#values = new Float64Array(memory);
  }

  write(statistics: Partial<LoopStatistics>): void {
    fields.forEach((field, i) => {
      const value = statistics[field];
      if (value !== undefined) this.#values[i] = value;
    });
  }

  read(): LoopStatistics {
    return Object.fromEntries(fields.map((field, i) => [field, this.#values[i]!])) as LoopStatistics;
  }

  /** The engine's thread lives. */
  beat(): void {
    this.write({ aliveAtMs: monotonicMs() });
  }
}

/** The same clock in every thread of the process, unlike performance.now(). */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
