/**
 * Products with quantized weights, cut to the rank's rows and columns, and rows of quantized tables. A quantized tensor
 * enters, the value of the product or the rows leave. Must not know formats: they are all one form by now.
 */
import type { GraphBuilder } from '../graph/builder.ts';
import type { InitializerSource, Value } from '../graph/graph.ts';
import { add } from '../graph/ops/elementwise.ts';
import { blockSums, linear, quantizedLinear } from '../graph/ops/linear.ts';
import { addToBlocks, gather, gatherQuantized, selectColumns } from '../graph/ops/shape.ts';
import type { QuantizedBytes, QuantizedTensor } from '../weights/checkpoint.ts';
import { setQuantized } from '../weights/quantized.ts';
import {
  type ColumnCut,
  cutBytes,
  cutFloats,
  cutZeros,
  planCut,
  readOnce,
  withSmallerBlocks,
} from './quantized-cut.ts';
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
  if (bits === 8 && accuracyLevel === 0) {
    // There is no float32 kernel for 8 bits (ORT would widen the whole matrix at each product); two for 4 bits are exact.
    const half = (part: 'high' | 'low'): Value =>
      quantizedProjection(builder, `${name}.${part}`, x, {
        ...projection,
        tensor: nibbles(tensor, part),
        weight: `${weight}.${part}`,
        bias: part === 'high' ? bias : null,
      });
    return add(builder, name, half('high'), half('low'));
  }
  const outputs = rangeSize(rows);
  const cut = planCut(tensor, columns);
  const { packed, scales, zeros, minima } = cutInitializers(builder, weight, tensor, rows, cut);
  const input = cut.order === null ? x : selectColumns(builder, `${name}.ordered`, x, cut.order);
  const product = quantizedLinear(builder, name, input, { packed, scales, zeros }, bias, {
    outputs,
    inputs: cut.inputs,
    bits,
    blockSize,
    accuracyLevel,
  });
  if (minima === null) return product;
  const sums = blockSums(builder, `${name}.sums`, input, blockSize);
  return linear(builder, `${name}.affine`, sums, minima, product);
}

/**
 * Rows of a quantized table [outputs, inputs] for ids [tokens]: [tokens, inputs] float32, dequantised as they are looked
 * up. A projection with the whole table, named alike, has the same initializers.
 */
export function quantizedRows(
  builder: GraphBuilder,
  name: string,
  ids: Value,
  { tensor, weight }: Pick<QuantizedProjection, 'tensor' | 'weight'>,
): Value {
  const [outputs, inputs] = tensor.shape;
  const cut = planCut(tensor, { start: 0, end: inputs });
  const rows = { start: 0, end: outputs };
  const { packed, scales, zeros, minima } = cutInitializers(builder, weight, tensor, rows, cut, true);
  const { bits, blockSize } = tensor;
  const found = gatherQuantized(builder, `${name}.scaled`, { packed, scales, zeros }, ids, {
    bits,
    blockSize,
  });
  if (minima === null) return found;
  return addToBlocks(builder, name, found, gather(builder, `${name}.minima`, minima, ids));
}

/** Whether `quantizedRows` can: rows must be whole blocks in their own order. */
export function hasQuantizedRows(tensor: QuantizedTensor): boolean {
  return tensor.shape[1] % tensor.blockSize === 0 && tensor.layout().permutation === undefined;
}

interface CutInitializers {
  /** [outputs, blocks, blockSize * bits / 8]; flat: [outputs, blocks * blockSize * bits / 8]. */
  readonly packed: Value;
  /** [outputs, blocks]. */
  readonly scales: Value;
  /** [outputs, ceil(blocks * bits / 8)]. */
  readonly zeros: Value | null;
  /** [outputs, blocks]. */
  readonly minima: Value | null;
}

/** Bytes of a piece of an initializer, about. */
const chunkBytes = 8 * 1024 * 1024;

function cutInitializers(
  builder: GraphBuilder,
  weight: string,
  tensor: QuantizedTensor,
  rows: Range,
  cut: ColumnCut,
  flat = false,
): CutInitializers {
  const { bits, blockSize } = tensor;
  const outputs = rangeSize(rows);
  const blocks = cut.blocks.length;
  const initializer = (
    name: string,
    dtype: 'uint8' | 'float32',
    shape: readonly number[],
    part: (bytes: QuantizedBytes, range: Range) => Uint8Array | Float32Array,
  ): Value => {
    const rowBytes = shape.reduce((product, size) => product * size, dtype === 'uint8' ? 1 : 4) / outputs;
    const step = Math.max(1, Math.floor(chunkBytes / rowBytes));
    const read = (range: Range): Uint8Array => {
      const { buffer, byteOffset, byteLength } = part(readOnce(tensor), range);
      return new Uint8Array(buffer, byteOffset, byteLength);
    };
    const source: InitializerSource = {
      read: () => read(rows),
      costly: true,
      shared: flat,
      *chunks() {
        for (let start = rows.start; start < rows.end; start += step) {
          yield read({ start, end: Math.min(rows.end, start + step) });
        }
      },
    };
    return builder.initializer(`${weight}.${name}`, dtype, [outputs, ...shape.slice(1)], source);
  };
  const blockBytes = (blockSize * bits) / 8;
  const packedShape = flat ? [outputs, blocks * blockBytes] : [outputs, blocks, blockBytes];
  return {
    packed: initializer('packed', 'uint8', packedShape, (bytes, range) =>
      cutBytes(bytes.packed, tensor, range, cut.blocks),
    ),
    scales: initializer('scales', 'float32', [outputs, blocks], (bytes, range) =>
      cutFloats(bytes.scales, tensor, range, cut.blocks),
    ),
    zeros: cut.hasZeros
      ? initializer('zeros', 'uint8', [outputs, Math.ceil((blocks * bits) / 8)], (bytes, range) =>
          cutZeros(bytes.zeros!, tensor, range, cut.blocks),
        )
      : null,
    minima: cut.hasMinima
      ? initializer('minima', 'float32', [outputs, blocks], (bytes, range) =>
          cutFloats(bytes.minima!, tensor, range, cut.blocks),
        )
      : null,
  };
}

/** 8-bit values as two of 4 bits: (q - zero) s = (high - high zero) 16 s + (low - low zero) s. */
function nibbles(tensor: QuantizedTensor, part: 'high' | 'low'): QuantizedTensor {
  const layout = tensor.layout();
  const high = part === 'high';
  const of = (byte: number): number => (high ? byte >> 4 : byte & 15);
  const [outputs] = tensor.shape;
  return {
    ...tensor,
    bits: 4,
    // The middle of 8 bits, 128, is 8 and 0.
    layout: () => ({ ...layout, zeros: layout.zeros || !high, minima: layout.minima && high }),
    read() {
      const { packed, scales, zeros, minima, permutation } = tensor.read();
      const blocks = scales.length / outputs;
      const zeroBytes = Math.ceil(blocks / 2);
      const narrowZeros = new Uint8Array(outputs * zeroBytes);
      if (zeros !== undefined) {
        for (let row = 0; row < outputs; row++) {
          for (let block = 0; block < blocks; block++) {
            setQuantized(narrowZeros, row * zeroBytes, block, 4, of(zeros[row * blocks + block]!));
          }
        }
      }
      const narrow = new Uint8Array(packed.length / 2);
      for (let i = 0; i < narrow.length; i++) narrow[i] = of(packed[2 * i]!) | (of(packed[2 * i + 1]!) << 4);
      return {
        packed: narrow,
        scales: high ? scales.map((scale) => 16 * scale) : scales,
        ...(zeros !== undefined || !high ? { zeros: narrowZeros } : {}),
        ...(minima !== undefined && high ? { minima } : {}),
        ...(permutation === undefined ? {} : { permutation }),
      };
    },
  };
}
