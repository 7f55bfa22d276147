/**
 * `npm run bench -- memory`: what weights and engine of the built program (dist/) keep resident beside what their file
 * holds, how long loading takes with and without a cache of prepared weights, and how long `sluice generate` takes from its
 * start to the first token. Each figure is from a process of its own; what the KV cache and an empty process take is
 * subtracted.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { cpus, homedir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import type { EngineOptions } from '../runtime/engine/create-engine.ts';
import { folderGeometries, writeCheckpointFolder } from './checkpoint-folder.ts';
import { writeSection } from './docs-section.ts';
import type { MemoryReport, MemoryTask, Resident } from './memory-process.ts';
import { installModel } from './peers/install.ts';

interface Subject {
  readonly name: string;
  /** What weights and engine may keep resident, as a ratio to the file. */
  readonly most: number;
  /** Makes the checkpoint where it is not there yet; its place and the file with its weights. */
  place(cacheDir: string): { readonly path: string; readonly file: string };
}

const inFolder = (name: keyof typeof folderGeometries): Subject['place'] => {
  return (cacheDir) => {
    const folder = path.join(cacheDir, 'geometries', name);
    if (!existsSync(folder)) {
      console.error(`writing ${folder} ...`);
      writeCheckpointFolder(`${folder}.part`, folderGeometries[name]);
      renameSync(`${folder}.part`, folder);
    }
    return { path: folder, file: path.join(folder, 'model.safetensors') };
  };
};

const smolLm2: Subject = {
  name: 'SmolLM2-135M, GGUF Q4_1',
  most: 1.6,
  place(cacheDir) {
    const file = installModel(cacheDir);
    return { path: file, file };
  },
};

const subjects: readonly Subject[] = [
  smolLm2,
  { name: 'SmolLM2-135M geometry, bfloat16', most: 2.2, place: inFolder('SmolLM2-135M') },
  { name: 'TinyLlama-1.1B geometry, GPTQ', most: 1.5, place: inFolder('TinyLlama-1.1B') },
  { name: 'Llama-3.2-1B geometry, GPTQ', most: 1.5, place: inFolder('Llama-3.2-1B') },
];

const root = path.resolve(import.meta.dirname, '..');
const run = promisify(execFile);
const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(0);
const seconds = (milliseconds: number): string => (milliseconds / 1000).toFixed(1);

/** bench/memory-process.ts without its types: a process that compiles TypeScript has more in memory. */
function writeProcess(folder: string): string {
  const file = path.join(folder, 'memory-process.mjs');
  const source = readFileSync(path.join(import.meta.dirname, 'memory-process.ts'), 'utf8');
  writeFileSync(file, stripTypeScriptTypes(source));
  return file;
}

async function inProcess(script: string, engine: EngineOptions | null): Promise<MemoryReport> {
  const task: MemoryTask = { runtime: pathToFileURL(path.join(root, 'dist/runtime')).href, engine };
  const { stdout } = await run(process.execPath, ['--expose-gc', script, JSON.stringify(task)]);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as MemoryReport;
}

/** Node alone, when it has nothing to do. */
async function bareNode(): Promise<Resident> {
  const code = `setTimeout(() => console.log(require('fs').readFileSync('/proc/self/smaps_rollup', 'utf8')), 100)`;
  const { stdout } = await run(process.execPath, ['--eval', code]);
  const bytes = (key: string): number =>
    1024 * Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(stdout)?.[1]);
  return { anonymous: bytes('Anonymous'), all: bytes('Rss') };
}

/** Milliseconds from the start of `sluice generate` until the first word of an answer. */
async function firstToken(model: string, cacheDir: string): Promise<number> {
  const start = performance.now();
  const program = spawn(
    process.execPath,
    [
      path.join(root, 'dist/runtime/cli/sluice.js'),
      'generate',
      `--model-path=${model}`,
      `--cache-dir=${cacheDir}`,
      '--prompt=What is Kubernetes?',
      '--max-new-tokens=2',
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  );
  let milliseconds = Number.NaN;
  program.stdout.once('data', () => {
    milliseconds = performance.now() - start;
  });
  const [code, signal] = (await once(program, 'close')) as [number | null, string | null];
  if (code !== 0 || Number.isNaN(milliseconds))
    throw new Error(`sluice generate ended with ${code ?? signal}`);
  return milliseconds;
}

interface Measured {
  readonly subject: Subject;
  readonly ranks: number;
  readonly fileBytes: number;
  readonly report: MemoryReport;
  /** Without prepared weights. */
  readonly firstLoadMs: number;
}

async function measure(
  script: string,
  subject: Subject,
  ranks: number,
  place: ReturnType<Subject['place']>,
  cacheDir: string,
): Promise<Measured> {
  const engine: EngineOptions = {
    checkpoint: { path: place.path },
    devices: { kind: 'cpu', indices: Array.from({ length: ranks }, (_, index) => index) },
    threads: ranks,
    maxBatchSize: 8,
    maxStepTokens: 128,
    blockTokens: 32,
    blockCount: 16,
    cacheDir,
  };
  const first = await inProcess(script, engine);
  const report = await inProcess(script, engine);
  return { subject, ranks, fileBytes: statSync(place.file).size, report, firstLoadMs: first.loadMs };
}

function rowOf(
  { subject, ranks, fileBytes, report, firstLoadMs }: Measured,
  empty: readonly [Resident, Resident],
): string[] {
  const without = (each: Resident, key: keyof Resident): number =>
    report.resident[key] - report.kvBytes - each[key];
  const [program, node] = empty;
  const ratio = (bytes: number): string => (bytes / fileBytes).toFixed(2);
  return [
    `${subject.name}, ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`,
    megabytes(fileBytes),
    megabytes(without(program, 'all')),
    `**${ratio(without(program, 'all'))}** (${subject.most})`,
    ratio(without(node, 'all')),
    megabytes(without(program, 'anonymous')),
    `${seconds(firstLoadMs)}, ${seconds(report.loadMs)}`,
  ];
}

const head = [
  'checkpoint',
  'file, MB',
  'resident, MB',
  'ratio to the file (at most)',
  'beside bare Node',
  'held by no file, MB',
  'loading, then with prepared weights, s',
];

export async function benchMemory(argv: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      only: { type: 'string', default: '' },
      cache: { type: 'string', default: path.join(homedir(), '.cache/sluice/bench') },
      write: { type: 'boolean', default: false },
    },
  });
  if (!existsSync(path.join(root, 'dist/runtime')))
    throw new Error('dist/ is missing: npm run build makes it');
  mkdirSync(values.cache, { recursive: true });
  const scratch = mkdtempSync(path.join(values.cache, 'memory-'));
  try {
    const script = writeProcess(scratch);
    const empty = [(await inProcess(script, null)).resident, await bareNode()] as const;
    const measured: Measured[] = [];
    let starts: readonly number[] = [];
    for (const subject of subjects.filter(({ name }) => name.includes(values.only))) {
      const place = subject.place(values.cache);
      // Each without weights that another has prepared.
      const prepared = (): string => mkdtempSync(path.join(scratch, 'prepared-'));
      if (subject === smolLm2) {
        console.error('sluice generate ...');
        const folder = prepared();
        starts = [await firstToken(place.path, folder), await firstToken(place.path, folder)];
      }
      for (const ranks of [1, 2]) {
        console.error(`${subject.name}, ${ranks} ${ranks === 1 ? 'rank' : 'ranks'} ...`);
        const folder = prepared();
        measured.push(await measure(script, subject, ranks, place, folder));
        rmSync(folder, { recursive: true });
      }
    }
    report(measured, empty, starts, values.write);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** `starts`: of `sluice generate`, without and with prepared weights. */
function report(
  measured: readonly Measured[],
  empty: readonly [Resident, Resident],
  starts: readonly number[],
  write: boolean,
): void {
  const rows = [head, head.map(() => '---'), ...measured.map((each) => rowOf(each, empty))];
  const cores = cpus();
  const lines = [
    `${cores[0]?.model ?? 'unknown processor'}, ${cores.length} cores, Node ${process.version}.`,
    '',
    ...rows.map((cells) => `| ${cells.join(' | ')} |`),
    '',
    `An empty process, which has loaded the program's modules and ONNX Runtime and no model, takes ${megabytes(empty[0].all)} MB, ${megabytes(empty[0].anonymous)} held`,
    `by no file; Node that has loaded nothing ${megabytes(empty[1].all)} MB and ${megabytes(empty[1].anonymous)} MB.`,
    ...(starts.length === 0
      ? []
      : [
          '',
          `\`sluice generate\` with the GGUF, from the start of the process to the first token: ${starts.map(seconds).join(' s, with prepared weights ')} s.`,
        ]),
  ];
  console.log(lines.join('\n'));
  if (write) writeSection('memory', lines);
}
