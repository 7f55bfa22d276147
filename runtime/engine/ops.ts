/**
 * Attention as a custom op of a rank's session. Its kernel copies rows from ORT's tensors to the memory where the WebAssembly
 * kernels work, and back; what they run on (which tokens, which blocks) is the step's, set before the run.
 */

import { addressOf, copyMemory, type Pointer } from '../ort/library.ts';
import { defineRowOp, type RowOp } from '../ort/row-op.ts';
import type { AttentionShape } from './kernels/attention-reference.ts';
import type { AttentionBuffers, PagedAttention } from './kernels/paged-attention.ts';

/** What the kernels must know of the step in progress. */
export class StepState {
  /** The number of packed rows of the run, where machine code finds it. */
  readonly rows = new BigInt64Array(1);
  /** Made when the size of the pool is known, which is after the sessions. */
  attention: PagedAttention | undefined;

  get tokens(): number {
    return Number(this.rows[0]);
  }

  set tokens(count: number) {
    this.rows[0] = BigInt(count);
  }
}

export function pagedAttentionOp(layers: readonly AttentionShape[], step: StepState): RowOp {
  return defineRowOp({
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
      return {
        columns: [width],
        run(places) {
          const tokens = places.rows;
          const attention = step.attention!;
          addresses ??= bufferAddresses(attention.buffers(layer));
          copyMemory(addresses.q, places.input(0), tokens * rowBytes);
          copyMemory(addresses.k, places.input(1), tokens * keyBytes);
          copyMemory(addresses.v, places.input(2), tokens * keyBytes);
          const out = places.output(0);
          if (!attention.attend(layer, out)) copyMemory(out, addresses.out, tokens * rowBytes);
        },
      };
    },
  });
}

function bufferAddresses({ q, k, v, out }: AttentionBuffers): Record<keyof AttentionBuffers, Pointer> {
  return { q: addressOf(q), k: addressOf(k), v: addressOf(v), out: addressOf(out) };
}
