/** Custom ops of what is done to rows between products (graph/fuse-rows.ts), by machine code (kernels/x64/rows.ts). */

import { PlacedCode } from '../ort/native-code.ts';
import { defineRowOp, type RowOp } from '../ort/row-op.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';
import { addNormCode, gatedSiluCode } from './kernels/x64/rows.ts';

export function rowOps(instructions: InstructionSet): RowOp[] {
  const placed = new PlacedCode();
  return [
    defineRowOp({
      name: 'AddRmsNorm',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      attributes: { columns: 'int', epsilon: 'float' },
      kernel: (form) => ({
        columns: [form.columns, form.columns],
        run: placed.once('norm', form, () => addNormCode(form, instructions)),
      }),
    }),
    defineRowOp({
      name: 'GatedSilu',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { columns: 'int' },
      kernel: (form) => ({
        columns: [form.columns],
        run: placed.once('silu', form, () => gatedSiluCode(form, instructions)),
      }),
    }),
  ];
}
