/**
 * How long the engine's steps take: decode at several batch sizes, prefill in tokens a second. No server, no sampling.
 */
import type { Engine, StepSlice } from '../runtime/engine/engine.ts';

export interface EngineTimes {
  readonly stepMs: ReadonlyMap<number, number>;
  readonly prefillTokensPerSecond: number;
}

export interface Measurement {
  readonly batchSizes: readonly number[];
  /** Tokens that each sequence has in its cache while decoding. */
  readonly context: number;
  readonly prefillTokens: number;
  /** Time to spend on each number. */
  readonly milliseconds: number;
}

/** The middle of repeated timings, after warming up. */
function median(run: () => void, milliseconds: number): number {
  for (let i = 0; i < 3; i++) run();
  const times: number[] = [];
  const start = performance.now();
  while (times.length < 5 || performance.now() - start < milliseconds) {
    const before = performance.now();
    run();
    times.push(performance.now() - before);
  }
  return times.sort((a, b) => a - b)[times.length >> 1]!;
}

export function measureEngine(engine: Engine, measurement: Measurement): EngineTimes {
  const { blockTokens, maxStepTokens, vocabulary } = engine.info;
  const { context, prefillTokens, milliseconds } = measurement;
  const blocksEach = Math.ceil((Math.max(context, prefillTokens) + 1) / blockTokens);
  const slice = (
    sequence: number,
    position: number,
    count: number,
    logits: StepSlice['logits'],
  ): StepSlice => ({
    tokens: Array.from({ length: count }, (_, i) => (sequence * 31 + (position + i) * 7) % vocabulary),
    position,
    blocks: Array.from({ length: blocksEach }, (_, i) => sequence * blocksEach + i),
    logits,
  });
  const step = (slices: readonly StepSlice[]): void => engine.step({ slices, copies: [] }, () => {});
  const fillContext = (sequence: number): void => {
    for (let at = 0; at < context; at += maxStepTokens) {
      step([slice(sequence, at, Math.min(maxStepTokens, context - at), 'none')]);
    }
  };
  const largest = Math.max(...measurement.batchSizes);
  for (let sequence = 0; sequence < largest; sequence++) fillContext(sequence);
  const stepMs = new Map(
    measurement.batchSizes.map((size) => {
      const slices = Array.from({ length: size }, (_, sequence) => slice(sequence, context, 1, 'last'));
      return [size, median(() => step(slices), milliseconds)];
    }),
  );
  const chunks: StepSlice[] = [];
  for (let at = 0; at < prefillTokens; at += maxStepTokens) {
    const count = Math.min(maxStepTokens, prefillTokens - at);
    chunks.push(slice(0, at, count, at + count === prefillTokens ? 'last' : 'none'));
  }
  const prefillMs = median(() => {
    for (const chunk of chunks) step([chunk]);
  }, milliseconds);
  return { stepMs, prefillTokensPerSecond: (prefillTokens / prefillMs) * 1000 };
}
