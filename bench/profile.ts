/**
 * `npm run bench -- profile [model.gguf] [--write]`: how far steps are above their floors, and where the rest goes. Floors
 * are the bytes of the weights at the bandwidth of all cores, or the operations of the products at their peak, both
 * measured in the same run. Where time goes is told by ONNX Runtime's own trace, on one rank, by kind of node; custom ops
 * (BlockProduct, PagedAttention, AllReduce) are nodes too, and "between nodes" is what the trace does not cover.
 */
import { globSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, homedir, tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { createEngine, type EngineOptions } from '../runtime/engine/create-engine.ts';
import type { Engine, StepSlice } from '../runtime/engine/engine.ts';
import { openSource } from '../runtime/engine/rank-loader.ts';
import { readBandwidth } from './bandwidth.ts';
import { writeSection } from './docs-section.ts';
import { byteOperations } from './peak.ts';
import { installModel } from './peers/install.ts';
import type { Geometry } from './random-checkpoint.ts';

interface TraceEvent {
  readonly name: string;
  readonly ts: number;
  readonly dur: number;
  readonly args?: { readonly op_name?: string };
}

interface Subject {
  readonly name: string;
  readonly checkpoint: EngineOptions['checkpoint'];
}

const oneBillion: Geometry = {
  layers: 16,
  hidden: 2048,
  intermediate: 8192,
  heads: 32,
  kvHeads: 8,
  headDim: 64,
  vocabulary: 128256,
  blockSize: 32,
  maxLength: 2048,
};

const [blockTokens, maxLength, context] = [32, 640, 64];
const cacheDir = path.join(homedir(), '.cache/sluice/bench/weights');

interface Step {
  readonly name: string;
  readonly sequences: number;
  readonly rows: number;
  readonly position: number;
  readonly repetitions: number;
}

const steps: readonly Step[] = [
  { name: '1 sequence', sequences: 1, rows: 1, position: context, repetitions: 80 },
  { name: '8 sequences', sequences: 8, rows: 1, position: context, repetitions: 40 },
  { name: '32 sequences', sequences: 32, rows: 1, position: context, repetitions: 30 },
  { name: 'prefill of 512', sequences: 1, rows: 512, position: 0, repetitions: 6 },
];

function engineFor(
  { checkpoint }: Subject,
  options: Pick<EngineOptions, 'devices' | 'profilePrefix'>,
): Promise<Engine> {
  return createEngine({
    checkpoint,
    cacheDir,
    maxBatchSize: 32,
    maxStepTokens: 512,
    blockTokens,
    maxLength,
    blockCount: 32 * (maxLength / blockTokens),
    ...options,
  });
}

function slicesOf({ sequences, rows, position }: Step, vocabulary: number): StepSlice[] {
  const perSequence = maxLength / blockTokens;
  return Array.from({ length: sequences }, (_, sequence) => ({
    tokens: Array.from({ length: rows }, (_, i) => (sequence * 31 + i * 7) % vocabulary),
    position,
    blocks: Array.from({ length: perSequence }, (_, i) => sequence * perSequence + i),
    logits: 'last' as const,
  }));
}

/** Weights that each row is multiplied with, without the head's; and the head's. */
async function weightsOf({ checkpoint }: Subject): Promise<{ body: number; head: number }> {
  const { tensors } = await openSource(checkpoint);
  let body = 0;
  for (const [name, { shape }] of tensors) {
    if (shape.length === 2 && name.includes('layers.')) body += shape[0]! * shape[1]!;
  }
  const table = (tensors.get('lm_head.weight') ?? tensors.get('model.embed_tokens.weight'))!.shape;
  return { body, head: table[0]! * table[1]! };
}

/** Rows of a table: steps on all ranks beside their floors. */
async function measureSteps(subject: Subject, threads: number): Promise<string[]> {
  const [bandwidth, peak] = [await readBandwidth(threads), await byteOperations(threads)];
  const weights = await weightsOf(subject);
  const engine = await engineFor(subject, {});
  const lines: string[] = [];
  try {
    for (const step of steps) {
      const slices = slicesOf(step, engine.info.vocabulary);
      const times = Array.from({ length: step.repetitions }, () => {
        const start = performance.now();
        engine.step({ slices, copies: [] }, () => {});
        return performance.now() - start;
      }).sort((a, b) => a - b);
      const median = times[times.length >> 1]!;
      const read = (engine.info.weightBytes / bandwidth) * 1000;
      const operations = 2 * step.sequences * (step.rows * weights.body + weights.head);
      const computed = peak === undefined ? 0 : (operations / peak) * 1000;
      const floor = Math.max(read, computed);
      lines.push(
        `| ${subject.name} | ${step.name} | ${median.toFixed(2)} | ${floor.toFixed(2)} (${computed > read ? 'operations' : 'bytes'}) | ${(median / floor).toFixed(1)} |`,
      );
    }
    const peakText = peak === undefined ? 'unknown' : `${(peak / 1e9).toFixed(0)} GOPS`;
    lines.push(
      `| ${subject.name} | measured | ${engine.info.ranks} ranks | ${(bandwidth / 1e9).toFixed(1)} GB/s, ${peakText} | |`,
    );
  } finally {
    engine.close();
  }
  return lines;
}

/** Runs a step again and again on one rank: a row of a table with the fastest run's kinds of nodes. */
async function profileStep(subject: Subject, step: Step): Promise<string[]> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-profile-'));
  try {
    const engine = await engineFor(subject, {
      devices: { kind: 'cpu', indices: [0] },
      profilePrefix: path.join(folder, 'trace'),
    });
    const slices = slicesOf(step, engine.info.vocabulary);
    for (let i = 0; i < step.repetitions; i++) engine.step({ slices, copies: [] }, () => {});
    engine.close();
    await wait(200);
    return globSync('trace-rank0-*.json', { cwd: folder })
      .sort()
      .flatMap((file) => {
        const events = JSON.parse(readFileSync(path.join(folder, file), 'utf8')) as TraceEvent[];
        const kinds = fastest(events, step.repetitions);
        const graph = file.replace(/^trace-rank0-|_.*$/g, '');
        return kinds === undefined ? [] : [`| ${subject.name} | ${step.name} | ${graph} | ${kinds} |`];
      });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Undefined for a graph that only the warm-up ran: another one served the step. */
function fastest(events: readonly TraceEvent[], repetitions: number): string | undefined {
  const runs = events.filter(({ name }) => name === 'model_run');
  if (runs.length < repetitions) return undefined;
  const run = runs.slice(-repetitions).reduce((best, each) => (each.dur < best.dur ? each : best));
  const kinds = new Map<string, number>();
  let covered = 0;
  for (const { name, ts, dur, args } of events) {
    if (!name.endsWith('_kernel_time') || ts < run.ts || ts > run.ts + run.dur) continue;
    kinds.set(args!.op_name!, (kinds.get(args!.op_name!) ?? 0) + dur);
    covered += dur;
  }
  kinds.set('between nodes', run.dur - covered);
  const shares = [...kinds]
    .sort((a, b) => b[1] - a[1])
    .map(([kind, micros]) => ({ kind, share: (100 * micros) / run.dur }))
    .filter(({ share }) => share >= 0.5)
    .map(({ kind, share }) => `${kind} ${share.toFixed(0)}%`);
  return `${(run.dur / 1000).toFixed(1)} | ${shares.join(', ')}`;
}

export async function benchProfile(argv: readonly string[]): Promise<void> {
  const [model] = argv.filter((word) => !word.startsWith('--'));
  const random = new URL('./random-checkpoint.ts', import.meta.url).href;
  const smol = model === undefined ? installModel(path.join(homedir(), '.cache/sluice/bench')) : model;
  const subjects: readonly Subject[] = [
    { name: path.basename(smol, '.gguf'), checkpoint: { path: path.resolve(smol) } },
    { name: '1B, random weights', checkpoint: { module: random, argument: oneBillion } },
  ];
  const cores = cpus();
  const floors = [
    '| model | step | median, ms | floor, ms | times the floor |',
    '| --- | --- | --- | --- | --- |',
  ];
  const kinds = ['| model | step | graph | ms | where it goes |', '| --- | --- | --- | --- | --- |'];
  for (const subject of subjects) {
    process.stderr.write(`${subject.name}: steps ...\n`);
    floors.push(...(await measureSteps(subject, cores.length)));
    for (const step of steps) {
      process.stderr.write(`${subject.name}: profile of ${step.name} ...\n`);
      kinds.push(...(await profileStep(subject, step)));
    }
  }
  const lines = [
    `${cores[0]?.model ?? 'unknown processor'}, ${cores.length} cores, Node ${process.version}. Steps on all ranks, context ${context};`,
    'a floor is the larger of the bytes of the weights at the bandwidth of all cores, and the operations of the products',
    '(attention not counted) at the peak of the instruction that they are made of.',
    '',
    ...floors,
    '',
    'Where the time of the fastest step goes on one rank, while it is traced:',
    '',
    ...kinds,
  ];
  console.log(lines.join('\n'));
  if (argv.includes('--write')) writeSection('profile', lines);
}
