/** Rows of dense tensors as float32, read from their file without the rest where they lie in one. */
import type { DType } from '../dtype.ts';
import { dtypeBytes } from '../dtype.ts';
import type { DenseTensor } from './checkpoint.ts';
import { bfloat16ToFloat32, float16ToFloat32 } from './half.ts';
import { readRange } from './safetensors.ts';

/** Rows start to end (exclusive) as bytes of the tensor. */
export function rowsSpan(tensor: DenseTensor, start: number, end: number): { offset: number; bytes: number } {
  const rowBytes = tensor.shape.slice(1).reduce((product, size) => product * size, dtypeBytes[tensor.dtype]);
  return { offset: start * rowBytes, bytes: (end - start) * rowBytes };
}

/** Rows start to end (exclusive); the tensor is float32, float16 or bfloat16. */
export function readRows(tensor: DenseTensor, start: number, end: number): Float32Array {
  const span = rowsSpan(tensor, start, end);
  const bytes =
    tensor.location === undefined
      ? tensor.read().subarray(span.offset, span.offset + span.bytes)
      : readRange(tensor.location.file, tensor.location.offset + span.offset, span.bytes);
  return toFloat32(bytes, tensor.dtype);
}

function toFloat32(bytes: Uint8Array, dtype: DType): Float32Array {
  // A typed array needs its elements aligned within the buffer.
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const { buffer, byteOffset, byteLength } = aligned;
  if (dtype === 'float32') return new Float32Array(buffer, byteOffset, byteLength / 4);
  const halves = new Uint16Array(buffer, byteOffset, byteLength / 2);
  return dtype === 'float16' ? float16ToFloat32(halves) : bfloat16ToFloat32(halves);
}
