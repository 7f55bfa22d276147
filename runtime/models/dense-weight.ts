/**
 * Initializers from dense tensors: the rank's rows and columns as float32. Where float32 rows lie together in a file
 * the source says so, and nothing is read; otherwise the bytes are made when asked. Pure but for reading files.
 */
import type { DType } from '../dtype.ts';
import { dtypeBytes } from '../dtype.ts';
import type { InitializerSource } from '../graph/graph.ts';
import type { DenseTensor, StoredTensor } from '../weights/checkpoint.ts';
import { readRows, rowsSpan } from '../weights/dense.ts';
import { dequantize } from '../weights/quantized.ts';
import { type Range, rangeSize } from './shard.ts';

/** Bytes of a piece of a matrix, about: what converting a matrix of any size needs in memory. */
const chunkBytes = 8 * 1024 * 1024;

/** A matrix's rows and columns as float32. */
export function cutSource(tensor: DenseTensor, rows: Range, columns: Range): InitializerSource {
  const width = tensor.shape[1]!;
  const whole = columns.start === 0 && columns.end === width;
  const location = whole && tensor.dtype === 'float32' ? rowsLocation(tensor, rows) : undefined;
  const part = (range: Range): Uint8Array => {
    const values = readRows(tensor, range.start, range.end);
    return bytesOf(whole ? values : cutColumns(values, width, columns));
  };
  return {
    ...(location === undefined ? {} : { location }),
    read: () => part(rows),
    *chunks() {
      // Without a place in a file every piece would read the whole tensor.
      const step =
        tensor.location === undefined
          ? Math.max(1, rangeSize(rows))
          : Math.max(1, Math.floor(chunkBytes / (4 * width)));
      for (let start = rows.start; start < rows.end; start += step) {
        yield part({ start, end: Math.min(rows.end, start + step) });
      }
    },
  };
}

function cutColumns(values: Float32Array, width: number, columns: Range): Float32Array {
  const size = rangeSize(columns);
  const rows = values.length / width;
  const cut = new Float32Array(rows * size);
  for (let row = 0; row < rows; row++) {
    const start = row * width + columns.start;
    cut.set(values.subarray(start, start + size), row * size);
  }
  return cut;
}

/** A vector's elements as float32, `plus` added to each. */
export function vectorSource(tensor: DenseTensor, rows: Range, plus: number): InitializerSource {
  return {
    read() {
      const values = readRows(tensor, rows.start, rows.end);
      return bytesOf(plus === 0 ? values : values.map((value) => value + plus));
    },
  };
}

/**
 * A whole matrix in the type it is stored in, so that half-precision tables need not be widened to be looked up in;
 * a quantized one as float32.
 */
export function wholeSource(tensor: StoredTensor): {
  readonly dtype: DType;
  readonly source: InitializerSource;
} {
  if (tensor.kind === 'quantized') {
    const [outputs, inputs] = tensor.shape;
    const { bits, blockSize } = tensor;
    const read = (): Uint8Array => bytesOf(dequantize(tensor.read(), { outputs, inputs, bits, blockSize }));
    return { dtype: 'float32', source: { read } };
  }
  const location = rowsLocation(tensor, { start: 0, end: tensor.shape[0]! });
  return {
    dtype: tensor.dtype,
    source: { ...(location === undefined ? {} : { location }), read: () => tensor.read() },
  };
}

/** Where rows lie in the file, if ORT can use them there: elements must be aligned. */
function rowsLocation(tensor: DenseTensor, rows: Range): InitializerSource['location'] {
  const bytes = dtypeBytes[tensor.dtype];
  if (tensor.location === undefined || tensor.location.offset % bytes !== 0) return undefined;
  const { offset, bytes: size } = rowsSpan(tensor, rows.start, rows.end);
  return { file: tensor.location.file, offset: tensor.location.offset + offset, bytes: size };
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
