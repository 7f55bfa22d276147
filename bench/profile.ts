/**
 * `npm run bench -- profile [model.gguf]`: where a step's time goes on one rank, by kind of node, from ONNX Runtime's own
 * trace. Custom ops (PagedAttention, AllReduce) are nodes too; "between nodes" is what the trace does not cover.
 */
import { globSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { createEngine, type EngineOptions } from '../runtime/engine/create-engine.ts';
import { smol } from './steps.ts';

interface TraceEvent {
  readonly name: string;
  readonly ts: number;
  readonly dur: number;
  readonly args?: { readonly op_name?: string };
}

const [blockTokens, maxLength] = [32, 640];

/** Runs the same step again and again on one rank, and prints the fastest run's nodes. */
async function profileStep(
  checkpoint: EngineOptions['checkpoint'],
  sequences: number,
  rows: number,
  repetitions: number,
): Promise<void> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-profile-'));
  try {
    const engine = await createEngine({
      checkpoint,
      devices: { kind: 'cpu', indices: [0] },
      maxBatchSize: 32,
      maxStepTokens: 512,
      blockTokens,
      maxLength,
      blockCount: sequences * (maxLength / blockTokens),
      profilePrefix: path.join(folder, 'trace'),
    });
    const blocks = (sequence: number): number[] =>
      Array.from({ length: maxLength / blockTokens }, (_, i) => (sequence * maxLength) / blockTokens + i);
    const slices = Array.from({ length: sequences }, (_, sequence) => ({
      tokens: Array.from({ length: rows }, (_, i) => (sequence * 31 + i * 7) % engine.info.vocabulary),
      position: 0,
      blocks: blocks(sequence),
      logits: 'last' as const,
    }));
    for (let i = 0; i < repetitions; i++) engine.step({ slices, copies: [] }, () => {});
    engine.close();
    await wait(200);
    console.log(`\n${sequences} x ${rows} tokens, one rank, microseconds of the fastest run`);
    for (const file of globSync('trace-rank0-*.json', { cwd: folder }).sort()) {
      printFastest(
        file,
        JSON.parse(readFileSync(path.join(folder, file), 'utf8')) as TraceEvent[],
        repetitions,
      );
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function printFastest(file: string, events: readonly TraceEvent[], repetitions: number): void {
  const runs = events.filter(({ name }) => name === 'model_run');
  // Fewer runs are the warm-up's: another graph served the step.
  if (runs.length < repetitions) return;
  const run = runs.slice(-repetitions).reduce((best, each) => (each.dur < best.dur ? each : best));
  const kinds = new Map<string, { micros: number; nodes: number }>();
  let covered = 0;
  for (const { name, ts, dur, args } of events) {
    if (!name.endsWith('_kernel_time') || ts < run.ts || ts > run.ts + run.dur) continue;
    const kind = kinds.get(args!.op_name!) ?? { micros: 0, nodes: 0 };
    kinds.set(args!.op_name!, { micros: kind.micros + dur, nodes: kind.nodes + 1 });
    covered += dur;
  }
  const share = (micros: number): string => `${((100 * micros) / run.dur).toFixed(1)}%`.padStart(6);
  console.log(`${file.replace(/^trace-rank0-|_.*$/g, '')}: ${run.dur}`);
  for (const [kind, { micros, nodes }] of [...kinds].sort((a, b) => b[1].micros - a[1].micros)) {
    console.log(`  ${kind.padEnd(36)} ${String(micros).padStart(9)} ${share(micros)}  ${nodes} nodes`);
  }
  console.log(
    `  ${'between nodes'.padEnd(36)} ${String(run.dur - covered).padStart(9)} ${share(run.dur - covered)}`,
  );
}

export async function benchProfile([model]: readonly string[]): Promise<void> {
  const checkpoint = model
    ? { path: path.resolve(model) }
    : { module: new URL('./random-checkpoint.ts', import.meta.url).href, argument: smol };
  await profileStep(checkpoint, 1, 1, 60);
  await profileStep(checkpoint, 8, 1, 30);
  await profileStep(checkpoint, 32, 1, 20);
  await profileStep(checkpoint, 1, 512, 4);
}
