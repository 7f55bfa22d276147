/** Custom ops of what is done to rows between products (graph/fuse-rows.ts), by machine code (kernels/x64/rows.ts). */

import type { Pointer } from '../ort/library.ts';
import { placeCode } from '../ort/native-code.ts';
import { defineRowOp, type RowOp } from '../ort/row-op.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';
import { addNormCode, gatedSiluCode } from './kernels/x64/rows.ts';

export function rowOps(instructions: InstructionSet): RowOp[] {
  const placed = new Map<string, Pointer>();
  const once = (key: string, make: () => Uint8Array): Pointer => {
    const known = placed.get(key) ?? placeCode(make());
    placed.set(key, known);
    return known;
  };
  return [
    defineRowOp({
      name: 'AddRmsNorm',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      attributes: { columns: 'int', epsilon: 'float' },
      kernel: ({ columns, epsilon }) => ({
        columns: [columns, columns],
        run: once(`norm ${columns} ${epsilon}`, () => addNormCode({ columns, epsilon }, instructions)),
      }),
    }),
    defineRowOp({
      name: 'GatedSilu',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { columns: 'int' },
      kernel: ({ columns }) => ({
        columns: [columns],
        run: once(`silu ${columns}`, () => gatedSiluCode({ columns }, instructions)),
      }),
    }),
  ];
}
