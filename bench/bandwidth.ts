/**
 * What memory can deliver: the floor under a step of one token, which reads every weight once. Measured by adding up
 * large arrays on as many threads as will compute.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { createMemory, instantiateKernel, reservedBytes } from '../runtime/engine/kernels/kernel-module.ts';

/** Far beyond any cache. */
const readBytes = 384 * 2 ** 20;
/** Added up four by four into a target that stays in the nearest cache, so that reading is all that counts. */
const pieceBytes = 16 * 1024;
const pieces = 4;
const milliseconds = 600;

/** Bytes a second on this thread. */
function measure(): number {
  const from = reservedBytes + pieceBytes;
  const memory = createMemory(from + readBytes);
  const kernel = instantiateKernel<{
    sumParts(parts: number, stride: number, ranks: number, to: number, count: number): void;
  }>('reduce', memory);
  new Uint8Array(memory.buffer).fill(1, reservedBytes);
  const pass = (): void => {
    for (let at = from; at < from + readBytes; at += pieces * pieceBytes) {
      kernel.sumParts(at, pieceBytes, pieces, reservedBytes, pieceBytes / 4);
    }
  };
  pass();
  const start = performance.now();
  let passes = 0;
  while (performance.now() - start < milliseconds) {
    pass();
    passes++;
  }
  return (passes * readBytes) / ((performance.now() - start) / 1000);
}

/** Bytes a second that `threads` threads read together. */
export async function readBandwidth(threads: number): Promise<number> {
  const workers = Array.from(
    { length: threads },
    () => new Worker(new URL(import.meta.url), { workerData: 'measure-bandwidth' }),
  );
  const results = await Promise.all(
    workers.map(async (worker) => (await once(worker, 'message'))[0] as number),
  );
  return results.reduce((sum, result) => sum + result, 0);
}

if (!isMainThread && workerData === 'measure-bandwidth') parentPort!.postMessage(measure());
