/**
 * Products with quantized weights, cut to the rank's rows and columns. A quantized tensor enters, the value of the
 * product leaves. Must not know formats: they are all one form by now.
 */
import assert from 'node:assert';
import type { GraphBuilder } from '../graph/builder.ts';
import type { InitializerSource, Value } from '../graph/graph.ts';
import { add } from '../graph/ops/elementwise.ts';
import { blockSums, linear, quantizedLinear } from '../graph/ops/linear.ts';
import { selectColumns } from '../graph/ops/shape.ts';
import type { QuantizedBytes, QuantizedTensor } from '../weights/checkpoint.ts';
import { quantizedAt, setQuantized } from '../weights/quantized.ts';
import { type Range, rangeSize } from './shard.ts';

export interface QuantizedProjection {
  readonly tensor: QuantizedTensor;
  /** Name of the cut, for its initializers. */
  readonly weight: string;
  readonly rows: Range;
  /** On multiples of 16, but for the end of the matrix; a permuted matrix may be cut anywhere. */
  readonly columns: Range;
  readonly bias: Value | null;
  /** 4: activations quantized to int8 per block; 0: float32. */
  readonly accuracyLevel: 0 | 4;
}

/** x [rows, columns] times the transpose of the cut, plus the bias. */
export function quantizedProjection(
  builder: GraphBuilder,
  name: string,
  x: Value,
  projection: QuantizedProjection,
): Value {
  const { weight, rows, columns, bias, accuracyLevel } = projection;
  const tensor = withSmallerBlocks(projection.tensor, columns);
  const { bits, blockSize } = tensor;
  const outputs = rangeSize(rows);
  const cut = planCut(tensor, columns);
  const blocks = cut.blocks.length;
  const source = (part: (bytes: QuantizedBytes) => ArrayBufferView): InitializerSource => ({
    read() {
      const view = part(readOnce(tensor));
      return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    },
  });
  const packed = builder.initializer(
    `${weight}.packed`,
    'uint8',
    [outputs, blocks, (blockSize * bits) / 8],
    source((bytes) => cutBytes(bytes.packed, tensor, rows, cut.blocks)),
  );
  const scales = builder.initializer(
    `${weight}.scales`,
    'float32',
    [outputs, blocks],
    source((bytes) => cutFloats(bytes.scales, tensor, rows, cut.blocks)),
  );
  const zeros = cut.hasZeros
    ? builder.initializer(
        `${weight}.zeros`,
        'uint8',
        [outputs, Math.ceil((blocks * bits) / 8)],
        source((bytes) => cutZeros(bytes.zeros!, tensor, rows, cut.blocks)),
      )
    : null;
  const input = cut.order === null ? x : selectColumns(builder, `${name}.ordered`, x, cut.order);
  const product = quantizedLinear(builder, name, input, { packed, scales, zeros }, bias, {
    outputs,
    inputs: cut.inputs,
    bits,
    blockSize,
    accuracyLevel,
  });
  if (!cut.hasMinima) return product;
  const minima = builder.initializer(
    `${weight}.minima`,
    'float32',
    [outputs, blocks],
    source((bytes) => cutFloats(bytes.minima!, tensor, rows, cut.blocks)),
  );
  const sums = blockSums(builder, `${name}.sums`, input, blockSize);
  return add(builder, `${name}.affine`, product, linear(builder, `${name}.minima`, sums, minima));
}

/** The tensor in blocks so small that the cut lies between them. */
function withSmallerBlocks(tensor: QuantizedTensor, columns: Range): QuantizedTensor {
  const between = (column: number, size: number): boolean =>
    column % size === 0 || column === tensor.shape[1];
  let { blockSize } = tensor;
  while (blockSize > 16 && !(between(columns.start, blockSize) && between(columns.end, blockSize))) {
    blockSize /= 2;
  }
  if (blockSize === tensor.blockSize || readOnce(tensor).permutation !== undefined) return tensor;
  const pieces = tensor.blockSize / blockSize;
  const { bits } = tensor;
  const [outputs] = tensor.shape;
  return {
    ...tensor,
    blockSize,
    // Packed values lie in the order of the columns: only what there is one of for each block is repeated.
    read() {
      const { packed, scales, zeros, minima } = readOnce(tensor);
      const repeat = (values: Float32Array): Float32Array =>
        Float32Array.from(
          { length: values.length * pieces },
          (_, index) => values[Math.floor(index / pieces)]!,
        );
      const blocks = scales.length / outputs;
      const [rowBytes, wideBytes] = [blocks, blocks * pieces].map((count) => Math.ceil((count * bits) / 8));
      const repeatZeros = (from: Uint8Array): Uint8Array => {
        const out = new Uint8Array(outputs * wideBytes!);
        for (let row = 0; row < outputs; row++) {
          for (let block = 0; block < blocks * pieces; block++) {
            const zero = quantizedAt(from, row * rowBytes!, Math.floor(block / pieces), bits);
            setQuantized(out, row * wideBytes!, block, bits, zero);
          }
        }
        return out;
      };
      return {
        packed,
        scales: repeat(scales),
        ...(zeros === undefined ? {} : { zeros: repeatZeros(zeros) }),
        ...(minima === undefined ? {} : { minima: repeat(minima) }),
      };
    },
  };
}

interface ColumnCut {
  /** The stored blocks that the cut takes. */
  readonly blocks: readonly number[];
  /** Stored columns of those blocks that are multiplied. */
  readonly inputs: number;
  /** For each stored column its column of the input, -1 for none; null: as they come. */
  readonly order: readonly number[] | null;
  readonly hasZeros: boolean;
  readonly hasMinima: boolean;
}

function planCut(tensor: QuantizedTensor, columns: Range): ColumnCut {
  const { blockSize } = tensor;
  const bytes = readOnce(tensor);
  const facts = { hasZeros: bytes.zeros !== undefined, hasMinima: bytes.minima !== undefined };
  const { permutation } = bytes;
  if (permutation === undefined) {
    const { start, end } = columns;
    assert(
      start % blockSize === 0 && (end % blockSize === 0 || end === tensor.shape[1]),
      `columns ${start} to ${end} are not on blocks of ${blockSize}`,
    );
    const first = start / blockSize;
    const blocks = Array.from({ length: Math.ceil(end / blockSize) - first }, (_, index) => first + index);
    return { blocks, inputs: end - start, order: null, ...facts };
  }
  // A permuted block has columns from everywhere: the cut takes it when any is in range, and zeros for the others.
  const inRange = (column: number): boolean => columns.start <= column && column < columns.end;
  const blocks: number[] = [];
  const order: number[] = [];
  for (let block = 0; block * blockSize < permutation.length; block++) {
    const stored = permutation.subarray(block * blockSize, (block + 1) * blockSize);
    if (!stored.some(inRange)) continue;
    blocks.push(block);
    for (let index = 0; index < blockSize; index++) {
      const column = stored[index] ?? -1;
      order.push(inRange(column) ? column - columns.start : -1);
    }
  }
  return { blocks, inputs: order.length, order, ...facts };
}

// The parts of one tensor are asked for one after another: reading it once each is enough.
let lastRead: { tensor: WeakRef<QuantizedTensor>; bytes: WeakRef<QuantizedBytes> } | undefined;

function readOnce(tensor: QuantizedTensor): QuantizedBytes {
  const kept = lastRead?.tensor.deref() === tensor ? lastRead.bytes.deref() : undefined;
  if (kept !== undefined) return kept;
  const bytes = tensor.read();
  lastRead = { tensor: new WeakRef(tensor), bytes: new WeakRef(bytes) };
  return bytes;
}

/** Stored blocks in a row: with a permutation there may be more than the matrix has columns for. */
function storedBlocks(length: number, tensor: QuantizedTensor): number {
  return length / tensor.shape[0];
}

function cutBytes(
  packed: Uint8Array,
  tensor: QuantizedTensor,
  rows: Range,
  blocks: readonly number[],
): Uint8Array {
  const blockBytes = (tensor.blockSize * tensor.bits) / 8;
  const rowBytes = storedBlocks(packed.length, tensor);
  const start = blocks[0]! * blockBytes;
  const size = blocks.length * blockBytes;
  if (size === rowBytes) return packed.slice(rows.start * rowBytes, rows.end * rowBytes);
  const out = new Uint8Array(rangeSize(rows) * size);
  const consecutive = blocks.at(-1)! - blocks[0]! === blocks.length - 1;
  for (let row = 0; row < rangeSize(rows); row++) {
    const from = (rows.start + row) * rowBytes;
    if (consecutive) {
      out.set(packed.subarray(from + start, from + start + size), row * size);
      continue;
    }
    blocks.forEach((block, index) => {
      const at = from + block * blockBytes;
      out.set(packed.subarray(at, at + blockBytes), row * size + index * blockBytes);
    });
  }
  return out;
}

function cutFloats(
  values: Float32Array,
  tensor: QuantizedTensor,
  rows: Range,
  blocks: readonly number[],
): Float32Array {
  const width = storedBlocks(values.length, tensor);
  const out = new Float32Array(rangeSize(rows) * blocks.length);
  for (let row = 0; row < rangeSize(rows); row++) {
    for (let index = 0; index < blocks.length; index++) {
      out[row * blocks.length + index] = values[(rows.start + row) * width + blocks[index]!]!;
    }
  }
  return out;
}

function cutZeros(
  zeros: Uint8Array,
  tensor: QuantizedTensor,
  rows: Range,
  blocks: readonly number[],
): Uint8Array {
  const { bits } = tensor;
  const rowBytes = storedBlocks(zeros.length, tensor);
  const outBytes = Math.ceil((blocks.length * bits) / 8);
  const out = new Uint8Array(rangeSize(rows) * outBytes);
  for (let row = 0; row < rangeSize(rows); row++) {
    for (let index = 0; index < blocks.length; index++) {
      const zero = quantizedAt(zeros, (rows.start + row) * rowBytes, blocks[index]!, bits);
      setQuantized(out, row * outBytes, index, bits, zero);
    }
  }
  return out;
}
