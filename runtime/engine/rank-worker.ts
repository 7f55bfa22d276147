/**
 * The thread of a rank other than 0: loads its share, says so, then follows rank 0 step by step through shared memory
 * until it is closed. Its own failure becomes everyone's: a rank never leaves the others waiting.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { SluiceError } from '../errors.ts';
import { collectGarbage } from './collect-garbage.ts';
import { ThreadCollective } from './collective/thread-collective.ts';
import { loadRank } from './rank-loader.ts';
import type { RankMessage, RankThreadData } from './rank-threads.ts';

const { collective: shared, rank, load } = workerData as RankThreadData;
const collective = new ThreadCollective(shared, rank);
const tell = (message: RankMessage): void => parentPort!.postMessage(message);

try {
  const loaded = await loadRank(load, rank, collective);
  const { blockBytes, manyRowBytes } = loaded;
  tell({ kind: 'loaded', blockBytes, manyRowBytes });
  const pool = collective.broadcast();
  if (pool !== undefined) {
    using running = loaded.start(pool[0]!);
    collectGarbage();
    collective.barrier();
    for (let words = collective.broadcast(); words !== undefined; words = collective.broadcast()) {
      running.run(words);
    }
  }
} catch (error) {
  const { message } = error as Error;
  tell({ kind: 'failed', code: error instanceof SluiceError ? error.code : 'engine_failed', message });
  collective.fail(message);
}
