/**
 * What memory can deliver: the floor under a step of one token, which reads every weight once. Measured by adding up
 * large arrays on as many threads as will compute.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { createMemory, instantiateKernel, reservedBytes } from '../runtime/engine/kernels/kernel-module.ts';

/** Far beyond any cache. */
const readBytes = 384 * 2 ** 20;
const parts = 64;
const milliseconds = 600;

/** Bytes a second on this thread. */
function measure(): number {
  const memory = createMemory(reservedBytes + readBytes);
  const kernel = instantiateKernel<{
    sumParts(parts: number, stride: number, ranks: number, to: number, count: number): void;
  }>('reduce', memory);
  new Uint8Array(memory.buffer).fill(1, reservedBytes);
  const stride = readBytes / parts;
  // Reads 63 parts and overwrites the first.
  const pass = (): void =>
    kernel.sumParts(reservedBytes + stride, stride, parts - 1, reservedBytes, stride / 4);
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
