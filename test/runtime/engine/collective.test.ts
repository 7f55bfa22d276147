import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { SoloCollective } from '../../../runtime/engine/collective/collective.ts';
import { shareMemory, ThreadCollective } from '../../../runtime/engine/collective/thread-collective.ts';
import { SluiceError } from '../../../runtime/errors.ts';
import { exerciseCollective } from './collective-suite.ts';
import type { CollectiveWorkerData } from './collective-worker.ts';

function startRank(data: CollectiveWorkerData): Worker {
  return new Worker(new URL('./collective-worker.ts', import.meta.url), { workerData: data });
}

test('conformance: one rank alone', () => {
  exerciseCollective(new SoloCollective(50_000), 50_000);
});

for (const { ranks, spin } of [
  { ranks: 1, spin: true },
  { ranks: 2, spin: true },
  { ranks: 3, spin: false },
  { ranks: 5, spin: true },
]) {
  test(`conformance: ${ranks} threads, ${spin ? 'spinning' : 'sleeping'}`, async () => {
    const shared = shareMemory({ ranks, reduceFloats: 50_000, broadcastWords: 64, spin });
    const ended: Promise<unknown>[] = [];
    for (let rank = 1; rank < ranks; rank++) {
      const worker = startRank({ shared, rank, task: 'exercise' });
      ended.push(once(worker, 'exit').then(([code]) => assert.equal(code, 0, `rank ${rank}'s exit code`)));
    }
    const collective = new ThreadCollective(shared, 0);
    exerciseCollective(collective, 50_000);
    await Promise.all(ended);
  });
}

for (const { task, message } of [
  { task: 'fail', message: /rank 1: the disk is on fire/ },
  { task: 'die', message: /rank 1: its thread has died/ },
] as const) {
  test(`when a rank ${task}s, those who wait for it throw, then and later`, async () => {
    const shared = shareMemory({ ranks: 2, reduceFloats: 64, broadcastWords: 64, spin: true });
    const worker = startRank({ shared, rank: 1, task });
    worker.on('error', () => {});
    const collective = new ThreadCollective(shared, 0);
    await once(worker, 'message');
    collective.contribution(64).fill(1);
    const expected = (error: unknown): boolean =>
      error instanceof SluiceError && error.code === 'engine_failed' && message.test(error.message);
    assert.throws(() => collective.allReduce(64), expected);
    assert.throws(() => collective.barrier(), expected);
    assert.throws(() => collective.broadcast(Int32Array.of(1)), expected);
    await worker.terminate();
  });
}
