/**
 * A process that measures itself: an engine of the built program is made, fills its KV cache, and what is resident goes to
 * standard output; without engine options only the program's modules are loaded. Run without its types and without
 * anything of the checkout (bench/memory.ts starts it so): what compiles TypeScript would be measured too.
 */
import { readFileSync } from 'node:fs';
import type { EngineOptions } from '../runtime/engine/create-engine.ts';
import type { StepSlice } from '../runtime/engine/engine.ts';

export interface Resident {
  /** Bytes that no file holds. */
  readonly anonymous: number;
  /** With the pages of mapped files, programs' code among them. */
  readonly all: number;
}

export interface MemoryReport {
  readonly resident: Resident;
  /** Of `resident`, the KV cache's pages: all were written. */
  readonly kvBytes: number;
  readonly weightBytes: number;
  readonly loadMs: number;
}

export interface MemoryTask {
  /** URL of the built runtime's folder. */
  readonly runtime: string;
  readonly engine: EngineOptions | null;
}

/** Linux's account of this process. */
function resident(): Resident {
  const text = readFileSync('/proc/self/smaps_rollup', 'utf8');
  const bytes = (key: string): number => 1024 * Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(text)?.[1]);
  return { anonymous: bytes('Anonymous'), all: bytes('Rss') };
}

async function measure({ runtime, engine: options }: MemoryTask): Promise<MemoryReport> {
  const { createEngine } = (await import(
    `${runtime}/engine/create-engine.js`
  )) as typeof import('../runtime/engine/create-engine.ts');
  const { collectGarbage } = (await import(
    `${runtime}/engine/collect-garbage.js`
  )) as typeof import('../runtime/engine/collect-garbage.ts');
  if (options === null) {
    // As `collectGarbage`, without letting go of code: only an engine that has loaded does.
    await globalThis.gc!({ type: 'major', execution: 'async', flavor: 'last-resort' });
    return { resident: resident(), kvBytes: 0, weightBytes: 0, loadMs: 0 };
  }
  const start = performance.now();
  const engine = await createEngine(options);
  const loadMs = performance.now() - start;
  // As the engine's thread does once it has loaded.
  collectGarbage();
  const { blockTokens, blockCount, kvBytes, maxStepTokens, vocabulary, weightBytes } = engine.info;
  const blocks = Array.from({ length: blockCount }, (_, id) => id);
  const step = (tokens: readonly number[], position: number): void => {
    const slice: StepSlice = { tokens, position, blocks, logits: 'last' };
    engine.step({ slices: [slice], copies: [] }, () => {});
  };
  // Every block is written, so that all of the pool is resident and can be subtracted.
  const length = blockTokens * blockCount;
  for (let position = 0; position < length; position += maxStepTokens) {
    const count = Math.min(maxStepTokens, length - position);
    step(
      Array.from({ length: count }, (_, i) => ((position + i) * 7919) % vocabulary),
      position,
    );
  }
  const report = { resident: resident(), kvBytes, weightBytes, loadMs };
  engine.close();
  return report;
}

const task = JSON.parse(process.argv[2]!) as MemoryTask;
console.log(JSON.stringify(await measure(task)));
