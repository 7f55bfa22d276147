/** `sluice inspect`: what a checkpoint is and what it needs, from its headers alone. */
import { totalmem } from 'node:os';
import { loadConfig, type RuntimeOptionName, runtimeOptions } from '../config.ts';
import type { ModelSpec } from '../models/model.ts';
import { parseModel } from '../models/registry.ts';
import { type CheckpointFacts, kvBytesPerToken, maximumRanks, residentBytes } from '../preflight.ts';
import type { Checkpoint, StoredTensor } from '../weights/checkpoint.ts';
import { openCheckpoint } from '../weights/open.ts';
import { type Command, commandHelp } from './help.ts';
import { locateHeaders } from './locate-headers.ts';
import { modelFirst } from './positional.ts';
import { byteText } from './progress.ts';
import { textTable } from './text-table.ts';

const own: readonly RuntimeOptionName[] = ['huggingfaceRevision', 'weightPath'];
const others = (Object.keys(runtimeOptions) as RuntimeOptionName[]).filter(
  (name) => name !== 'modelPath' && !own.includes(name),
);

function inspectHelp(): string {
  return commandHelp({
    usage: 'sluice inspect <folder | file.gguf | org/name> [options]',
    about: [
      'Says what a checkpoint is (architecture, parameters, bytes by type), what a token takes in the KV cache, and on which number of GPUs of which size it fits. Of a model on the hub only the headers are downloaded.',
    ],
    options: Object.fromEntries(own.map((name) => [name, runtimeOptions[name]])),
    examples: [
      'sluice inspect /models/llama',
      'sluice inspect Qwen/Qwen3-0.6B',
      'sluice inspect model-Q4_K_M.gguf',
    ],
  });
}

async function inspect(argv: readonly string[]): Promise<void> {
  const given = modelFirst('inspect', argv, 'a folder, a GGUF file or org/name', '/models/llama');
  const config = loadConfig({ argv: given, env: process.env }, undefined, others);
  const located = await locateHeaders(config, {
    onProgress: () => {},
    onWarning: (message) => void process.stderr.write(`warning: ${message}\n`),
  });
  try {
    const checkpoint = openCheckpoint(located.path, located);
    const { spec } = parseModel(checkpoint);
    process.stdout.write(report(config.modelPath!, checkpoint, spec));
  } finally {
    located.dispose();
  }
}

const number = (value: number): string => value.toLocaleString('en-US');

function report(name: string, checkpoint: Checkpoint, spec: ModelSpec): string {
  const facts: CheckpointFacts = {
    ...spec,
    encoding: checkpoint.encoding,
    weightBytes: checkpoint.weightBytes,
    ...quantizationBlock(checkpoint),
  };
  const parameters = [...checkpoint.tensors.values()].reduce((sum, tensor) => sum + elements(tensor), 0);
  const lines: [string, string][] = [
    ['model', name],
    ['architecture', spec.architecture],
    ['encoding', checkpoint.encoding],
    ['parameters', `${number(parameters)}${spec.tiedEmbeddings ? ' (embeddings are also the head)' : ''}`],
    ['layers', number(spec.layers)],
    ['hidden size', `${number(spec.hidden)}, MLP ${number(spec.intermediate)}`],
    ['heads', `${spec.heads} of ${spec.headDim}, ${spec.kvHeads} for keys and values`],
    ['vocabulary', number(spec.vocabulary)],
    ['longest sequence', `${number(spec.maxLength)} tokens`],
    ['weights', `${number(checkpoint.weightBytes)} bytes (${byteText(checkpoint.weightBytes)})`],
    ['KV cache', `${number(kvBytesPerToken(facts))} bytes a token (float32)`],
    ['most ranks', number(maximumRanks(facts))],
  ];
  const width = Math.max(...lines.map(([label]) => label.length));
  const head = lines.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join('\n');
  return [`${head}\n`, storedTable(checkpoint), memoryTable(facts, spec.maxLength)].join('\n');
}

function elements(tensor: StoredTensor): number {
  return tensor.shape.reduce((product, size) => product * size, 1);
}

function quantizationBlock({ tensors }: Checkpoint): { quantizationBlock?: number } {
  const sizes = [...tensors.values()].flatMap((tensor) =>
    tensor.kind === 'quantized' ? [tensor.blockSize] : [],
  );
  return sizes.length === 0 ? {} : { quantizationBlock: Math.max(...sizes) };
}

/** What is stored how; a quantized tensor's bytes are those of its values and its scales as they are in memory. */
function storedTable({ tensors }: Checkpoint): string {
  const kinds = new Map<string, { count: number; parameters: number; bytes: number }>();
  for (const tensor of tensors.values()) {
    const count = elements(tensor);
    const [kind, bytes] =
      tensor.kind === 'dense'
        ? [tensor.dtype as string, tensor.location?.bytes ?? 0]
        : [
            `${tensor.bits} bits in blocks of ${tensor.blockSize}`,
            Math.ceil((count * tensor.bits) / 8) + Math.ceil(count / tensor.blockSize) * 4,
          ];
    const known = kinds.get(kind) ?? { count: 0, parameters: 0, bytes: 0 };
    kinds.set(kind, {
      count: known.count + 1,
      parameters: known.parameters + count,
      bytes: known.bytes + bytes,
    });
  }
  return textTable(
    ['stored as', 'tensors', 'parameters', 'bytes'],
    [...kinds]
      .sort((a, b) => b[1].bytes - a[1].bytes)
      .map(([kind, { count, parameters, bytes }]) => [
        kind,
        number(count),
        number(parameters),
        number(bytes),
      ]),
  );
}

const gibibyte = 2 ** 30;
/** Memory of GPUs that clusters have, in GiB: T4, A10/L4, A100-40, L40S/A6000, A100-80/H100, H200. */
const gpuSizes = [16, 24, 40, 48, 80, 141];
const gpuCounts = [1, 2, 4, 8];
/** What the runtime and the steps' buffers take, roughly, in bytes on each device. */
const overheadBytes = gibibyte;

/** Weights and the KV cache of one longest sequence (at most 8,192 tokens), cut evenly. */
function memoryTable(facts: CheckpointFacts, maxLength: number): string {
  const tokens = Math.min(maxLength, 8192);
  const kvBytes = kvBytesPerToken(facts) * tokens;
  const hostBytes = residentBytes(facts) + kvBytes + overheadBytes;
  const host = `${byteText(hostBytes)}, ${hostBytes <= totalmem() ? 'fits' : 'does not fit'} in this machine's ${byteText(totalmem())}`;
  const rows = gpuCounts.map((count) => {
    const each = (facts.weightBytes + kvBytes) / count + overheadBytes;
    const size = gpuSizes.find((gib) => each <= gib * gibibyte);
    const possible = count <= maximumRanks(facts);
    const fits = size === undefined ? 'none of these' : `${size} GiB or more`;
    return [
      String(count),
      byteText(facts.weightBytes / count),
      byteText(kvBytes / count),
      possible ? fits : `the model can be cut for ${maximumRanks(facts)} at most`,
    ];
  });
  return [
    `on a CPU, with ${number(tokens)} tokens of KV cache: about ${host}\n`,
    textTable(['GPUs', 'weights each', `${number(tokens)} tokens each`, 'fits on GPUs of'], rows),
  ].join('\n');
}

export const inspectCommand: Command = { help: inspectHelp, run: inspect };
