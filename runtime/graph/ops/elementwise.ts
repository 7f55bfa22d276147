/** Ops that work on each element: arithmetic with broadcasting, activations, clipping, soft caps, casts. */
import assert from 'node:assert';
import type { DType } from '../../dtype.ts';
import type { GraphBuilder } from '../builder.ts';
import type { Dimension, Op, TensorType, Value } from '../graph.ts';

function broadcast(left: TensorType, right: TensorType): TensorType {
  const rank = Math.max(left.shape.length, right.shape.length);
  const at = (type: TensorType, axis: number): Dimension => type.shape[axis - rank + type.shape.length] ?? 1;
  const shape = Array.from({ length: rank }, (_, axis) => {
    const [one, other] = [at(left, axis), at(right, axis)];
    assert(
      one === other || one === 1 || other === 1,
      `[${left.shape}] and [${right.shape}] do not broadcast`,
    );
    return one === 1 ? other : one;
  });
  assert(left.dtype === right.dtype, `${left.dtype} and ${right.dtype} do not mix`);
  return { dtype: left.dtype, shape };
}

function binary(type: 'Add' | 'Mul'): Op<Record<never, never>> {
  return {
    name: type.toLowerCase(),
    infer: ([left, right]) => [broadcast(left!, right!)],
    emit: ({ inputs, outputs }, onnx) =>
      onnx.node(type, [inputs[0]!.name, inputs[1]!.name], [outputs[0]!.name]),
  };
}

const addOp = binary('Add');
export const mulOp = binary('Mul');

export function add(builder: GraphBuilder, name: string, left: Value, right: Value): Value {
  return builder.apply(addOp, name, [left, right], {});
}

export function mul(builder: GraphBuilder, name: string, left: Value, right: Value): Value {
  return builder.apply(mulOp, name, [left, right], {});
}

/** Multiplies by a number; by 1 is no node at all. */
export function scale(builder: GraphBuilder, name: string, value: Value, factor: number): Value {
  return factor === 1 ? value : mul(builder, name, value, builder.scalar(factor));
}

export type Activation = 'silu' | 'gelu_tanh' | 'gelu' | 'sigmoid' | 'tanh' | 'relu';

export const activationOp: Op<{ kind: Activation }> = {
  name: 'activation',
  infer: ([input]) => [input!],
  emit({ inputs, outputs, attributes }, onnx) {
    const [from, to] = [[inputs[0]!.name], [outputs[0]!.name]];
    switch (attributes.kind) {
      case 'silu':
        // x * sigmoid(1 * x), in one pass.
        return onnx.node('QuickGelu', from, to, { alpha: { float: 1 } }, 'com.microsoft');
      case 'gelu_tanh':
        return onnx.node('Gelu', from, to, { approximate: 'tanh' });
      case 'gelu':
        return onnx.node('Gelu', from, to, { approximate: 'none' });
      case 'sigmoid':
        return onnx.node('Sigmoid', from, to);
      case 'tanh':
        return onnx.node('Tanh', from, to);
      case 'relu':
        return onnx.node('Relu', from, to);
    }
  },
};

export function activation(builder: GraphBuilder, name: string, value: Value, kind: Activation): Value {
  return builder.apply(activationOp, name, [value], { kind });
}

const clipOp: Op<{ limit: number }> = {
  name: 'clip',
  infer: ([input]) => [input!],
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'Clip',
      [inputs[0]!.name, onnx.float(-attributes.limit), onnx.float(attributes.limit)],
      [outputs[0]!.name],
    ),
};

/** Keeps every element within -limit and limit. */
export function clip(builder: GraphBuilder, name: string, value: Value, limit: number): Value {
  return builder.apply(clipOp, name, [value], { limit });
}

/** cap * tanh(x / cap). */
export function softcap(builder: GraphBuilder, name: string, value: Value, cap: number): Value {
  const squashed = activation(builder, `${name}.tanh`, scale(builder, `${name}.in`, value, 1 / cap), 'tanh');
  return scale(builder, name, squashed, cap);
}

const dataTypeCodes: Readonly<Partial<Record<DType, number>>> = {
  float32: 1,
  int32: 6,
  int64: 7,
  float16: 10,
  bfloat16: 16,
};

const castOp: Op<{ to: DType }> = {
  name: 'cast',
  infer: ([input], { to }) => [{ dtype: to, shape: input!.shape }],
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node('Cast', [inputs[0]!.name], [outputs[0]!.name], { to: dataTypeCodes[attributes.to] }),
};

export function cast(builder: GraphBuilder, name: string, value: Value, to: DType): Value {
  return value.type.dtype === to ? value : builder.apply(castOp, name, [value], { to });
}

const inverseSqrtOp: Op<Record<never, never>> = {
  name: 'inverseSqrt',
  infer: ([input]) => [input!],
  emit({ inputs, outputs }, onnx) {
    const output = outputs[0]!.name;
    onnx.node('Sqrt', [inputs[0]!.name], [`${output}.root`]);
    onnx.node('Reciprocal', [`${output}.root`], [output]);
  },
};

/** 1 / sqrt(x). */
export function inverseSqrt(builder: GraphBuilder, name: string, value: Value): Value {
  return builder.apply(inverseSqrtOp, name, [value], {});
}
