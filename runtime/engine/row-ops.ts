/** Custom ops of what is done to rows between products (graph/fuse-rows.ts), by machine code (kernels/x64/rows.ts). */
import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import { nativeFunction } from '../ort/native-code.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';
import { addNormCode, gatedSiluCode } from './kernels/x64/rows.ts';
import type { StepState } from './ops.ts';

/** Rows are those of the run in `step`. */
export function rowOps(instructions: InstructionSet, step: Pick<StepState, 'tokens'>): CustomOp[] {
  const functions = new Map<string, ReturnType<typeof nativeFunction>>();
  const shared = (
    key: string,
    make: () => ReturnType<typeof nativeFunction>,
  ): ReturnType<typeof nativeFunction> => {
    const known = functions.get(key) ?? make();
    functions.set(key, known);
    return known;
  };
  return [
    defineCustomOp({
      name: 'AddRmsNorm',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }, { dtype: 'float32', optional: true }],
      attributes: { columns: 'int', epsilon: 'float' },
      kernel({ columns, epsilon }) {
        const run = shared(`norm ${columns} ${epsilon}`, () =>
          nativeFunction(addNormCode({ columns, epsilon }, instructions), 6),
        );
        return (context) => {
          const normed = context.output2d(0, step.tokens, columns);
          const sum = context.output2d(1, step.tokens, columns);
          run(context.input(0), context.input(1), context.input(2), sum, normed, BigInt(step.tokens));
        };
      },
    }),
    defineCustomOp({
      name: 'GatedSilu',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { columns: 'int' },
      kernel({ columns }) {
        const run = shared('silu', () => nativeFunction(gatedSiluCode(instructions), 4));
        return (context) => {
          const out = context.output2d(0, step.tokens, columns);
          run(context.input(0), context.input(1), out, BigInt((step.tokens * columns) / 16));
        };
      },
    }),
  ];
}
