/**
 * The engine's own nodes, as custom ops of a rank's session: PagedAttention and AllReduce. Their kernels copy rows from
 * ORT's tensors to the memory where the WebAssembly kernels work, and back; what they run on (which tokens, which
 * blocks) is the step's, set before the run.
 */

import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import { addressOf, copyMemory, type Pointer } from '../ort/library.ts';
import type { Collective } from './collective/collective.ts';
import type { AttentionShape } from './kernels/attention-reference.ts';
import type { AttentionBuffers, PagedAttention } from './kernels/paged-attention.ts';

/** What the kernels must know of the step in progress. */
export interface StepState {
  /** Packed rows of the run. */
  tokens: number;
  /** Made when the size of the pool is known, which is after the sessions. */
  attention: PagedAttention | undefined;
}

export function pagedAttentionOp(layers: readonly AttentionShape[], step: StepState): CustomOp {
  return defineCustomOp({
    name: 'PagedAttention',
    inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { layer: 'int' },
    kernel({ layer }) {
      const { heads, kvHeads, headDim } = layers[layer]!;
      const width = heads * headDim;
      const rowBytes = width * 4;
      const keyBytes = kvHeads * headDim * 4;
      let addresses: Readonly<Record<keyof AttentionBuffers, Pointer>> | undefined;
      return (context) => {
        const { tokens } = step;
        const attention = step.attention!;
        addresses ??= bufferAddresses(attention.buffers(layer));
        copyMemory(addresses.q, context.input(0), tokens * rowBytes);
        copyMemory(addresses.k, context.input(1), tokens * keyBytes);
        copyMemory(addresses.v, context.input(2), tokens * keyBytes);
        attention.attend(layer);
        copyMemory(context.output2d(0, tokens, width), addresses.out, tokens * rowBytes);
      };
    },
  });
}

function bufferAddresses({ q, k, v, out }: AttentionBuffers): Record<keyof AttentionBuffers, Pointer> {
  return { q: addressOf(q), k: addressOf(k), v: addressOf(v), out: addressOf(out) };
}

export function allReduceOp(collective: Collective, step: StepState): CustomOp {
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
    attributes: { index: 'int', contributes: 'int' },
    kernel({ contributes }) {
      let columns: number | undefined;
      return (context) => {
        columns ??= context.inputShape(0)[1]!;
        const count = step.tokens * columns;
        const part = collective.contribution(count);
        if (contributes === 1) copyMemory(at(part), context.input(0), count * 4);
        else part.fill(0);
        const sum = collective.allReduce(count);
        copyMemory(context.output2d(0, step.tokens, columns), at(sum), count * 4);
      };
    },
  });
}
