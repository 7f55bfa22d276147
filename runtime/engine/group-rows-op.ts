/** Rows of a table in groups as a custom op of a rank's session. The arithmetic is kernels/group-rows.ts. */
import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import type { GroupForm } from '../weights/column-groups.ts';
import { GroupRows } from './kernels/group-rows.ts';
import type { StepState } from './ops.ts';

/** Rows are those of the run in `step`. */
export function groupRowsOp(step: Pick<StepState, 'tokens'>): CustomOp {
  return defineCustomOp({
    name: 'GroupRows',
    inputs: [{ dtype: 'int32' }, { dtype: 'uint8' }],
    outputs: [{ dtype: 'float32' }],
    attributes: { form: 'string', outputs: 'int', inputs: 'int' },
    kernel({ form, outputs, inputs }) {
      const rows = new GroupRows({ form: JSON.parse(form) as GroupForm, outputs, inputs });
      return (context) =>
        rows.read(context.input(0), step.tokens, context.input(1), context.output2d(0, step.tokens, inputs));
    },
  });
}
