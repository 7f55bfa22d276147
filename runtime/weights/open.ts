/**
 * Opens a checkpoint folder: config.json, generation_config.json and the weights, in one file, in shards by an index,
 * or in files given beside it. Reads headers only. Must not know architectures.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../errors.ts';
import type { Checkpoint, DenseTensor } from './checkpoint.ts';
import { readJsonObject } from './json.ts';
import { readSafetensors, type SafetensorsFile } from './safetensors.ts';

export interface OpenOptions {
  /** Safetensors files that are read instead of the folder's own. */
  readonly weightPaths?: readonly string[];
}

const singleFile = 'model.safetensors';
const indexFile = 'model.safetensors.index.json';

/** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`: one line that names the file at fault. */
export function openCheckpoint(folder: string, options: OpenOptions = {}): Checkpoint {
  checkFolder(folder);
  const configFile = path.join(folder, 'config.json');
  const config = readJsonObject(configFile);
  if (config === undefined) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${configFile} is missing: a checkpoint is a folder with config.json, tokenizer.json and safetensors`,
    );
  }
  const generationConfig = readJsonObject(path.join(folder, 'generation_config.json')) ?? {};
  const weightPaths = options.weightPaths ?? [];
  const files = (weightPaths.length > 0 ? [...weightPaths] : weightFiles(folder)).map(readSafetensors);
  const tensors = mergeTensors(files);
  if (weightPaths.length === 0) checkIndex(folder, tensors);
  return {
    path: folder,
    config,
    generationConfig,
    tensors,
    encoding: denseEncoding(tensors),
    weightBytes: files.reduce((bytes, file) => bytes + file.dataBytes, 0),
    identity: createHash('sha256')
      .update(JSON.stringify(files.map((file) => [file.file, file.identity])))
      .digest('hex'),
  };
}

function checkFolder(folder: string): void {
  let isFolder = false;
  try {
    isFolder = statSync(folder).isDirectory();
  } catch (cause) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder} is missing: the form expected is a checkpoint's folder, for example /models/llama`,
      { cause },
    );
  }
  if (!isFolder) throw new SluiceError('checkpoint_invalid', `${folder} is not a folder`);
}

/** The folder's weight files: one, or those that the index names. */
function weightFiles(folder: string): string[] {
  const single = path.join(folder, singleFile);
  if (existsSync(single)) return [single];
  const shards = readIndex(folder);
  if (shards !== undefined) {
    return [...new Set(shards.values())].sort().map((name) => path.join(folder, name));
  }
  const others = readdirSync(folder).filter((name) => /\.(safetensors|bin|pt|pth|gguf)$/.test(name));
  const found = others.length === 0 ? 'no weights' : `only ${others.slice(0, 3).join(', ')}`;
  throw new SluiceError(
    'checkpoint_invalid',
    `${folder} has ${found}: expected ${singleFile}, or ${indexFile} and its shards; --weight-path names other files`,
  );
}

/** Tensor name to shard name, or undefined without an index. */
function readIndex(folder: string): ReadonlyMap<string, string> | undefined {
  const file = path.join(folder, indexFile);
  const index = readJsonObject(file);
  if (index === undefined) return undefined;
  const map = index.weight_map;
  if (typeof map !== 'object' || map === null || Array.isArray(map) || Object.keys(map).length === 0) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${file} has no weight_map: expected an object of tensor names and file names`,
    );
  }
  for (const [tensor, name] of Object.entries(map)) {
    // A shard lies beside its index: a path that leaves the folder would read any file of the machine.
    if (typeof name !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(name)) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${file} places "${tensor.slice(0, 100)}" in ${JSON.stringify(name)?.slice(0, 100)}: expected the name of a safetensors file in the same folder`,
      );
    }
  }
  return new Map(Object.entries(map as Record<string, string>));
}

function checkIndex(folder: string, tensors: ReadonlyMap<string, DenseTensor>): void {
  if (existsSync(path.join(folder, singleFile))) return;
  for (const [tensor, name] of readIndex(folder) ?? []) {
    const found = tensors.get(tensor)?.location?.file;
    if (found === undefined || path.basename(found) !== name) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${path.join(folder, name)} lacks the tensor "${tensor}", which ${indexFile} places there`,
      );
    }
  }
}

function mergeTensors(files: readonly SafetensorsFile[]): Map<string, DenseTensor> {
  const merged = new Map<string, DenseTensor>();
  for (const { file, tensors } of files) {
    for (const [name, tensor] of tensors) {
      const other = merged.get(name)?.location?.file;
      if (other !== undefined) {
        throw new SluiceError('checkpoint_invalid', `${file} and ${other} both have the tensor "${name}"`);
      }
      merged.set(name, tensor);
    }
  }
  return merged;
}

/** The floating type that most bytes have. */
function denseEncoding(tensors: ReadonlyMap<string, DenseTensor>): string {
  const bytes = { float32: 0, bfloat16: 0, float16: 0 };
  for (const { dtype, location } of tensors.values()) {
    if (dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16')
      bytes[dtype] += location?.bytes ?? 0;
  }
  return Object.entries(bytes).sort((left, right) => right[1] - left[1])[0]![0];
}
