/**
 * What memory can deliver: the floor under a step of one token, which reads every weight once. Measured by reading large
 * arrays on as many threads as will compute: with machine code from large pages, asking ahead as the kernels do; where there
 * is none, in WebAssembly.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { createMemory, instantiateKernel, reservedBytes } from '../runtime/engine/kernels/kernel-module.ts';
import { Assembler } from '../runtime/engine/kernels/x64/assembler.ts';
import { at, Label, rdi, rsi } from '../runtime/engine/kernels/x64/general-assembler.ts';
import { availableInstructionSets } from '../runtime/engine/kernels/x64/processor.ts';
import { LargePages } from '../runtime/ort/large-pages.ts';
import { addressOf, copyMemory } from '../runtime/ort/library.ts';
import { nativeFunction } from '../runtime/ort/native-code.ts';

/** Far beyond any cache. */
const readBytes = 384 * 2 ** 20;
const milliseconds = 600;
/** Read in turns of so many vectors of 32 bytes, asking for what is so far ahead. */
const vectors = 16;
const aheadBytes = 16 * 1024;

/** A function that reads the array once. */
function reader(): () => void {
  return availableInstructionSets().length > 0 ? nativeReader() : portableReader();
}

function nativeReader(): () => void {
  const code = new Assembler();
  const next = new Label();
  code.bind(next);
  for (let vector = 0; vector < vectors; vector++) {
    if (vector % 2 === 0) code.prefetch(at(rdi, vector * 32 + aheadBytes));
    code.binary(32, 'pxor', vector % 8, vector % 8, at(rdi, vector * 32));
  }
  code.add(rdi, vectors * 32);
  code.subtract(rsi, 1);
  code.jumpIf('notEqual', next);
  code.zeroUpper();
  code.return();
  const read = nativeFunction(code.finish(), 2);
  const pages = LargePages.reserve([readBytes]);
  const bytes = new Uint8Array(new SharedArrayBuffer(pages === undefined ? readBytes : 2 ** 20)).fill(1);
  const start = pages?.take(readBytes) ?? addressOf(bytes);
  // Pages are given when they are written to.
  if (pages !== undefined) {
    for (let at = 0; at < readBytes; at += bytes.length) copyMemory(start + BigInt(at), bytes, bytes.length);
  }
  return () => {
    read(start, BigInt(readBytes / (vectors * 32)));
    // The array is held until it has been read.
    if (bytes[0] !== 1) throw new Error('the array has changed');
  };
}

function portableReader(): () => void {
  // Added up four by four into a target that stays in the nearest cache, so that reading is all that counts.
  const [pieceBytes, pieces] = [16 * 1024, 4];
  const from = reservedBytes + pieceBytes;
  const memory = createMemory(from + readBytes);
  const kernel = instantiateKernel<{
    sumParts(parts: number, stride: number, ranks: number, to: number, count: number): void;
  }>('reduce', memory);
  new Uint8Array(memory.buffer).fill(1, reservedBytes);
  return () => {
    for (let at = from; at < from + readBytes; at += pieces * pieceBytes) {
      kernel.sumParts(at, pieceBytes, pieces, reservedBytes, pieceBytes / 4);
    }
  };
}

/** Bytes a second on this thread. */
function measure(): number {
  const pass = reader();
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
