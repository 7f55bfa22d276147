/**
 * Starts and ends the threads of ranks 1 and up. Leaves: promises that settle whatever becomes of a thread.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { type ErrorCode, SluiceError } from '../errors.ts';
import type { SharedCollective } from './collective/thread-collective.ts';
import type { RankLoad, RankSizes } from './rank-loader.ts';

/** What a rank's thread is started with. */
export interface RankThreadData {
  readonly collective: SharedCollective;
  readonly rank: number;
  readonly load: RankLoad;
}

/** What a rank's thread says. Steps need no messages. */
export type RankMessage =
  | ({ readonly kind: 'loaded' } & RankSizes)
  | { readonly kind: 'failed'; readonly code: ErrorCode; readonly message: string };

export interface RankThread {
  /** Settles once it has loaded. Rejects with SluiceError when it cannot, or dies. */
  readonly loaded: Promise<RankSizes>;
  /** Ends the thread whatever it does; without effect on one that has ended. */
  terminate(): void;
}

/** A step allocates little: room for more garbage would only stay filled with it. */
const maxYoungGenerationSizeMb = 3;

/** `onEnd` is called when the thread has ended, for whatever reason, after it had loaded. */
export function startRank(data: RankThreadData, onEnd: () => void): RankThread {
  // The extension is .ts in the checkout and .js in the package.
  const file = `./rank-worker${path.extname(import.meta.filename)}`;
  const worker = new Worker(new URL(file, import.meta.url), {
    workerData: data,
    name: `sluice-rank-${data.rank}`,
    resourceLimits: { maxYoungGenerationSizeMb },
  });
  const loaded = new Promise<RankSizes>((resolve, reject) => {
    const fail = (code: ErrorCode, message: string, cause?: unknown): void =>
      reject(new SluiceError(code, message, { cause }));
    worker.once('message', (message: RankMessage) => {
      if (message.kind === 'loaded') resolve(message);
      else fail(message.code, message.message);
    });
    worker.once('error', (error) => fail('engine_failed', `rank ${data.rank}: ${error.message}`, error));
    worker.once('exit', (code) => fail('engine_failed', `rank ${data.rank} ended while loading (${code})`));
  });
  loaded.then(
    () => worker.once('exit', onEnd).unref(),
    () => {},
  );
  return { loaded, terminate: () => void worker.terminate() };
}
