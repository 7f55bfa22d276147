/**
 * Working with QuantizedBytes: unpacking, the reference dequantisation, and the cut of input columns that a rank takes.
 * Pure; must not know where the bytes came from.
 */
import type { QuantizedBytes } from './checkpoint.ts';

export interface QuantizedShape {
  readonly outputs: number;
  /** Stored columns; with a permutation that may exceed the matrix's inputs, by padding. */
  readonly inputs: number;
  readonly bits: 4 | 8;
  readonly blockSize: number;
}

/** Blocks along the input dimension. */
export const blocksOf = (shape: QuantizedShape): number => Math.ceil(shape.inputs / shape.blockSize);

/** Bytes of one row of packed weights: whole blocks. */
export const rowBytes = (shape: QuantizedShape): number =>
  (blocksOf(shape) * shape.blockSize * shape.bits) / 8;

/** Bytes of one row of packed zero points. */
export const zeroRowBytes = (shape: QuantizedShape): number => Math.ceil((blocksOf(shape) * shape.bits) / 8);

/** Quantized value `index` of a row that starts at byte `start`. */
export function quantizedAt(packed: Uint8Array, start: number, index: number, bits: 4 | 8): number {
  if (bits === 8) return packed[start + index]!;
  const byte = packed[start + (index >> 1)]!;
  return index & 1 ? byte >> 4 : byte & 15;
}

export function setQuantized(
  packed: Uint8Array,
  start: number,
  index: number,
  bits: 4 | 8,
  value: number,
): void {
  if (bits === 8) packed[start + index] = value;
  else packed[start + (index >> 1)]! |= index & 1 ? value << 4 : value;
}

/**
 * The plain reference: [outputs, inputs] float32, `inputs` being the matrix's own (permutation undone).
 * Large; for tests and for formats without a block size that a kernel takes.
 */
export function dequantize(
  bytes: QuantizedBytes,
  shape: QuantizedShape,
  inputs = shape.inputs,
): Float32Array {
  const { outputs, bits, blockSize } = shape;
  const blocks = blocksOf(shape);
  const dense = new Float32Array(outputs * inputs);
  for (let n = 0; n < outputs; n++) {
    for (let k = 0; k < shape.inputs; k++) {
      const column = bytes.permutation ? bytes.permutation[k]! : k;
      if (column < 0) continue;
      const block = Math.floor(k / blockSize);
      const at = n * blocks + block;
      const zero = bytes.zeros
        ? quantizedAt(bytes.zeros, n * zeroRowBytes(shape), block, bits)
        : 1 << (bits - 1);
      const q = quantizedAt(bytes.packed, n * rowBytes(shape), k, bits);
      dense[n * inputs + column] = (q - zero) * bytes.scales[at]! + (bytes.minima ? bytes.minima[at]! : 0);
    }
  }
  return dense;
}
