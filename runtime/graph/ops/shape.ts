/** Ops that move elements and compute nothing: gather, slice, split, reshape, concat. */
import assert from 'node:assert';
import type { GraphBuilder } from '../builder.ts';
import type { Dimension, Op, Value } from '../graph.ts';
import { columns } from '../graph.ts';

const gatherOp: Op<Record<never, never>> = {
  name: 'gather',
  infer([table, indices]) {
    assert(indices!.dtype === 'int32' || indices!.dtype === 'int64', `indices are ${indices!.dtype}`);
    return [{ dtype: table!.dtype, shape: [...indices!.shape, ...table!.shape.slice(1)] }];
  },
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node('Gather', [inputs[0]!.name, inputs[1]!.name], [outputs[0]!.name], { axis: 0 }),
};

/** Rows of a table: an embedding, or a choice of rows. */
export function gather(builder: GraphBuilder, name: string, table: Value, indices: Value): Value {
  return builder.apply(gatherOp, name, [table, indices], {});
}

interface GatherQuantizedAttributes {
  readonly bits: 4 | 8;
  readonly blockSize: number;
}

const gatherQuantizedOp: Op<GatherQuantizedAttributes> = {
  name: 'gatherQuantized',
  infer([packed, scales, zeros, indices], { bits, blockSize }) {
    const [rows, blocks] = scales!.shape as readonly number[];
    assert.deepEqual(packed!.shape, [rows, (blocks! * blockSize * bits) / 8], 'the packed rows');
    if (zeros) assert.deepEqual(zeros.shape, [rows, Math.ceil((blocks! * bits) / 8)], 'the zero points');
    return [{ dtype: scales!.dtype, shape: [...indices!.shape, blocks! * blockSize] }];
  },
  emit({ inputs, outputs, attributes }, onnx) {
    const [packed, scales, zeros, indices] = inputs;
    onnx.node(
      'GatherBlockQuantized',
      [packed!.name, indices!.name, scales!.name, ...(zeros ? [zeros.name] : [])],
      [outputs[0]!.name],
      { gather_axis: 0, quantize_axis: 1, bits: attributes.bits, block_size: attributes.blockSize },
      'com.microsoft',
    );
  },
};

/**
 * Rows of a table in blocks, as float32: packed [rows, blocks * blockSize * bits / 8], scales [rows, blocks], zeros
 * [rows, ceil(blocks * bits / 8)] or null for 2^(bits - 1) everywhere.
 */
export function gatherQuantized(
  builder: GraphBuilder,
  name: string,
  table: { readonly packed: Value; readonly scales: Value; readonly zeros: Value | null },
  indices: Value,
  attributes: GatherQuantizedAttributes,
): Value {
  const inputs = [table.packed, table.scales, table.zeros, indices];
  return builder.apply(gatherQuantizedOp, name, inputs, attributes);
}

const addToBlocksOp: Op<Record<never, never>> = {
  name: 'addToBlocks',
  infer([value, addends]) {
    assert(
      columns(value!) % columns(addends!) === 0,
      `[${addends!.shape}] to the blocks of [${value!.shape}]`,
    );
    return [value!];
  },
  emit({ inputs, outputs }, onnx) {
    const [value, addends] = inputs;
    const output = outputs[0]!.name;
    const width = columns(value!.type);
    const blocks = columns(addends!.type);
    // 0 keeps the dimension.
    onnx.node('Reshape', [value!.name, onnx.ints([0, blocks, width / blocks])], [`${output}.blocks`]);
    onnx.node('Unsqueeze', [addends!.name, onnx.ints([2])], [`${output}.addends`]);
    onnx.node('Add', [`${output}.blocks`, `${output}.addends`], [`${output}.sum`]);
    onnx.node('Reshape', [`${output}.sum`, onnx.ints([0, width])], [output]);
  },
};

/** value [rows, blocks * size] with addends [rows, blocks], each added to its block. */
export function addToBlocks(builder: GraphBuilder, name: string, value: Value, addends: Value): Value {
  return builder.apply(addToBlocksOp, name, [value, addends], {});
}

const sliceOp: Op<{ start: number; end: number }> = {
  name: 'slice',
  infer([input], { start, end }) {
    const width = columns(input!);
    assert(0 <= start && start <= end && end <= width, `columns ${start} to ${end} of ${width}`);
    return [{ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), end - start] }];
  },
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'Slice',
      [inputs[0]!.name, onnx.ints([attributes.start]), onnx.ints([attributes.end]), onnx.ints([-1])],
      [outputs[0]!.name],
    ),
};

/** Columns start to end (exclusive) of the last dimension. */
export function slice(builder: GraphBuilder, name: string, value: Value, start: number, end: number): Value {
  return builder.apply(sliceOp, name, [value], { start, end });
}

export const splitOp: Op<{ sizes: readonly number[] }> = {
  name: 'split',
  infer([input], { sizes }) {
    const width = columns(input!);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    assert(total === width, `sizes [${sizes}] of ${width} columns`);
    return sizes.map((size) => ({ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), size] }));
  },
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'Split',
      [inputs[0]!.name, onnx.ints(attributes.sizes)],
      outputs.map((output) => output.name),
      { axis: -1 },
    ),
};

/** Cuts the last dimension into pieces. */
export function split(
  builder: GraphBuilder,
  name: string,
  value: Value,
  sizes: readonly number[],
): readonly Value[] {
  return builder.node(splitOp, name, [value], { sizes });
}

const reshapeOp: Op<{ shape: readonly Dimension[] }> = {
  name: 'reshape',
  infer: ([input], { shape }) => [{ dtype: input!.dtype, shape }],
  emit({ inputs, outputs, attributes }, onnx) {
    const sizes = attributes.shape.map((size) => (typeof size === 'number' ? size : -1));
    assert(sizes.filter((size) => size === -1).length <= 1, `[${attributes.shape}] is ambiguous`);
    onnx.node('Reshape', [inputs[0]!.name, onnx.ints(sizes)], [outputs[0]!.name]);
  },
};

/** At most one dimension may be symbolic. */
export function reshape(
  builder: GraphBuilder,
  name: string,
  value: Value,
  shape: readonly Dimension[],
): Value {
  return builder.apply(reshapeOp, name, [value], { shape });
}

const concatOp: Op<Record<never, never>> = {
  name: 'concat',
  infer(inputs) {
    const width = inputs.reduce((sum, input) => sum + columns(input!), 0);
    return [{ dtype: inputs[0]!.dtype, shape: [...inputs[0]!.shape.slice(0, -1), width] }];
  },
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node(
      'Concat',
      inputs.map((input) => input!.name),
      [outputs[0]!.name],
      { axis: -1 },
    ),
};

/** Joins along the last dimension. */
export function concat(builder: GraphBuilder, name: string, values: readonly Value[]): Value {
  return builder.apply(concatOp, name, values, {});
}

const selectColumnsOp: Op<{ padded: boolean }> = {
  name: 'selectColumns',
  infer([input, order]) {
    return [{ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), columns(order!)] }];
  },
  emit({ inputs, outputs, attributes }, onnx) {
    const [value, order] = [inputs[0]!.name, inputs[1]!.name];
    const output = outputs[0]!.name;
    if (attributes.padded) onnx.node('Pad', [value, onnx.ints([0, 0, 0, 1])], [`${output}.padded`]);
    onnx.node('Gather', [attributes.padded ? `${output}.padded` : value, order], [output], { axis: 1 });
  },
};

/** Columns of [rows, columns] in another order; -1 stands for a column of zeros. */
export function selectColumns(
  builder: GraphBuilder,
  name: string,
  value: Value,
  order: readonly number[],
): Value {
  const zeros = columns(value.type);
  const indices = builder.constant(
    `${name}.order`,
    'int32',
    [order.length],
    Int32Array.from(order, (column) => (column < 0 ? zeros : column)),
  );
  return builder.apply(selectColumnsOp, name, [value, indices], { padded: order.includes(-1) });
}
