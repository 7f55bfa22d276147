/** `sluice models`: what can be served, from the registries themselves; docs/reference/models.md is the same table. */
import { type QuantizationEncoding, quantizationEncodings } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { architectures } from '../models/registry.ts';
import { ggufArchitectures } from '../weights/gguf/names.ts';
import type { Command } from './help.ts';
import { type TableRow, textTable } from './text-table.ts';

const encodingNotes: Readonly<Record<QuantizationEncoding, string>> = {
  float32: 'plain weights, in safetensors or GGUF (F32)',
  bfloat16: 'plain weights, in safetensors or GGUF (BF16); computed with in float32 on a CPU',
  float16: 'plain weights, in safetensors or GGUF (F16); computed with in float32 on a CPU',
  gptq: '4 or 8 bits, any group size, act-order, both forms of zero points',
  awq: '4 bits, gemm layout',
  q4_0: 'GGUF, 4 bits',
  q4_1: 'GGUF, 4 bits with a minimum for each block',
  q5_0: 'GGUF, 5 bits',
  q5_1: 'GGUF, 5 bits with a minimum for each block',
  q8_0: 'GGUF, 8 bits',
  q4_k: 'GGUF, 4 bits (Q4_K_S, Q4_K_M)',
  q5_k: 'GGUF, 5 bits (Q5_K_S, Q5_K_M)',
  q6_k: 'GGUF, 6 bits',
  int8: 'plain weights, quantized to 8 bits in blocks when they are loaded',
  int4: 'plain weights, quantized to 4 bits in blocks when they are loaded; embedding and head to 8',
};

const inGguf = new Set(Object.values(ggufArchitectures).map(({ architecture }) => architecture));

function architectureRows(): TableRow[] {
  return architectures.map(({ name }) => [name, inGguf.has(name) ? 'safetensors, GGUF' : 'safetensors']);
}

function encodingRows(): TableRow[] {
  return quantizationEncodings.map((name) => [name, encodingNotes[name]]);
}

const architectureHead: TableRow = ['architecture', 'weights in'];
const encodingHead: TableRow = ['encoding', 'what it is'];

export function modelsReference(): string {
  const table = (head: TableRow, rows: readonly TableRow[]): string =>
    [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
  return `<!-- Generated from the registries by npm run generate; do not edit. -->
# Models

A checkpoint is a folder (config.json, tokenizer.json and safetensors, in one file or in shards), a GGUF file (split ones
too), or a repository of the hub with either. \`sluice models\` prints these tables, \`sluice inspect\` says what one
checkpoint is and what it needs.

## Architectures

config.json names one under \`architectures\`; a GGUF under \`general.architecture\`.

${table(architectureHead, architectureRows())}

## Encodings

How weights may be stored. It is found by itself; \`--quantization-encoding\` refuses a checkpoint that is stored otherwise.
int8 and int4 are made of plain weights when they are loaded, and kept under \`--cache-dir\`.

${table(encodingHead, encodingRows())}

Refused by name, never misread: GPTQ with \`dynamic\` overrides or 3 bits, compressed-tensors, fp8, mixtures of experts.
`;
}

async function models(argv: readonly string[]): Promise<void> {
  if (argv.length > 0)
    throw new SluiceError('config_invalid', `${JSON.stringify(argv[0])}: models takes no options`);
  const tables = [textTable(architectureHead, architectureRows()), textTable(encodingHead, encodingRows())];
  process.stdout.write(`${tables.join('\n')}`);
}

export const modelsCommand: Command = {
  help: () => 'Usage: sluice models\n\nPrints the architectures and encodings that can be served.\n',
  run: models,
};
