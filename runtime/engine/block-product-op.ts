/** The custom op of products with quantized matrices (graph/ops/custom.ts): its arithmetic is kernels/block-product.ts. */
import { type CustomOp, defineCustomOp } from '../ort/custom-op.ts';
import type { GroupForm } from '../weights/column-groups.ts';
import { BlockProduct, BlockProducts } from './kernels/block-product.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';
import type { StepState } from './ops.ts';

/** Rows are those of the run in `step`. */
export function blockProductOp(instructions: InstructionSet, step: Pick<StepState, 'tokens'>): CustomOp {
  const products = new BlockProducts(instructions);
  return defineCustomOp({
    name: 'BlockProduct',
    inputs: [{ dtype: 'float32' }, { dtype: 'uint8' }],
    outputs: [{ dtype: 'float32', variadic: true }],
    attributes: { form: 'string', outputs: 'string', inputs: 'int' },
    kernel({ form, outputs, inputs }) {
      const parts = outputs.split(',').map(Number);
      const product = new BlockProduct(products, {
        inputs,
        form: JSON.parse(form) as GroupForm,
        outputs: parts,
      });
      return (context) => {
        const out = parts.map((count, i) => context.output2d(i, step.tokens, count));
        product.run(step.tokens, context.input(0), context.input(1), out);
      };
    },
  });
}
