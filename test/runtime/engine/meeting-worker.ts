/** A rank of the tests of reductions in machine code: a small graph on each, run on the rows that the test asks for. */
import { parentPort, workerData } from 'node:worker_threads';
import {
  type SharedCollective,
  ThreadCollective,
} from '../../../runtime/engine/collective/thread-collective.ts';
import type { InstructionSet } from '../../../runtime/engine/kernels/x64/processor.ts';
import { rowGatherCode } from '../../../runtime/engine/kernels/x64/row-gather.ts';
import { opDomain } from '../../../runtime/engine/op-domain.ts';
import { StepState } from '../../../runtime/engine/ops.ts';
import { reduceOps } from '../../../runtime/engine/reduce-ops.ts';
import { rowChainOp } from '../../../runtime/engine/row-chain-op.ts';
import { rowOps } from '../../../runtime/engine/row-ops.ts';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { fuseRows } from '../../../runtime/graph/fuse-rows.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import { allReduce } from '../../../runtime/graph/ops/custom.ts';
import { addRmsNorm } from '../../../runtime/graph/ops/norm.ts';
import { chainRows } from '../../../runtime/graph/row-chain.ts';
import { CustomOpDomain } from '../../../runtime/ort/custom-op.ts';
import { nativeAddresses } from '../../../runtime/ort/library.ts';
import { placeCode } from '../../../runtime/ort/native-code.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';

export interface MeetingCase {
  readonly shared: SharedCollective;
  readonly rank: number;
  readonly instructions: InstructionSet;
  readonly columns: number;
  /** Of each run. */
  readonly rows: readonly number[];
  /** The ranks that have a part of the first sum. */
  readonly contributors: readonly number[];
  /** Whether the sums of the first norm are an output. */
  readonly keepsSums: boolean;
  /** Whether nodes are joined into one. */
  readonly chained: boolean;
  /** The rank that fails after the first run. */
  readonly failing?: number;
}

/** Different for each rank, run, input and place. */
export function input(rank: number, run: number, index: number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) =>
    Math.fround(Math.sin(i * 0.7 + rank * 1.3 + run * 2.1 + index * 3.3)),
  );
}

export const epsilon = 1e-5;
export const weight = (columns: number): Float32Array => input(0, 0, 9, columns);

function build({ columns, contributors, keepsSums, chained, rank }: MeetingCase): Uint8Array {
  const builder = new GraphBuilder('sums');
  const value = (name: string) => builder.input(name, 'float32', ['rows', columns]);
  const [a, b, c, residual] = [value('a'), value('b'), value('c'), value('residual')];
  const norm = builder.constant('weight', 'float32', [columns], weight(columns));
  const first = allReduce(builder, 'first', a, {
    index: 0,
    contributes: contributors.includes(rank),
  });
  const one = addRmsNorm(builder, 'one', first, residual, norm, epsilon);
  const second = allReduce(builder, 'second', b, { index: 1, contributes: true });
  const two = addRmsNorm(builder, 'two', second, one.sum, norm, epsilon);
  builder.output('normed1', one.normed);
  builder.output('normed2', two.normed);
  builder.output('sum3', allReduce(builder, 'third', c, { index: 2, contributes: true }));
  if (keepsSums) builder.output('sum1', one.sum);
  const graph = fuseRows(builder.build(), () => true);
  const joined = chainRows(graph, new Set(['AllReduce', 'AllReduceNorm', 'AddRmsNorm']));
  return toOnnx(chained ? joined : graph).bytes;
}

/** Outputs of each run: normed1, normed2, sum3 and, if kept, sum1. */
export function runCase(each: MeetingCase): Float32Array[][] {
  const { shared, rank, instructions, columns, rows, keepsSums, failing } = each;
  const collective = new ThreadCollective(shared, rank);
  const state = new StepState();
  const chainable = [...reduceOps(collective, instructions), ...rowOps(instructions)];
  const ops = [...chainable, rowChainOp(chainable, state, Math.max(...rows))];
  const code = placeCode(rowGatherCode(nativeAddresses));
  using domain = new CustomOpDomain(opDomain, ops, { rows: state.rows, code });
  const model = build(each);
  using session = Session.fromBytes(model, { customOps: [domain] });
  const names = ['normed1', 'normed2', 'sum3', ...(keepsSums ? ['sum1'] : [])];
  const runner = session.prepare(['a', 'b', 'c', 'residual'], names);
  return rows.map((count, run) => {
    if (run > 0 && failing === rank) {
      collective.fail('the disk is on fire');
      throw new Error('failed');
    }
    state.tokens = count;
    const size = count * columns;
    // The residual is the same on every rank.
    const inputs = [0, 1, 2].map((index) => input(rank, run, index, size));
    inputs.push(input(0, run, 3, size));
    const outputs = names.map(() => new Float32Array(size));
    const values = (arrays: Float32Array[]) =>
      arrays.map((array) => OrtValue.over(array, 'float32', [count, columns]));
    const [given, made] = [values(inputs), values(outputs)];
    runner.run(given, made);
    for (const value of [...given, ...made]) value.close();
    return outputs;
  });
}

if (parentPort !== null) {
  try {
    parentPort.postMessage({ outputs: runCase(workerData as MeetingCase) });
  } catch (error) {
    parentPort.postMessage({ error: (error as Error).message });
  }
}
