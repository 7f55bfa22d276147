/**
 * Opens a checkpoint: a folder (config.json, generation_config.json and the weights, in one file, in shards by an index,
 * or in files given beside it) or a GGUF file, which has all of it inside. Reads headers only. Must not know architectures.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../errors.ts';
import type { Checkpoint, DenseTensor } from './checkpoint.ts';
import { openGguf } from './gguf/checkpoint.ts';
import { ggufPartNames } from './gguf/parts.ts';
import type { GgufReadOptions } from './gguf/reader.ts';
import { readJsonObject } from './json.ts';
import { joinPrequantized } from './prequantized.ts';
import { quantizeCheckpoint, type WeightQuantization } from './quantize.ts';
import { readSafetensors, type SafetensorsFile } from './safetensors.ts';

export interface OpenOptions extends GgufReadOptions {
  /** Safetensors files, or a GGUF file, that are read instead of the checkpoint's own weights. */
  readonly weightPaths?: readonly string[];
  /** How plain weights are quantized when they are read; absent: they are not. */
  readonly quantization?: WeightQuantization;
}

const singleFile = 'model.safetensors';
const indexFile = 'model.safetensors.index.json';

export const isGguf = (file: string): boolean => file.toLowerCase().endsWith('.gguf');

/**
 * `place` is a folder or a GGUF file. Configuration comes from there, also when the weights come from elsewhere; a folder
 * without config.json whose weights are a GGUF has it from that file.
 * Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`: one line that names the file at fault.
 */
export function openCheckpoint(place: string, options: OpenOptions = {}): Checkpoint {
  const stored = openStored(place, options);
  return options.quantization === undefined ? stored : quantizeCheckpoint(stored, options.quantization);
}

function openStored(place: string, options: OpenOptions): Checkpoint {
  const weightPaths = options.weightPaths ?? [];
  if (weightPaths.length === 0 && isGguf(place) && !isFolder(place)) return openGguf(place, options);
  const own = isFolder(place) ? readFolder(place) : readGgufPlace(place, options);
  const gguf = weightPaths.length > 0 ? givenGguf(weightPaths) : own.gguf;
  if (gguf !== undefined) {
    const opened = openGguf(gguf, options);
    // config.json may be that of the checkpoint before it was quantized in another way: what GGUF stores counts.
    return own.config === undefined ? opened : { ...opened, ...own.files, config: own.config };
  }
  if (own.config === undefined) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${path.join(place, 'config.json')} is missing: a checkpoint is a folder with config.json, tokenizer.json and safetensors, or a GGUF file`,
    );
  }
  const files = (weightPaths.length > 0 ? [...weightPaths] : weightFiles(place)).map(readSafetensors);
  const tensors = mergeTensors(files);
  if (weightPaths.length === 0) checkIndex(place, tensors);
  const quantized = joinPrequantized(place, own.config, own.quantizeConfig, tensors);
  return {
    path: place,
    config: own.config,
    generationConfig: {},
    ...own.files,
    tensors: quantized?.tensors ?? tensors,
    encoding: quantized?.encoding ?? denseEncoding(tensors),
    weightBytes: files.reduce((bytes, file) => bytes + file.dataBytes, 0),
    identity: createHash('sha256')
      .update(JSON.stringify(files.map((file) => [file.file, file.identity])))
      .digest('hex'),
  };
}

/** What a place says of its checkpoint, the weights aside. */
interface Description {
  readonly config?: Checkpoint['config'];
  readonly quantizeConfig?: Readonly<Record<string, unknown>>;
  readonly files?: Pick<Checkpoint, 'generationConfig'> & Partial<Pick<Checkpoint, 'metadata'>>;
  /** The GGUF that holds a folder's weights. */
  readonly gguf?: string;
}

function readFolder(folder: string): Description {
  const config = readJsonObject(path.join(folder, 'config.json'));
  const generationConfig = readJsonObject(path.join(folder, 'generation_config.json'));
  const quantizeConfig = readJsonObject(path.join(folder, 'quantize_config.json'));
  const gguf = onlyGguf(folder);
  return {
    ...(config === undefined ? {} : { config }),
    ...(quantizeConfig === undefined ? {} : { quantizeConfig }),
    ...(generationConfig === undefined ? {} : { files: { generationConfig } }),
    ...(gguf === undefined ? {} : { gguf }),
  };
}

function readGgufPlace(file: string, options: GgufReadOptions): Description {
  const { config, generationConfig, metadata } = openGguf(file, options);
  return { config, files: { generationConfig, metadata } };
}

function isFolder(place: string): boolean {
  let folder = false;
  try {
    folder = statSync(place).isDirectory();
  } catch (cause) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${place} is missing: the form expected is a checkpoint's folder or a GGUF file, for example /models/llama`,
      { cause },
    );
  }
  if (!folder && !isGguf(place))
    throw new SluiceError('checkpoint_invalid', `${place} is not a folder and not a GGUF file`);
  return folder;
}

/** The GGUF among the files given, or undefined where they are safetensors. */
function givenGguf(weightPaths: readonly string[]): string | undefined {
  const first = weightPaths.find(isGguf);
  if (first === undefined) return undefined;
  const parts = ggufPartNames(first).map((part) => path.resolve(part));
  const stranger = weightPaths.find((file) => !parts.includes(path.resolve(file)));
  if (stranger !== undefined) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${stranger} and ${first} cannot both be the weights: one GGUF file is expected (any part names a split one), or safetensors files`,
    );
  }
  return first;
}

/** The GGUF of a folder that has no safetensors: one file, or the parts of one. */
function onlyGguf(folder: string): string | undefined {
  const names = readdirSync(folder);
  if (names.some((name) => name.endsWith('.safetensors') || name === indexFile)) return undefined;
  const found = names.filter(isGguf).sort();
  if (found.length === 0) return undefined;
  const parts = ggufPartNames(path.join(folder, found[0]!)).map((part) => path.basename(part));
  if (found.some((name) => !parts.includes(name))) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder} has several GGUF models (${found.slice(0, 4).join(', ')}): name the one to use, for example --weight-path ${path.join(folder, found[0]!)}`,
    );
  }
  return path.join(folder, found[0]!);
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
