/**
 * Whether ranks keep a second form of the weights for steps of many rows, and how far its values may go. Enters: what
 * the user wants, the checkpoint, the memory there is. Leaves: the limit of the int8 values (models/row-int8-weight.ts), or
 * null for no such form.
 *
 * It changes numerics (activations are quantized by rows, weights again by columns), so `auto` takes it only where
 * products are quantized anyway: a quantized checkpoint, computed in int8 by ONNX Runtime, whose kernels for few bits are
 * slower with many rows (the engine's own are not). And only where it needs at most a quarter of
 * the memory that is free when loading starts.
 */
import { GraphBuilder } from '../graph/builder.ts';
import { toOnnx } from '../graph/onnx.ts';
import { rowInt8Linear } from '../graph/ops/row-int8.ts';
import type { QuantizedCompute } from '../models/prepare.ts';
import { Session } from '../ort/session.ts';
import { OrtValue } from '../ort/value.ts';
import type { Checkpoint } from '../weights/checkpoint.ts';

export type PrefillWeights = 'auto' | 'int8' | 'none';

const memoryShare = 1 / 4;

/** Where sums of two products must fit 16 bits: 255 times this does, whatever the activations are. */
const saturatingPairLimit = 128;
/** Both weights of a pair at most 127. */
const freePairLimit = 255;

export function chooseRowInt8PairLimit(
  wish: PrefillWeights,
  checkpoint: Pick<Checkpoint, 'tensors'>,
  { quantizedCompute, blockProducts }: { quantizedCompute: QuantizedCompute; blockProducts: boolean },
  availableBytes: number,
): number | null {
  if (wish === 'none') return null;
  if (wish === 'auto') {
    if (quantizedCompute === 'float32' || blockProducts) return null;
    const quantized = [...checkpoint.tensors.values()].filter(({ kind }) => kind === 'quantized');
    const bytes = quantized.reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0);
    if (bytes === 0 || bytes > availableBytes * memoryShare) return null;
  }
  return productsSaturate() ? saturatingPairLimit : freePairLimit;
}

/**
 * Without instructions for it, ORT adds pairs of products of bytes in 16 bits, which overflow. Asked of the kernel
 * itself: the sum of the largest products.
 */
function productsSaturate(): boolean {
  const [inputs, outputs, rows] = [32, 16, 8];
  const builder = new GraphBuilder('probe');
  const values = builder.input('values', 'uint8', [rows, inputs]);
  const steps = builder.input('steps', 'float32', [rows, 1]);
  const weight = {
    values: builder.initializer('weight', 'int8', [inputs, outputs], {
      read: () => new Uint8Array(inputs * outputs).fill(127),
    }),
    scales: builder.initializer('weight.scales', 'float32', [outputs], {
      read: () => new Uint8Array(new Float32Array(outputs).fill(1).buffer),
    }),
  };
  builder.output('sums', rowInt8Linear(builder, 'products', { values, steps }, weight, null));
  using session = Session.fromBytes(toOnnx(builder.build()).bytes);
  using largest = OrtValue.over(new Uint8Array(rows * inputs).fill(255), 'uint8', [rows, inputs]);
  using ones = OrtValue.over(new Float32Array(rows).fill(1), 'float32', [rows, 1]);
  using sums = session.run({ values: largest, steps: ones })[0]!;
  return sums.toFloat32()[0] !== (255 - 128) * 127 * inputs;
}
