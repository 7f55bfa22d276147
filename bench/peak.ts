/**
 * How many operations on bytes the processor does where nothing waits for memory: the floor under a step of many rows.
 * Measured by a loop of the instruction that products are made of, on as many threads as will compute.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { Assembler } from '../runtime/engine/kernels/x64/assembler.ts';
import { Label, rdi } from '../runtime/engine/kernels/x64/general-assembler.ts';
import { availableInstructionSets, type InstructionSet } from '../runtime/engine/kernels/x64/processor.ts';
import { nativeFunction } from '../runtime/ort/native-code.ts';

const milliseconds = 400;
const turns = 20_000;

/** A multiplication and an addition for each byte are two operations. */
function loop(instructions: InstructionSet): { readonly code: Uint8Array; readonly operations: number } {
  const code = new Assembler();
  const next = new Label();
  code.bind(next);
  const sums = instructions === 'avx512' ? 24 : 8;
  for (let sum = 0; sum < sums; sum++) {
    if (instructions === 'avx512') code.binary(64, 'pdpbusd', sum, 30, 31);
    else {
      code.binary(32, 'pmaddubsw', 13, 14, 15);
      code.binary(32, 'pmaddwd', 13, 13, 12);
      code.binary(32, 'paddd', sum, sum, 13);
    }
  }
  code.subtract(rdi, 1);
  code.jumpIf('notEqual', next);
  code.zeroUpper();
  code.return();
  return { code: code.finish(), operations: turns * sums * (instructions === 'avx512' ? 128 : 64) };
}

/** Operations a second on this thread. */
function measure(instructions: InstructionSet): number {
  const { code, operations } = loop(instructions);
  const run = nativeFunction(code, 1);
  const start = performance.now();
  let best = 0;
  while (performance.now() - start < milliseconds) {
    const from = performance.now();
    run(BigInt(turns));
    best = Math.max(best, operations / ((performance.now() - from) / 1000));
  }
  return best;
}

/** Operations on bytes a second that `threads` threads do together; undefined where there is no machine code. */
export async function byteOperations(threads: number): Promise<number | undefined> {
  const [instructions] = availableInstructionSets();
  if (instructions === undefined) return undefined;
  const workers = Array.from(
    { length: threads },
    () => new Worker(new URL(import.meta.url), { workerData: { peakOf: instructions } }),
  );
  const results = await Promise.all(
    workers.map(async (worker) => (await once(worker, 'message'))[0] as number),
  );
  return results.reduce((sum, result) => sum + result, 0);
}

if (!isMainThread && workerData?.peakOf !== undefined) parentPort!.postMessage(measure(workerData.peakOf));
