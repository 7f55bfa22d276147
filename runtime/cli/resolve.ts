/**
 * `sluice resolve`: what a branch or tag of the hub, or a folder, stands for now: a commit or a digest, and what the
 * checkpoint is, as one line of JSON. The operator runs it before it makes pods.
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { loadConfig, type RuntimeConfig, type RuntimeOptionName, runtimeOptions } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { parseModel } from '../models/registry.ts';
import { HubClient } from '../weights/hub/client.ts';
import { isGguf, openCheckpoint } from '../weights/open.ts';
import { type Command, commandHelp } from './help.ts';
import { locateHeaders } from './locate-headers.ts';
import { isRepository } from './locate-model.ts';
import { useNetworkSettings } from './network.ts';
import { modelFirst } from './positional.ts';

const own: readonly RuntimeOptionName[] = ['huggingfaceRevision', 'weightPath'];
const others = (Object.keys(runtimeOptions) as RuntimeOptionName[]).filter(
  (name) => name !== 'modelPath' && !own.includes(name),
);
const resultOptions = {
  resultFile: {
    group: 'Answer',
    env: null,
    flag: 'result-file',
    kind: 'string',
    schema: z.string().min(1).max(4096),
    description: 'A file that the answer is written to as well.',
    form: 'a path',
    example: '/dev/termination-log',
    defaultText: 'only standard output',
  },
} as const;

function resolveHelp(): string {
  return commandHelp({
    usage: 'sluice resolve <folder | org/name> [options]',
    about: [
      'Prints, as one line of JSON, the commit that a branch or tag names now (of a folder: a digest of its configuration and of the names and sizes of its weights), and what the checkpoint is. Of a model on the hub only the headers are downloaded.',
    ],
    options: {
      ...Object.fromEntries(own.map((name) => [name, runtimeOptions[name]])),
      ...resultOptions,
    },
    examples: ['sluice resolve Qwen/Qwen3-0.6B --huggingface-revision main', 'sluice resolve /models/llama'],
  });
}

async function resolve(argv: readonly string[]): Promise<void> {
  const given = modelFirst('resolve', argv, 'a folder or org/name', 'Qwen/Qwen3-0.6B');
  const config = loadConfig({ argv: given, env: process.env }, resultOptions, others);
  const model = config.modelPath!;
  const onHub = isRepository(model);
  const commit = onHub ? await commitOf(config) : digestOf(model);
  const located = await locateHeaders(onHub ? { ...config, huggingfaceRevision: commit } : config, {
    onProgress: () => {},
    onWarning: (message) => void process.stderr.write(`warning: ${message}\n`),
  });
  try {
    const checkpoint = openCheckpoint(located.path, located);
    const { spec } = parseModel(checkpoint);
    const { architecture, hidden, heads, kvHeads, headDim, intermediate, layers, vocabulary } = spec;
    const line = JSON.stringify({
      commit,
      architecture,
      ...{ hidden, heads, kvHeads, headDim, intermediate, layers, vocabulary },
      quantization: checkpoint.encoding,
      bytes: checkpoint.weightBytes,
    });
    if (config.resultFile !== undefined) writeFileSync(config.resultFile, line);
    process.stdout.write(`${line}\n`);
  } finally {
    located.dispose();
  }
}

async function commitOf({ modelPath, huggingfaceRevision = 'main', hub }: RuntimeConfig): Promise<string> {
  useNetworkSettings(hub.network);
  return (await new HubClient(hub).revision(modelPath!, huggingfaceRevision)).commit;
}

/** Changes when the checkpoint in a folder is exchanged; the weights' bytes themselves are not read. */
function digestOf(place: string): string {
  const hash = createHash('sha256');
  try {
    const folder = statSync(place).isDirectory();
    const names = folder ? readdirSync(place).sort() : [path.basename(place)];
    for (const name of names) {
      const file = folder ? path.join(place, name) : place;
      if (/^(config|quantize_config|model\.safetensors\.index)\.json$/.test(name))
        hash.update(`${name}\n`).update(readFileSync(file));
      else if (name.endsWith('.safetensors') || isGguf(name)) hash.update(`${name} ${statSync(file).size}\n`);
    }
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException;
    throw new SluiceError(
      'checkpoint_invalid',
      `${place}: cannot be read (${code}): a checkpoint is a folder with config.json, tokenizer.json and safetensors, or a GGUF file, for example /models/llama`,
      { cause },
    );
  }
  return `sha256:${hash.digest('hex')}`;
}

export const resolveCommand: Command = { help: resolveHelp, run: resolve };
