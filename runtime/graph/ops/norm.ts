/** Normalisations over the last dimension. */
import assert from 'node:assert';
import type { GraphBuilder } from '../builder.ts';
import type { Op, Value } from '../graph.ts';
import { columns, sameShape } from '../graph.ts';

const rmsNormOp: Op<{ epsilon: number }> = {
  name: 'rmsNorm',
  infer([input, weight]) {
    assert(columns(weight!) === columns(input!), `a weight [${weight!.shape}] for [${input!.shape}]`);
    return [input!];
  },
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node('SimplifiedLayerNormalization', [inputs[0]!.name, inputs[1]!.name], [outputs[0]!.name], {
      axis: -1,
      epsilon: { float: attributes.epsilon },
    }),
};

/** x / sqrt(mean(x^2) + epsilon) * weight. */
export function rmsNorm(
  builder: GraphBuilder,
  name: string,
  value: Value,
  weight: Value,
  epsilon: number,
): Value {
  return builder.apply(rmsNormOp, name, [value, weight], { epsilon });
}

export const addRmsNormOp: Op<{ epsilon: number }> = {
  name: 'addRmsNorm',
  infer([input, residual, weight]) {
    assert(sameShape(input!, residual!), `[${input!.shape}] added to [${residual!.shape}]`);
    assert(columns(weight!) === columns(input!), `a weight [${weight!.shape}] for [${input!.shape}]`);
    return [input!, input!];
  },
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'SkipSimplifiedLayerNormalization',
      inputs.map((input) => input!.name),
      [outputs[0]!.name, '', '', outputs[1]!.name],
      { epsilon: { float: attributes.epsilon } },
      'com.microsoft',
    ),
};

/** The sum of a value and the residual, and its RMS norm, in one pass. */
export function addRmsNorm(
  builder: GraphBuilder,
  name: string,
  value: Value,
  residual: Value,
  weight: Value,
  epsilon: number,
): { readonly normed: Value; readonly sum: Value } {
  const [normed, sum] = builder.node(addRmsNormOp, name, [value, residual, weight], { epsilon });
  return { normed: normed!, sum: sum! };
}

const layerNormOp: Op<{ epsilon: number }> = {
  name: 'layerNorm',
  infer: ([input]) => [input!],
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'LayerNormalization',
      inputs.flatMap((input) => (input === null ? [] : [input.name])),
      [outputs[0]!.name],
      { axis: -1, epsilon: { float: attributes.epsilon } },
    ),
};

/** (x - mean) / sqrt(variance + epsilon) * weight + bias. */
export function layerNorm(
  builder: GraphBuilder,
  name: string,
  value: Value,
  weight: Value,
  bias: Value | null,
  epsilon: number,
): Value {
  return builder.apply(layerNormOp, name, [value, weight, bias], { epsilon });
}
