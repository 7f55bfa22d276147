/** The entry of the engine's thread: the real engine, made from the options that the thread was started with. */
import { parentPort, workerData } from 'node:worker_threads';
import { collectGarbage } from './engine/collect-garbage.ts';
import { createEngine } from './engine/create-engine.ts';
import { openSource } from './engine/rank-loader.ts';
import { runEngineThread } from './llm/engine-thread.ts';
import type { ThreadData } from './llm/messages.ts';
import { SharedStatistics } from './llm/statistics.ts';
import type { LlmOptions } from './llm.ts';
import { parseModel } from './models/registry.ts';
import { giveWay } from './thread-priority.ts';

const { options, loop, statistics } = workerData as ThreadData<LlmOptions>;

// Before there are ranks: their threads inherit it.
giveWay('engine');
await runEngineThread(parentPort!, new SharedStatistics(statistics), loop, async (hooks) => {
  const checkpoint = await openSource(options.checkpoint);
  const { eosTokenIds } = parseModel(checkpoint).spec;
  const engine = await createEngine({ ...options, ...hooks });
  collectGarbage();
  return { engine, eosTokenIds };
});
