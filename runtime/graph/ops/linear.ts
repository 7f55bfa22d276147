/** Products with weight matrices, which are stored as checkpoints have them: [outputs N, inputs K]. */
import assert from 'node:assert';
import type { GraphBuilder } from '../builder.ts';
import type { Op, Value } from '../graph.ts';
import { columns } from '../graph.ts';

const linearOp: Op<Record<never, never>> = {
  name: 'linear',
  infer([input, weight, bias]) {
    assert(weight!.shape.length === 2, `a weight of shape [${weight!.shape}]`);
    const [outputs, inputs] = weight!.shape as readonly [number, number];
    assert(inputs === columns(input!), `[${input!.shape}] times a weight [${weight!.shape}]`);
    assert(bias === null || bias === undefined || columns(bias) === outputs, `a bias [${bias?.shape}]`);
    return [{ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), outputs] }];
  },
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node(
      'Gemm',
      inputs.flatMap((input) => (input == null ? [] : [input.name])),
      [outputs[0]!.name],
      { transB: 1 },
    ),
};

/** x [rows, K] times the transpose of weight [N, K], plus bias [N]: [rows, N]. */
export function linear(
  builder: GraphBuilder,
  name: string,
  value: Value,
  weight: Value,
  bias: Value | null = null,
): Value {
  return builder.apply(linearOp, name, [value, weight, bias], {});
}

export interface QuantizedLinearAttributes {
  readonly outputs: number;
  readonly inputs: number;
  readonly bits: 4 | 8;
  readonly blockSize: number;
  /** 4: activations quantized to int8 per block; 0: float32. */
  readonly accuracyLevel: 0 | 4;
}

const quantizedLinearOp: Op<QuantizedLinearAttributes> = {
  name: 'quantizedLinear',
  infer([input, packed, scales, zeros], { outputs, inputs, bits, blockSize }) {
    assert(inputs === columns(input!), `[${input!.shape}] times a weight [${outputs}, ${inputs}]`);
    const blocks = Math.ceil(inputs / blockSize);
    assert.deepEqual(packed!.shape, [outputs, blocks, (blockSize * bits) / 8], 'the packed weight');
    assert.deepEqual(scales!.shape, [outputs, blocks], 'the scales');
    if (zeros) assert.deepEqual(zeros.shape, [outputs, Math.ceil((blocks * bits) / 8)], 'the zero points');
    return [{ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), outputs] }];
  },
  emit({ inputs, outputs, attributes }, onnx) {
    const [input, packed, scales, zeros, bias] = inputs;
    const names = [input!.name, packed!.name, scales!.name, zeros?.name ?? '', '', bias?.name ?? ''];
    while (names.at(-1) === '') names.pop();
    onnx.node(
      'MatMulNBits',
      names,
      [outputs[0]!.name],
      {
        N: attributes.outputs,
        K: attributes.inputs,
        bits: attributes.bits,
        block_size: attributes.blockSize,
        accuracy_level: attributes.accuracyLevel,
      },
      'com.microsoft',
    );
  },
};

/**
 * As `linear`, with the weight in blocks: packed [N, blocks, blockSize * bits / 8], scales [N, blocks], zeros
 * [N, ceil(blocks * bits / 8)] or null for 2^(bits - 1) everywhere.
 */
export function quantizedLinear(
  builder: GraphBuilder,
  name: string,
  value: Value,
  weight: { readonly packed: Value; readonly scales: Value; readonly zeros: Value | null },
  bias: Value | null,
  attributes: QuantizedLinearAttributes,
): Value {
  return builder.apply(
    quantizedLinearOp,
    name,
    [value, weight.packed, weight.scales, weight.zeros, bias],
    attributes,
  );
}

const blockSumsOp: Op<{ blockSize: number }> = {
  name: 'blockSums',
  infer([input], { blockSize }) {
    const width = columns(input!);
    assert(width % blockSize === 0, `${width} columns are no multiple of ${blockSize}`);
    return [{ dtype: input!.dtype, shape: [...input!.shape.slice(0, -1), width / blockSize] }];
  },
  emit({ inputs, outputs, attributes }, onnx) {
    const output = outputs[0]!.name;
    const blocks = columns(outputs[0]!.type);
    // 0 keeps the dimension.
    onnx.node(
      'Reshape',
      [inputs[0]!.name, onnx.ints([0, blocks, attributes.blockSize])],
      [`${output}.blocks`],
    );
    onnx.node('ReduceSum', [`${output}.blocks`, onnx.ints([2])], [output], { keepdims: 0 });
  },
};

/** Sums of each block of columns: [rows, K] to [rows, K / blockSize]. */
export function blockSums(builder: GraphBuilder, name: string, value: Value, blockSize: number): Value {
  return builder.apply(blockSumsOp, name, [value], { blockSize });
}
