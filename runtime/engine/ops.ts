/**
 * The engine's own nodes, as custom ops of a rank's session: PagedAttention and AllReduce. Their kernels copy rows from
 * ORT's tensors to the memory where the WebAssembly kernels work, and back; what they run on (which tokens, which
 * blocks) is the step's, set before the run.
 */

import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import { addressOf, copyMemory, type Pointer } from '../ort/library.ts';
import type { Collective } from './collective/collective.ts';
import type { AttentionShape } from './kernels/attention-reference.ts';
import type { PagedAttention } from './kernels/paged-attention.ts';

/** What the kernels must know of the step in progress. */
export interface StepState {
  /** Packed rows of the run. */
  tokens: number;
}

export function pagedAttentionOp(
  attention: PagedAttention,
  layers: readonly AttentionShape[],
  step: StepState,
): CustomOp {
  return defineCustomOp({
    name: 'PagedAttention',
    inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { layer: 'int' },
    kernel({ layer }) {
      const { heads, kvHeads, headDim } = layers[layer]!;
      const width = heads * headDim;
      if (heads === 0) return (context) => void context.output2d(0, step.tokens, 0);
      const rowBytes = width * 4;
      const keyBytes = kvHeads * headDim * 4;
      const { q, k, v, out } = attention.buffers(layer);
      const [qAt, kAt, vAt, outAt] = [addressOf(q), addressOf(k), addressOf(v), addressOf(out)];
      return (context) => {
        const { tokens } = step;
        copyMemory(qAt, context.input(0), tokens * rowBytes);
        copyMemory(kAt, context.input(1), tokens * keyBytes);
        copyMemory(vAt, context.input(2), tokens * keyBytes);
        attention.attend(layer);
        copyMemory(context.output2d(0, tokens, width), outAt, tokens * rowBytes);
      };
    },
  });
}

/** `width`: columns of what is summed. */
export function allReduceOp(collective: Collective, width: number, step: StepState): CustomOp {
  const addresses = new Map<number, Pointer>();
  /** A collective has a few buffers; their addresses are looked up once each. */
  const at = (view: Float32Array): Pointer => {
    let address = addresses.get(view.byteOffset);
    if (address === undefined) {
      address = addressOf(view);
      addresses.set(view.byteOffset, address);
    }
    return address;
  };
  return defineCustomOp({
    name: 'AllReduce',
    inputs: [{ dtype: 'float32' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { index: 'int' },
    kernel: () => (context) => {
      const count = step.tokens * width;
      copyMemory(at(collective.contribution(count)), context.input(0), count * 4);
      const sum = collective.allReduce(count);
      copyMemory(context.output2d(0, step.tokens, width), at(sum), count * 4);
    },
  });
}
