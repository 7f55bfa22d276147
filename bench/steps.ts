/**
 * Step times of the engine for the embedded model and for a 135M geometry with random 4-bit weights,
 * beside the numbers recorded when the design was chosen and beside what this machine's memory allows.
 */
import { cpus } from 'node:os';
import path from 'node:path';
import { createEngine, type EngineOptions } from '../runtime/engine/create-engine.ts';
import { readBandwidth } from './bandwidth.ts';
import { type EngineTimes, measureEngine } from './engine.ts';
import type { Geometry } from './random-checkpoint.ts';
import { recorded } from './recorded.ts';

const batchSizes = [1, 8, 32] as const;

export const smol: Geometry = {
  layers: 30,
  hidden: 576,
  intermediate: 1536,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  vocabulary: 49152,
  blockSize: 32,
  maxLength: 2048,
};

interface Subject {
  readonly name: string;
  readonly checkpoint: EngineOptions['checkpoint'];
  readonly context: number;
  readonly prefillTokens: number;
}

const subjects: readonly Subject[] = [
  {
    name: 'embedded model, float32',
    checkpoint: { path: path.resolve(import.meta.dirname, '../examples/models/tiny') },
    context: 64,
    prefillTokens: 512,
  },
  {
    name: '135M geometry, random 4-bit weights in blocks of 32',
    checkpoint: { module: new URL('./random-checkpoint.ts', import.meta.url).href, argument: smol },
    context: 64,
    prefillTokens: 512,
  },
];

const line = (cells: readonly string[]): string =>
  `| ${cells[0]!.padEnd(62)} | ${cells
    .slice(1)
    .map((cell) => cell.padStart(9))
    .join(' | ')} |`;

const milliseconds = (value: number): string => value.toFixed(value < 10 ? 2 : 1);

async function measure(
  subject: Subject,
): Promise<{ times: EngineTimes; ranks: number; weightBytes: number }> {
  const engine = await createEngine({
    checkpoint: subject.checkpoint,
    maxBatchSize: 32,
    maxStepTokens: 512,
    blockTokens: 32,
    blockCount: 32 * Math.ceil((subject.prefillTokens + 32) / 32),
    maxLength: subject.prefillTokens + 32,
  });
  try {
    const { context, prefillTokens } = subject;
    const times = measureEngine(engine, { batchSizes, context, prefillTokens, milliseconds: 1500 });
    return { times, ranks: engine.info.ranks, weightBytes: engine.info.weightBytes };
  } finally {
    engine.close();
  }
}

/** Prints the table. */
export async function benchSteps(): Promise<void> {
  const cores = cpus();
  console.log(`${cores[0]?.model ?? 'unknown processor'}, ${cores.length} cores, Node ${process.version}\n`);
  console.log(line(['milliseconds a step; prefill in tokens a second', '1', '8', '32', 'prefill']));
  console.log(line(['-'.repeat(62), ...new Array(4).fill('-'.repeat(9))]));
  for (const row of recorded) {
    const prefill = row.prefill === undefined ? '' : String(row.prefill);
    console.log(line([`recorded: ${row.name}`, ...row.stepMs.map(milliseconds), prefill]));
  }
  const bandwidth = await readBandwidth(cores.length);
  for (const subject of subjects) {
    const { times, ranks, weightBytes } = await measure(subject);
    const floor = (weightBytes / bandwidth) * 1000;
    console.log(
      line([
        `floor: ${subject.name.slice(0, 36)}, ${(weightBytes / 2 ** 20).toFixed(0)} MiB`,
        ...batchSizes.map(() => milliseconds(floor)),
        '',
      ]),
    );
    console.log(
      line([
        `now: ${subject.name}`,
        ...batchSizes.map((size) => milliseconds(times.stepMs.get(size)!)),
        times.prefillTokensPerSecond.toFixed(0),
      ]),
    );
    console.log(
      `  ${ranks} ranks; decode with ${subject.context} tokens of context, head included; ` +
        `prefill of ${subject.prefillTokens} tokens; batch 1 takes ${(times.stepMs.get(1)! / floor).toFixed(1)} times its floor`,
    );
  }
  console.log(
    `\nfloor: the weights' bytes at ${(bandwidth / 1e9).toFixed(1)} GB/s, which ${cores.length} threads read together just now`,
  );
}
