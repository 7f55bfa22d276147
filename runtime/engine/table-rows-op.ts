/** Rows of a table as a custom op of a rank's session. The arithmetic is kernels/table-rows.ts. */
import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import { type Table, TableRows } from './kernels/table-rows.ts';
import type { StepState } from './ops.ts';

/** Rows are those of the run in `step`. */
export function tableRowsOp(step: Pick<StepState, 'tokens'>): CustomOp {
  return defineCustomOp({
    name: 'TableRows',
    inputs: [{ dtype: 'int32' }, { dtype: 'uint8' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { form: 'string', outputs: 'int', inputs: 'int' },
    kernel({ form, outputs, inputs }) {
      const rows = new TableRows({ form: JSON.parse(form) as Table['form'], outputs, inputs });
      return (context) => {
        const out = context.output2d(0, step.tokens, inputs);
        rows.read(context.input(0), step.tokens, context.input(1), out);
      };
    },
  });
}
