/**
 * Custom ops that make rows of bytes for products in int8 (graph/ops/row-int8.ts): of rows as they are, of sums' norms, of
 * gated products. They write results where ORT wants them; the arithmetic is kernels/row-quantizer.ts.
 */
import { type CustomOp, defineCustomOp, type KernelContext } from '../ort/custom-op.ts';
import { type QuantizedPlace, RowQuantizer } from './kernels/row-quantizer.ts';
import type { StepState } from './ops.ts';

/** Rows are those of the run in `step`. */
export function rowInt8Ops(step: Pick<StepState, 'tokens'>): CustomOp[] {
  let quantizer: RowQuantizer | undefined;
  /** Made with the first node: most sessions have none. */
  const shared = (): RowQuantizer => {
    quantizer ??= new RowQuantizer();
    return quantizer;
  };
  const place = (context: KernelContext, first: number, width: number): QuantizedPlace => ({
    values: context.output2d(first, step.tokens, width),
    steps: context.output2d(first + 1, step.tokens, 1),
  });
  return [
    defineCustomOp({
      name: 'QuantizeRows',
      inputs: [{ dtype: 'float32' }],
      outputs: [{ dtype: 'uint8' }, { dtype: 'float32' }],
      attributes: { width: 'int' },
      kernel({ width }) {
        const rows = shared();
        return (context) => rows.quantize(step.tokens, width, context.input(0), place(context, 0, width));
      },
    }),
    defineCustomOp({
      name: 'QuantizeAddNorm',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }, { dtype: 'uint8' }, { dtype: 'float32' }],
      attributes: { width: 'int', epsilon: 'float' },
      kernel({ width, epsilon }) {
        const rows = shared();
        return (context) => {
          const from = { x: context.input(0), residual: context.input(1), weight: context.input(2) };
          const sums = context.output2d(0, step.tokens, width);
          rows.addNorm(step.tokens, width, from, epsilon, sums, place(context, 1, width));
        };
      },
    }),
    defineCustomOp({
      name: 'QuantizeGated',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'uint8' }, { dtype: 'float32' }],
      attributes: { width: 'int' },
      kernel({ width }) {
        const rows = shared();
        return (context) =>
          rows.gated(step.tokens, width, context.input(0), context.input(1), place(context, 0, width));
      },
    }),
  ];
}
