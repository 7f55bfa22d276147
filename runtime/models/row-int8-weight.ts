/**
 * The second form of matrices, for steps of many rows: rotated along their inputs (graph/hadamard.ts), int8 with one
 * scale for each output, cut to the rank's rows and columns; matrices that multiply the same rows stand side by side.
 * Stored tensors enter, the value of the product leaves. Must not know when the form is used.
 */
import assert from 'node:assert';
import type { GraphBuilder } from '../graph/builder.ts';
import type { Value } from '../graph/graph.ts';
import { rotateRow } from '../graph/hadamard.ts';
import { type QuantizedRows, rowInt8Linear } from '../graph/ops/row-int8.ts';
import type { DenseTensor, QuantizedTensor, StoredTensor } from '../weights/checkpoint.ts';
import { blocksOf, dequantize, rowBytes, zeroRowBytes } from '../weights/quantized.ts';
import { cutSource } from './dense-weight.ts';
import { type Range, rangeSize } from './shard.ts';

/** A cut of a stored matrix. */
export interface RowInt8Part {
  readonly tensor: StoredTensor;
  readonly rows: Range;
  readonly columns: Range;
}

export interface RowInt8Projection {
  /** Their outputs follow each other; each has as many columns as the others. */
  readonly parts: readonly RowInt8Part[];
  /** Name of the cuts, for the initializers. */
  readonly weight: string;
  readonly bias: Value | null;
  /** What two neighbouring inputs' weights may add up to; each is at most 127 by itself. */
  readonly pairLimit: number;
}

/** x, quantized by rows, times the transpose of the cuts, plus the bias. */
export function rowInt8Projection(
  builder: GraphBuilder,
  name: string,
  x: QuantizedRows,
  projection: RowInt8Projection,
): Value {
  const { parts, weight, bias, pairLimit } = projection;
  const inputs = rangeSize(parts[0]!.columns);
  const outputs = parts.reduce((sum, { rows }) => sum + rangeSize(rows), 0);
  const made = (): RowInt8Matrix => quantizeOnce(projection);
  const form = `${weight}.rotated-int8-${pairLimit}`;
  const values = builder.initializer(form, 'int8', [inputs, outputs], {
    read: () => new Uint8Array(made().values.buffer.slice(0)),
    costly: true,
  });
  const scales = builder.initializer(`${form}.scales`, 'float32', [outputs], {
    read: () => new Uint8Array(made().scales.buffer.slice(0)),
    costly: true,
  });
  return rowInt8Linear(builder, name, x, { values, scales }, bias);
}

interface RowInt8Matrix {
  /** [inputs, outputs]. */
  readonly values: Int8Array<ArrayBuffer>;
  /** [outputs]. */
  readonly scales: Float32Array<ArrayBuffer>;
}

// Values and scales are asked for one after another: making them once is enough.
let last: { readonly projection: RowInt8Projection; readonly matrix: RowInt8Matrix } | undefined;

function quantizeOnce(projection: RowInt8Projection): RowInt8Matrix {
  if (last?.projection !== projection) last = { projection, matrix: quantize(projection) };
  return last.matrix;
}

/** Frees what the last matrix took: to be called when no more are wanted. */
export function forgetRowInt8(): void {
  last = undefined;
}

/** Outputs at a time: what they take as float32 is small beside the matrix, and a line of the cache holds their values. */
const outputsAtOnce = 64;

function quantize({ parts, pairLimit }: RowInt8Projection): RowInt8Matrix {
  const inputs = rangeSize(parts[0]!.columns);
  const outputs = parts.reduce((sum, { rows }) => sum + rangeSize(rows), 0);
  const values = new Int8Array(outputs * inputs);
  const scales = new Float32Array(outputs);
  const inverses = new Float32Array(outputsAtOnce);
  let output = 0;
  for (const { tensor, rows, columns } of parts) {
    assert.equal(rangeSize(columns), inputs, 'columns of matrices side by side');
    const read = tensor.kind === 'dense' ? denseRows(tensor, columns) : dequantizedRows(tensor, columns);
    for (let start = rows.start; start < rows.end; start += outputsAtOnce) {
      const count = Math.min(rows.end - start, outputsAtOnce);
      const { floats, width, offset } = read({ start, end: start + count });
      for (let row = 0; row < count; row++) {
        const from = row * width + offset;
        rotateRow(floats, from, inputs);
        const scale = scaleOf(floats.subarray(from, from + inputs), pairLimit);
        scales[output + row] = scale;
        inverses[row] = scale > 0 ? 1 / scale : 0;
      }
      for (let k = 0; k < inputs; k++) {
        const to = k * outputs + output;
        for (let row = 0; row < count; row++) {
          values[to + row] = Math.round(floats[row * width + offset + k]! * inverses[row]!);
        }
      }
      output += count;
    }
  }
  return { values, scales };
}

/** The smallest scale with which a column's weights and their neighbours' sums, rounded, keep the limits. */
function scaleOf(column: Float32Array, pairLimit: number): number {
  let [largest, largestPair] = [0, 0];
  for (let k = 0; k < column.length; k += 2) {
    const [one, other] = [column[k]!, column[k + 1] ?? 0];
    largest = Math.max(largest, Math.abs(one), Math.abs(other));
    largestPair = Math.max(largestPair, Math.abs(one + other));
  }
  // Rounding both may add one to their sum.
  return Math.max(largest / 127, largestPair / (pairLimit - 1));
}

/** Rows of a matrix as float32: the wanted columns start at `offset` of each row of `width`. */
type ReadRows = (range: Range) => {
  readonly floats: Float32Array;
  readonly width: number;
  readonly offset: number;
};

function denseRows(tensor: DenseTensor, columns: Range): ReadRows {
  return (range) => {
    // Copied: they are rotated in place.
    const { buffer, byteOffset, byteLength } = cutSource(tensor, range, columns).read();
    const floats = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
    return { floats, width: rangeSize(columns), offset: 0 };
  };
}

function dequantizedRows(tensor: QuantizedTensor, columns: Range): ReadRows {
  const [outputs, inputs] = tensor.shape;
  const bytes = tensor.read();
  const { bits, blockSize } = tensor;
  // With a permutation there may be more stored blocks than the matrix has columns for.
  const stored = (bytes.scales.length / outputs) * blockSize;
  const shape = { outputs, inputs: bytes.permutation?.length ?? Math.min(stored, inputs), bits, blockSize };
  const blocks = blocksOf(shape);
  return ({ start, end }) => {
    const rowsOf = <T extends Uint8Array | Float32Array>(part: T, size: number): T =>
      part.subarray(start * size, end * size) as T;
    const { packed, scales, zeros, minima, permutation } = bytes;
    const floats = dequantize(
      {
        packed: rowsOf(packed, rowBytes(shape)),
        scales: rowsOf(scales, blocks),
        ...(zeros === undefined ? {} : { zeros: rowsOf(zeros, zeroRowBytes(shape)) }),
        ...(minima === undefined ? {} : { minima: rowsOf(minima, blocks) }),
        ...(permutation === undefined ? {} : { permutation }),
      },
      { ...shape, outputs: end - start },
      inputs,
    );
    return { floats, width: inputs, offset: columns.start };
  };
}
