/**
 * Products in int8 for many rows: activations rotated (../hadamard.ts) and quantized row by row, weights [inputs K,
 * outputs N], rotated alike, with one scale a column. What a row gives does not depend on the other rows.
 */
import assert from 'node:assert';
import type { GraphBuilder } from '../builder.ts';
import { columns, type Op, type TensorType, type Value } from '../graph.ts';
import { add, mul } from './elementwise.ts';

/** Rows as unsigned bytes around 128, and what one step of each row stands for. */
export interface QuantizedRows {
  /** uint8 [rows, K]. */
  readonly values: Value;
  /** float32 [rows, 1]. */
  readonly steps: Value;
}

const zeroPoint = 128;

function quantizedTypes(input: TensorType, width: number): TensorType[] {
  const rows = input.shape.slice(0, -1);
  return [
    { dtype: 'uint8', shape: [...rows, width] },
    { dtype: 'float32', shape: [...rows, 1] },
  ];
}

/** [x] to values and steps. */
export const quantizeRowsOp: Op<Record<never, never>> = {
  name: 'quantizeRows',
  infer: ([input]) => quantizedTypes(input!, columns(input!)),
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node(
      'QuantizeRows',
      [inputs[0]!.name],
      outputs.map(({ name }) => name),
      { width: columns(inputs[0]!.type) },
      'sluice',
    ),
};

/** [x, residual, weight] to their sum, and to values and steps of its RMS norm. */
export const quantizeAddNormOp: Op<{ epsilon: number }> = {
  name: 'quantizeAddNorm',
  infer: ([input]) => [input!, ...quantizedTypes(input!, columns(input!))],
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'QuantizeAddNorm',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { width: columns(inputs[0]!.type), epsilon: { float: attributes.epsilon } },
      'sluice',
    ),
};

/** [products of gate and up side by side, scales [rows, 1] of both] to values and steps of silu(gate) * up. */
export const quantizeGatedOp: Op<Record<never, never>> = {
  name: 'quantizeGated',
  infer: ([products]) => quantizedTypes(products!, columns(products!) / 2),
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node(
      'QuantizeGated',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { width: columns(outputs[0]!.type) },
      'sluice',
    ),
};

export function quantizeRows(builder: GraphBuilder, name: string, value: Value): QuantizedRows {
  const [values, steps] = builder.node(quantizeRowsOp, name, [value], {});
  return { values: values!, steps: steps! };
}

/** [values, weight, scales] to sums of products, to be multiplied by the rows' steps. */
export const integerProductOp: Op<Record<never, never>> = {
  name: 'integerProduct',
  infer([values, weight, scales]) {
    const [inputs, outputs] = weight!.shape as readonly [number, number];
    assert(columns(values!) === inputs, `[${values!.shape}] times a weight [${weight!.shape}]`);
    assert.deepEqual(scales!.shape, [outputs], 'the scales');
    return [{ dtype: 'float32', shape: [...values!.shape.slice(0, -1), outputs] }];
  },
  emit({ inputs, outputs }, onnx) {
    const [values, weight, scales] = inputs.map((input) => input!.name);
    onnx.node(
      'MatMulIntegerToFloat',
      [values!, weight!, onnx.float(1), scales!, onnx.byte(zeroPoint)],
      [outputs[0]!.name],
      {},
      'com.microsoft',
    );
  },
};

/** Rows [rows, K] times `weight` int8 [K, N], whose columns stand for `scales` [N] a step, plus bias [N]. */
export function rowInt8Linear(
  builder: GraphBuilder,
  name: string,
  rows: QuantizedRows,
  weight: { readonly values: Value; readonly scales: Value },
  bias: Value | null,
): Value {
  const inputs = [rows.values, weight.values, weight.scales];
  const product = builder.apply(integerProductOp, `${name}.product`, inputs, {});
  const scaled = mul(builder, bias === null ? name : `${name}.scaled`, product, rows.steps);
  return bias === null ? scaled : add(builder, name, scaled, bias);
}
