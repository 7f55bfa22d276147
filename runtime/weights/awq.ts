/**
 * AWQ's three tensors of a layer in the `gemm` layout (qweight, qzeros, scales; 4 bits) as one QuantizedTensor.
 * Source: the packing of AutoAWQ's WQLinear_GEMM. Reads bytes through the tensors given; must not know models.
 */
import { SluiceError } from '../errors.ts';
import type { DenseTensor, QuantizedTensor } from './checkpoint.ts';
import { readRows } from './dense.ts';
import { fromGroups } from './gptq.ts';
import { quantizedAt } from './quantized.ts';

/** nibbleOf[column % 8] = which nibble of the word holds it: the inverse of AutoAWQ's order [0, 2, 4, 6, 1, 3, 5, 7]. */
const nibbleOf = [0, 4, 1, 5, 2, 6, 3, 7] as const;

export interface AwqTensors {
  readonly qweight: DenseTensor;
  readonly qzeros: DenseTensor;
  readonly scales: DenseTensor;
}

/** `name` is the layer's, for messages. Throws `checkpoint_invalid` when the shapes do not fit together. */
export function awqTensor(
  name: string,
  tensors: AwqTensors,
  options: { groupSize: number },
): QuantizedTensor {
  const inputs = tensors.qweight.shape[0] ?? 0;
  const words = tensors.qweight.shape[1] ?? 0;
  const outputs = words * 8;
  const groupSize = options.groupSize > 0 ? options.groupSize : inputs;
  const groups = Math.ceil(inputs / groupSize);
  for (const [part, shape, expected] of [
    ['qzeros', tensors.qzeros.shape, [groups, words]],
    ['scales', tensors.scales.shape, [groups, outputs]],
  ] as const) {
    if (shape.length !== 2 || shape[0] !== expected[0] || shape[1] !== expected[1]) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${name}.${part} has shape [${shape.join(', ')}], [${expected.join(', ')}] is expected for groups of ${options.groupSize}`,
      );
    }
  }
  const groupOf = Int32Array.from({ length: inputs }, (_, input) => Math.floor(input / groupSize));
  const reader = (tensor: DenseTensor): ((row: number, column: number) => number) => {
    const bytes = tensor.read();
    return (row, column) =>
      quantizedAt(bytes, (row * words + (column >> 3)) * 4, nibbleOf[(column & 7) as 0]!, 4);
  };
  return fromGroups({
    inputs,
    outputs,
    bits: 4,
    groupSize,
    groups,
    groupOf,
    scaleType: tensors.scales.dtype,
    zeros: () => reader(tensors.qzeros),
    values: () => ({ scales: readRows(tensors.scales, 0, groups), quantized: reader(tensors.qweight) }),
  });
}
