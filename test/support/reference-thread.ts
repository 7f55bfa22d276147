/** The entry of an engine's thread that runs the reference engine, with faults to order. */
import { parentPort, workerData } from 'node:worker_threads';
import type { StepBatch } from '../../runtime/engine/engine.ts';
import { SluiceError } from '../../runtime/errors.ts';
import { runEngineThread } from '../../runtime/llm/engine-thread.ts';
import type { ThreadData } from '../../runtime/llm/messages.ts';
import { SharedStatistics } from '../../runtime/llm/statistics.ts';
import { ReferenceEngine, type ReferenceEngineOptions } from './reference-engine.ts';

export interface ReferenceThreadOptions extends ReferenceEngineOptions {
  /** Loading fails with this message. */
  readonly loadError?: string;
  /** Loading never ends. */
  readonly loadForever?: boolean;
  /** A step that runs this token fails, exits the thread, or takes 50 ms times the token after it. */
  readonly failAt?: number;
  readonly exitAt?: number;
  readonly sleepAt?: number;
}

const { options, loop, statistics } = workerData as ThreadData<ReferenceThreadOptions>;

class FaultyEngine extends ReferenceEngine {
  override step(batch: StepBatch, onRow: Parameters<ReferenceEngine['step']>[1]): void {
    for (const { tokens } of batch.slices) {
      const at = Array.from(tokens);
      if (options.failAt !== undefined && at.includes(options.failAt))
        throw new SluiceError('engine_failed', 'rank 1 is gone');
      if (options.exitAt !== undefined && at.includes(options.exitAt)) process.exit(7);
      const sleep = options.sleepAt === undefined ? -1 : at.indexOf(options.sleepAt);
      if (sleep >= 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, at[sleep + 1]! * 50);
    }
    super.step(batch, onRow);
  }
}

await runEngineThread(parentPort!, new SharedStatistics(statistics), loop, async (hooks) => {
  hooks.onProgress({ phase: 'weights', done: 1, total: 2 });
  if (options.loadError !== undefined) throw new SluiceError('checkpoint_invalid', options.loadError);
  if (options.loadForever === true) await new Promise((resolve) => setTimeout(resolve, 1e9));
  return { engine: new FaultyEngine(options), eosTokenIds: [0] };
});
