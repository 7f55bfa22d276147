/**
 * Cuts of quantized matrices: which stored blocks a rank takes of a tensor, and their parts. Tensors and ranges enter,
 * bytes leave. Must not know graphs or what the bytes become.
 */
import assert from 'node:assert';
import type { QuantizedBytes, QuantizedTensor } from '../weights/checkpoint.ts';
import { quantizedAt, setQuantized } from '../weights/quantized.ts';
import { type Range, rangeSize } from './shard.ts';

/** The tensor in blocks of at most `largest`, so small that the cut lies between them. */
export function withSmallerBlocks(
  tensor: QuantizedTensor,
  columns: Range,
  largest = Number.POSITIVE_INFINITY,
): QuantizedTensor {
  const between = (column: number, size: number): boolean =>
    column % size === 0 || column === tensor.shape[1];
  let { blockSize } = tensor;
  const fits = (): boolean =>
    blockSize <= largest && between(columns.start, blockSize) && between(columns.end, blockSize);
  while (blockSize > 16 && !fits()) blockSize /= 2;
  if (blockSize === tensor.blockSize || tensor.layout().permutation !== undefined) return tensor;
  const pieces = tensor.blockSize / blockSize;
  const { bits } = tensor;
  const [outputs] = tensor.shape;
  return {
    ...tensor,
    blockSize,
    // Packed values lie in the order of the columns: only what there is one of for each block is repeated.
    read() {
      const { packed, scales, zeros, minima } = tensor.read();
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

export interface ColumnCut {
  /** The stored blocks that the cut takes. */
  readonly blocks: readonly number[];
  /** Stored columns of those blocks that are multiplied. */
  readonly inputs: number;
  /** For each stored column its column of the input, -1 for none; null: as they come. */
  readonly order: readonly number[] | null;
  readonly hasZeros: boolean;
  readonly hasMinima: boolean;
}

export function planCut(tensor: QuantizedTensor, columns: Range): ColumnCut {
  const { blockSize } = tensor;
  const { zeros, minima, permutation } = tensor.layout();
  const facts = { hasZeros: zeros, hasMinima: minima };
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
let lastRead: { readonly tensor: QuantizedTensor; readonly bytes: QuantizedBytes } | undefined;

export function readOnce(tensor: QuantizedTensor): QuantizedBytes {
  if (lastRead?.tensor === tensor) return lastRead.bytes;
  forgetRead();
  lastRead = { tensor, bytes: tensor.read() };
  return lastRead.bytes;
}

/**
 * Frees what the last read tensor took: to be called when no more parts are wanted. At once, not when the collector finds
 * it: loading must not need much more memory than running.
 */
export function forgetRead(): void {
  if (lastRead === undefined) return;
  const { packed, scales, zeros, minima } = lastRead.bytes;
  lastRead = undefined;
  for (const part of [packed, scales, zeros, minima]) {
    if (part?.buffer instanceof ArrayBuffer && !part.buffer.detached) part.buffer.transfer(0);
  }
}

/** Stored blocks in a row: with a permutation there may be more than the matrix has columns for. */
function storedBlocks(length: number, tensor: QuantizedTensor): number {
  return length / tensor.shape[0];
}

export function cutBytes(
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

export function cutFloats(
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

export function cutZeros(
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
