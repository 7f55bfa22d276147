/**
 * A process that measures itself: an engine is made as the first argument (EngineOptions in JSON) says, runs a prompt and
 * a few tokens, and says on standard output what is resident, without and with the pages of mapped files.
 */
import { readFileSync } from 'node:fs';
import { createEngine, type EngineOptions } from '../runtime/engine/create-engine.ts';
import type { StepSlice } from '../runtime/engine/engine.ts';

export interface Resident {
  /** Bytes that no file holds. */
  readonly anonymous: number;
  /** With the pages of mapped files, programs' code among them. */
  readonly all: number;
}

export interface MemoryReport {
  readonly resident: Resident;
  /** Of `resident`, the KV cache's pages that were touched. */
  readonly kvBytes: number;
  readonly weightBytes: number;
}

/** Linux's account of this process. */
export function resident(): Resident {
  const text = readFileSync('/proc/self/smaps_rollup', 'utf8');
  const bytes = (key: string): number => 1024 * Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(text)?.[1]);
  return { anonymous: bytes('Anonymous'), all: bytes('Rss') };
}

async function measure(options: EngineOptions): Promise<MemoryReport> {
  const engine = await createEngine(options);
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
  // What loading left behind is not running: the collector has had its time.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  globalThis.gc?.();
  const report = { resident: resident(), kvBytes, weightBytes };
  engine.close();
  return report;
}

const [argument] = process.argv.slice(2);
if (argument === undefined) throw new Error('expected EngineOptions as JSON, or null for an empty process');
const options = JSON.parse(argument) as EngineOptions | null;
const report: MemoryReport =
  options === null ? { resident: resident(), kvBytes: 0, weightBytes: 0 } : await measure(options);
console.log(JSON.stringify(report));
