/**
 * The second form of a matrix, for steps of many rows: int8 with one scale for each output, cut to the rank's rows and
 * columns. A stored tensor enters, the value of the product leaves. Must not know when the form is used.
 */
import type { GraphBuilder } from '../graph/builder.ts';
import type { Value } from '../graph/graph.ts';
import { type QuantizedRows, rowInt8Linear } from '../graph/ops/row-int8.ts';
import type { DenseTensor, QuantizedTensor, StoredTensor } from '../weights/checkpoint.ts';
import { blocksOf, dequantize, rowBytes, zeroRowBytes } from '../weights/quantized.ts';
import { cutSource } from './dense-weight.ts';
import { type Range, rangeSize } from './shard.ts';

export interface RowInt8Projection {
  readonly tensor: StoredTensor;
  /** Name of the cut, for its initializers. */
  readonly weight: string;
  readonly rows: Range;
  readonly columns: Range;
  readonly bias: Value | null;
  /** Weights are quantized to -limit .. limit: 127, or less where the processor's sums of products would saturate. */
  readonly limit: number;
}

/** x, quantized by rows, times the transpose of the cut, plus the bias. */
export function rowInt8Projection(
  builder: GraphBuilder,
  name: string,
  x: QuantizedRows,
  projection: RowInt8Projection,
): Value {
  const { weight, rows, columns, bias, limit } = projection;
  const [outputs, inputs] = [rangeSize(rows), rangeSize(columns)];
  const made = (): RowInt8Matrix => quantizeOnce(projection);
  const form = `${weight}.int8-${limit}`;
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

/** Outputs at a time: what they take as float32 is small beside the matrix. */
const outputsAtOnce = 512;

function quantize({ tensor, rows, columns, limit }: RowInt8Projection): RowInt8Matrix {
  const [outputs, inputs] = [rangeSize(rows), rangeSize(columns)];
  const values = new Int8Array(outputs * inputs);
  const scales = new Float32Array(outputs);
  const read = tensor.kind === 'dense' ? denseRows(tensor, columns) : dequantizedRows(tensor, columns);
  for (let start = rows.start; start < rows.end; start += outputsAtOnce) {
    const end = Math.min(rows.end, start + outputsAtOnce);
    const { floats, width, offset } = read({ start, end });
    for (let row = start; row < end; row++) {
      const from = (row - start) * width + offset;
      const output = row - rows.start;
      let largest = 0;
      for (let k = 0; k < inputs; k++) largest = Math.max(largest, Math.abs(floats[from + k]!));
      const scale = largest / limit;
      const inverse = scale > 0 ? 1 / scale : 0;
      scales[output] = scale;
      for (let k = 0; k < inputs; k++) {
        // Rounding may go one step too far where the scale was rounded down.
        const value = Math.round(floats[from + k]! * inverse);
        values[k * outputs + output] = Math.max(-limit, Math.min(limit, value));
      }
    }
  }
  return { values, scales };
}

/** Rows of a matrix as float32: the wanted columns start at `offset` of each row of `width`. */
type ReadRows = (range: Range) => {
  readonly floats: Float32Array;
  readonly width: number;
  readonly offset: number;
};

function denseRows(tensor: DenseTensor, columns: Range): ReadRows {
  return (range) => {
    const bytes = cutSource(tensor, range, columns).read();
    const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
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
