/**
 * Sums over ranks as custom ops of a rank's session: by machine code where there is some, else rows are copied to the
 * collective's memory and back.
 */
import { machineCodeColumns } from '../models/prepare.ts';
import { addressOf, copyMemory, type Pointer } from '../ort/library.ts';
import { PlacedCode } from '../ort/native-code.ts';
import { defineRowOp, type RowKernel, type RowOp, type RowPlaces } from '../ort/row-op.ts';
import type { Collective } from './collective/collective.ts';
import { allReduceCode, allReduceNormCode } from './kernels/x64/meeting.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';

/** `instructions` null: no machine code. */
export function reduceOps(collective: Collective, instructions: InstructionSet | null): RowOp[] {
  const { rank, ranks, meeting } = collective;
  const placed = new PlacedCode();
  const byCopies = copiedSum(collective);
  return [
    defineRowOp({
      name: 'AllReduce',
      inputs: [{ dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { index: 'int', contributes: 'int', columns: 'int' },
      kernel({ contributes, columns }): RowKernel {
        const form = { columns, rank, ranks, contributes: contributes === 1 };
        if (instructions === null || meeting === undefined || columns % machineCodeColumns !== 0) {
          return { columns: [columns], run: (places) => byCopies(places, form) };
        }
        const run = placed.once('sum', form, () => allReduceCode(form, meeting, instructions));
        return { columns: [columns], run, assist: meeting.assist };
      },
    }),
    ...(instructions === null || meeting === undefined
      ? []
      : [
          defineRowOp({
            name: 'AllReduceNorm',
            inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
            outputs: [{ dtype: 'float32' }, { dtype: 'float32' }],
            attributes: { contributes: 'int', columns: 'int', epsilon: 'float', split: 'int' },
            kernel({ contributes, columns, epsilon, split }): RowKernel {
              const form = {
                columns,
                epsilon,
                rank,
                ranks,
                contributes: contributes === 1,
                split: split === 1,
              };
              const run = placed.once('norm', form, () => allReduceNormCode(form, meeting, instructions));
              return { columns: [columns, columns], run, assist: meeting.assist };
            },
          }),
        ]),
  ];
}

interface CopiedForm {
  readonly columns: number;
  readonly contributes: boolean;
}

function copiedSum(collective: Collective): (places: RowPlaces, form: CopiedForm) => void {
  const addresses = new Map<number, Pointer>();
  /** A collective has a few buffers; their addresses are looked up once each. */
  const at = (view: Float32Array): Pointer => {
    let address = addresses.get(view.byteOffset);
    if (address === undefined) {
      address = addressOf(view);
      addresses.set(view.byteOffset, address);
    }
    return address;
  };
  return (places, { columns, contributes }) => {
    const count = places.rows * columns;
    const part = collective.contribution(count);
    if (contributes) copyMemory(at(part), places.input(0), count * 4);
    else part.fill(0);
    const sum = collective.allReduce(count);
    copyMemory(places.output(0), at(sum), count * 4);
  };
}
