/**
 * A GGUF file (or all parts of a split one) as a Checkpoint: transformers' names, q and k rows in transformers' order.
 * Throws SluiceError `checkpoint_invalid` for a broken file, `checkpoint_unsupported` for one that we cannot run.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import type { DType } from '../../dtype.ts';
import { SluiceError } from '../../errors.ts';
import type {
  Checkpoint,
  DenseTensor,
  QuantizedBytes,
  QuantizedTensor,
  StoredTensor,
} from '../checkpoint.ts';
import { type BlockFormat, blockFormats, convertBlocks, isAffine } from './blocks.ts';
import { configFromMetadata, generationConfigFromMetadata } from './config.ts';
import { type GgufArchitecture, ggufArchitectures, transformersName } from './names.ts';
import { ggufPartNames } from './parts.ts';
import {
  type GgufHeader,
  type GgufReadOptions,
  type GgufTensor,
  type GgufValue,
  quote,
  readGgufHeader,
} from './reader.ts';

export interface GgufCheckpoint extends Checkpoint {
  /** Of the first part. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
}

const denseTypes: Readonly<Record<number, DType>> = { 0: 'float32', 1: 'float16', 30: 'bfloat16' };
const elementBytes: Readonly<Record<string, number>> = { float32: 4, float16: 2, bfloat16: 2 };
const formatOfType = new Map(blockFormats.map((format) => [format.type, format]));

interface Placed extends GgufTensor {
  readonly file: string;
  readonly bytes: number;
}

/** Bytes of one row (the innermost dimension) as stored; undefined for an unknown type or a row that is no whole blocks. */
function rowBytesOf(tensor: GgufTensor): number | undefined {
  const inner = tensor.shape.at(-1) ?? 1;
  const dense = denseTypes[tensor.type];
  if (dense) return inner * elementBytes[dense]!;
  const format = formatOfType.get(tensor.type);
  return format && inner % format.elements === 0 ? (inner / format.elements) * format.bytes : undefined;
}

function place(header: GgufHeader): Placed[] {
  return header.tensors.map((tensor) => {
    const row = rowBytesOf(tensor);
    if (row === undefined) {
      const format = formatOfType.get(tensor.type);
      throw new SluiceError(
        format ? 'checkpoint_invalid' : 'checkpoint_unsupported',
        format
          ? `${header.file}: tensor ${quote(tensor.name)} has rows of ${tensor.shape.at(-1)}, ${format.name} needs multiples of ${format.elements}`
          : `${header.file}: tensor ${quote(tensor.name)} is stored in ggml type ${tensor.type}; known are f32, f16, bf16, ${blockFormats.map((known) => known.name).join(', ')}`,
      );
    }
    const bytes = tensor.shape.slice(0, -1).reduce((product, size) => product * size, row);
    if (!Number.isSafeInteger(bytes) || tensor.offset + bytes > header.fileBytes) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${header.file}: truncated: tensor ${quote(tensor.name)} ends at byte ${tensor.offset + bytes}, the file at ${header.fileBytes}`,
      );
    }
    return { ...tensor, file: header.file, bytes };
  });
}

function readBytes(tensor: Placed): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(tensor.bytes);
  const descriptor = openSync(tensor.file, 'r');
  try {
    for (let done = 0; done < bytes.length; ) {
      const read = readSync(descriptor, bytes, done, bytes.length - done, tensor.offset + done);
      if (read === 0)
        throw new SluiceError(
          'checkpoint_invalid',
          `${tensor.file}: truncated while it was read, in tensor ${quote(tensor.name)}`,
        );
      done += read;
    }
  } finally {
    closeSync(descriptor);
  }
  return bytes;
}

/** order[transformers' row] = stored row, for rows that llama.cpp interleaved in pairs (i, i + headDim / 2). */
function rotaryOrder(rows: number, headDim: number): Int32Array {
  const order = new Int32Array(rows);
  const half = headDim / 2;
  for (let row = 0; row < rows; row++) {
    const within = row % headDim;
    order[row] = row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
  }
  return order;
}

function reorderRows<T extends Uint8Array | Float32Array>(from: T, order: Int32Array): T {
  const row = from.length / order.length;
  const to = from.slice() as T;
  for (let n = 0; n < order.length; n++)
    to.set(from.subarray(order[n]! * row, (order[n]! + 1) * row) as never, n * row);
  return to;
}

function denseTensor(tensor: Placed, dtype: DType, order: Int32Array | undefined, bias: number): DenseTensor {
  const location = { file: tensor.file, offset: tensor.offset, bytes: tensor.bytes };
  return {
    kind: 'dense',
    dtype,
    shape: tensor.shape,
    ...(order || bias ? {} : { location }),
    read() {
      const bytes = readBytes(tensor);
      if (bias) {
        const values = new Float32Array(bytes.buffer);
        for (let i = 0; i < values.length; i++) values[i]! += bias;
      }
      return order ? reorderRows(bytes, order) : bytes;
    },
  };
}

function quantizedTensor(
  tensor: Placed,
  format: BlockFormat,
  order: Int32Array | undefined,
): QuantizedTensor {
  const [outputs, inputs] = tensor.shape as [number, number];
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits: format.bits,
    blockSize: format.blockSize,
    layout: () => ({
      zeros: false,
      minima: isAffine(format),
      ...(format.factors === undefined ? {} : { factors: format.factors }),
    }),
    read(): QuantizedBytes {
      const bytes = convertBlocks(format, readBytes(tensor), outputs, inputs);
      if (!order) return bytes;
      return {
        packed: reorderRows(bytes.packed, order),
        scales: reorderRows(bytes.scales, order),
        ...(bytes.minima ? { minima: reorderRows(bytes.minima, order) } : {}),
      };
    },
  };
}

/** The values of a small dense float32 tensor. */
function floats(tensor: Placed): number[] {
  if (tensor.type !== 0)
    throw new SluiceError(
      'checkpoint_invalid',
      `${tensor.file}: tensor ${quote(tensor.name)} must be float32`,
    );
  return [...new Float32Array(readBytes(tensor).buffer)];
}

/** What most of the layers' bytes are; embedding and head are often kept finer, and are most of a small model. */
function encodingOf(tensors: readonly Placed[]): string {
  const bytes = new Map<string, number>();
  for (const tensor of tensors) {
    if (!tensor.name.startsWith('blk.')) continue;
    const name = denseTypes[tensor.type] ?? formatOfType.get(tensor.type)!.name;
    bytes.set(name, (bytes.get(name) ?? 0) + tensor.bytes * (denseTypes[tensor.type] ? 1e-6 : 1));
  }
  return [...bytes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? 'float32';
}

export function openGguf(file: string, options: GgufReadOptions = {}): GgufCheckpoint {
  const headers = ggufPartNames(file).map((part) => readGgufHeader(part, options));
  const first = headers[0]!;
  const name = String(first.metadata.get('general.architecture') ?? '');
  const kind: GgufArchitecture | undefined = Object.hasOwn(ggufArchitectures, name)
    ? ggufArchitectures[name]
    : undefined;
  if (!kind) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${file}: the GGUF architecture ${quote(name)} is not known; known are ${Object.keys(ggufArchitectures).join(', ')}`,
    );
  }
  const placed = headers.flatMap(place);
  const byName = new Map(placed.map((tensor) => [tensor.name, tensor]));
  const expected = first.metadata.get('split.tensors.count');
  if (typeof expected === 'number' && expected !== placed.length) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: the parts hold ${placed.length} tensors, split.tensors.count says ${expected}`,
    );
  }

  const factorsOf = (tensor: string): readonly number[] | undefined => {
    const found = byName.get(tensor);
    return found && floats(found);
  };
  const all = factorsOf('rope_freqs.weight');
  const long = factorsOf('rope_factors_long.weight');
  const short = factorsOf('rope_factors_short.weight');
  const embedding = byName.get('token_embd.weight');
  if (embedding?.shape.length !== 2) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: the tensor "token_embd.weight" [vocabulary, hidden] is missing`,
    );
  }
  const biases = new Set(placed.flatMap((tensor) => /^blk\.0\.(\w+)\.bias$/.exec(tensor.name)?.[1] ?? []));
  const config = configFromMetadata(file, first.metadata, kind, {
    tied: !byName.has('output.weight'),
    vocabulary: embedding.shape[0]!,
    rotaryFactors: { ...(all ? { all } : {}), ...(long ? { long } : {}), ...(short ? { short } : {}) },
    biases,
  });

  const headDim = config.head_dim as number;
  const tensors = new Map<string, StoredTensor>();
  for (const tensor of placed) {
    const own = transformersName(kind, tensor.name);
    if (own === undefined) continue;
    const rotary = kind.permutedRotary && /self_attn\.[qk]_proj\.(weight|bias)$/.test(own);
    const rows = tensor.shape[0] ?? 0;
    if (rotary && (headDim < 2 || headDim % 2 !== 0 || rows % headDim !== 0)) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${tensor.file}: tensor ${quote(tensor.name)} has ${rows} rows, no whole heads of ${headDim}`,
      );
    }
    const order = rotary ? rotaryOrder(rows, headDim) : undefined;
    const dense = denseTypes[tensor.type];
    const bias = kind.normsPlusOne && /norm\.weight$/.test(own) ? -1 : 0;
    if (bias && dense !== 'float32') {
      throw new SluiceError(
        'checkpoint_unsupported',
        `${tensor.file}: the norm ${quote(tensor.name)} must be stored as f32`,
      );
    }
    if (!dense && tensor.shape.length !== 2) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${tensor.file}: quantized tensor ${quote(tensor.name)} has ${tensor.shape.length} dimensions, 2 are expected`,
      );
    }
    tensors.set(
      own,
      dense
        ? denseTensor(tensor, dense, order, bias)
        : quantizedTensor(tensor, formatOfType.get(tensor.type)!, order),
    );
  }
  return {
    path: file,
    config,
    generationConfig: generationConfigFromMetadata(first.metadata),
    tensors,
    encoding: encodingOf(placed),
    weightBytes: placed.reduce((sum, tensor) => sum + tensor.bytes, 0),
    identity: createHash('sha256')
      .update(JSON.stringify(headers.map((header) => [header.file, header.identity])))
      .digest('hex'),
    metadata: first.metadata,
  };
}
