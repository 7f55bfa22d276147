/**
 * Products in int8 for many rows: activations quantized row by row, weights [inputs K, outputs N] with one scale a
 * column. What a row gives does not depend on the other rows.
 */
import assert from 'node:assert';
import type { GraphBuilder } from '../builder.ts';
import { columns, type Op, type Value } from '../graph.ts';

/** Rows as unsigned bytes around 128, and what one step of each row stands for. */
export interface QuantizedRows {
  /** uint8 [rows, K]. */
  readonly values: Value;
  /** float32 [rows, 1]. */
  readonly scales: Value;
}

const quantizeRowsOp: Op<Record<never, never>> = {
  name: 'quantizeRows',
  infer([input]) {
    const rows = input!.shape.slice(0, -1);
    return [
      { dtype: 'uint8', shape: input!.shape },
      { dtype: 'float32', shape: [...rows, 1] },
    ];
  },
  emit({ inputs, outputs }, onnx) {
    const x = inputs[0]!.name;
    const [values, scales] = outputs.map(({ name }) => name) as [string, string];
    const at = (part: string): string => `${values}.${part}`;
    onnx.node('Abs', [x], [at('absolute')]);
    onnx.node('ReduceMax', [at('absolute'), onnx.ints([1])], [at('largest')], { keepdims: 1 });
    // A row of zeros has a scale too.
    onnx.node('Max', [at('largest'), onnx.float(1e-20)], [at('range')]);
    onnx.node('Mul', [at('range'), onnx.float(1 / 127)], [scales]);
    onnx.node('Div', [x, scales], [at('steps')]);
    onnx.node('Round', [at('steps')], [at('whole')]);
    onnx.node('Add', [at('whole'), onnx.float(zeroPoint)], [at('shifted')]);
    onnx.node('Cast', [at('shifted')], [values], { to: 2 });
  },
};

const zeroPoint = 128;

export function quantizeRows(builder: GraphBuilder, name: string, value: Value): QuantizedRows {
  const [values, scales] = builder.node(quantizeRowsOp, name, [value], {});
  return { values: values!, scales: scales! };
}

const rowInt8LinearOp: Op<Record<never, never>> = {
  name: 'rowInt8Linear',
  infer([values, , weight, weightScales]) {
    const [inputs, outputs] = weight!.shape as readonly [number, number];
    assert(columns(values!) === inputs, `[${values!.shape}] times a weight [${weight!.shape}]`);
    assert.deepEqual(weightScales!.shape, [outputs], 'the scales');
    return [{ dtype: 'float32', shape: [...values!.shape.slice(0, -1), outputs] }];
  },
  emit({ inputs, outputs }, onnx) {
    const [values, scales, weight, weightScales, bias] = inputs.map((input) => input?.name);
    const output = outputs[0]!.name;
    const product = `${output}.steps`;
    onnx.node(
      'MatMulIntegerToFloat',
      [values!, weight!, onnx.float(1), weightScales!, onnx.byte(zeroPoint)],
      [product],
      {},
      'com.microsoft',
    );
    if (bias === undefined) onnx.node('Mul', [product, scales!], [output]);
    else {
      onnx.node('Mul', [product, scales!], [`${output}.scaled`]);
      onnx.node('Add', [`${output}.scaled`, bias], [output]);
    }
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
  return builder.apply(
    rowInt8LinearOp,
    name,
    [rows.values, rows.scales, weight.values, weight.scales, bias],
    {},
  );
}
