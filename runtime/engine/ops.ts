/**
 * Attention as a custom op of a rank's session: machine code where there is some for a layer, else WebAssembly. What it runs
 * on (which tokens, which blocks) is the step's, set before the run.
 */

import { defineRowOp, type RowOp, type RowPlaces } from '../ort/row-op.ts';
import type { AttentionNodes } from './kernels/attention-nodes.ts';
import type { AttentionShape } from './kernels/attention-reference.ts';
import type { PagedAttention } from './kernels/paged-attention.ts';

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

export function pagedAttentionOp(
  layers: readonly AttentionShape[],
  step: StepState,
  nodes: AttentionNodes | undefined,
): RowOp {
  return defineRowOp({
    name: 'PagedAttention',
    inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { layer: 'int' },
    kernel({ layer }) {
      const { heads, headDim } = layers[layer]!;
      const attend = (places: RowPlaces): void =>
        step.attention!.attend(layer, {
          rows: places.rows,
          q: places.input(0),
          k: places.input(1),
          v: places.input(2),
          out: places.output(0),
        });
      return { columns: [heads * headDim], run: nodes?.kernel(layer) ?? attend };
    },
  });
}
