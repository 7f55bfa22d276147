/** The custom op of products with quantized matrices (graph/ops/custom.ts): its arithmetic is kernels/block-product.ts. */
import { defineRowOp, type RowOp } from '../ort/row-op.ts';
import type { GroupForm } from '../weights/column-groups.ts';
import { BlockProducts } from './kernels/block-product.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';

export function blockProductOp(instructions: InstructionSet): RowOp {
  const products = new BlockProducts(instructions);
  return defineRowOp({
    name: 'BlockProduct',
    inputs: [{ dtype: 'float32' }, { dtype: 'uint8' }],
    outputs: [{ dtype: 'float32', variadic: true }],
    attributes: { form: 'string', outputs: 'string', inputs: 'int' },
    kernel({ form, outputs, inputs }) {
      const columns = outputs.split(',').map(Number);
      const matrix = { inputs, form: JSON.parse(form) as GroupForm, outputs: columns };
      return { columns, run: products.kernel(matrix) };
    },
  });
}
