/**
 * Products with quantized weights by the processor's own kernels, and rows of quantized tables: cuts of tensors in groups
 * of outputs (weights/column-groups.ts), those that multiply the same rows in one node. Quantized tensors enter, values of
 * the graph leave. Must not know formats or instructions.
 */
import type { GraphBuilder } from '../graph/builder.ts';
import type { InitializerSource, Value } from '../graph/graph.ts';
import { blockProduct, tableRows } from '../graph/ops/custom.ts';
import { add } from '../graph/ops/elementwise.ts';
import { selectColumns } from '../graph/ops/shape.ts';
import type { QuantizedTensor } from '../weights/checkpoint.ts';
import {
  type GroupForm,
  groupBytesOf,
  groupFormOf,
  groupOutputs,
  groupsOf,
  largestGroupBlock,
  packGroups,
} from '../weights/column-groups.ts';
import {
  type ColumnCut,
  cutBytes,
  cutFloats,
  cutZeros,
  planCut,
  readOnce,
  withSmallerBlocks,
} from './quantized-cut.ts';
import { type Range, rangeSize } from './shard.ts';

export interface BlockCut {
  readonly tensor: QuantizedTensor;
  /** Name of a cut of the tensor, for its initializer. */
  readonly weight: (rows: Range, columns: Range) => string;
  readonly rows: Range;
  readonly columns: Range;
}

export interface BlockProjection extends BlockCut {
  /** Of the product's value. */
  readonly name: string;
  /** [rows]. */
  readonly bias: Value | null;
}

interface Planned<C extends BlockCut = BlockCut> {
  readonly projection: C;
  readonly tensor: QuantizedTensor;
  readonly cut: ColumnCut;
  readonly form: GroupForm;
}

/** x [rows, columns] times the transpose of each cut, plus its bias. */
export function blockProjections(
  builder: GraphBuilder,
  x: Value,
  projections: readonly BlockProjection[],
): readonly Value[] {
  const products = new Map<BlockProjection, Value>();
  for (const alike of groupAlike(projections.map(plan))) {
    const { projection, cut, form } = alike[0]!;
    const { name } = projection;
    const input = cut.order === null ? x : selectColumns(builder, `${name}.ordered`, x, cut.order);
    const outputs = alike.map((each) => rangeSize(each.projection.rows));
    const values = blockProduct(builder, name, input, initializerOf(builder, alike), {
      form: { ...form },
      outputs,
    });
    for (const [i, { projection }] of alike.entries()) {
      const { name, bias } = projection;
      products.set(projection, bias === null ? values[i]! : add(builder, `${name}.biased`, values[i]!, bias));
    }
  }
  return projections.map((projection) => products.get(projection)!);
}

/**
 * Rows of a quantized table [outputs, inputs] for ids [tokens]: [tokens, inputs] float32, dequantised as they are looked
 * up. Products with whole groups of the table read the same bytes. The table is not permuted.
 */
export function blockRows(
  builder: GraphBuilder,
  name: string,
  ids: Value,
  { tensor, weight }: Pick<BlockCut, 'tensor' | 'weight'>,
): Value {
  const [outputs, inputs] = tensor.shape;
  const cut = { tensor, weight, rows: { start: 0, end: outputs }, columns: { start: 0, end: inputs } };
  const planned = plan(cut);
  const groups = initializerOf(builder, [planned], true);
  return tableRows(builder, name, ids, groups, { form: { ...planned.form }, outputs, inputs });
}

function plan<C extends BlockCut>(projection: C): Planned<C> {
  const tensor = withSmallerBlocks(projection.tensor, projection.columns, largestGroupBlock);
  const cut = planCut(tensor, projection.columns);
  const size = { bits: tensor.bits, blockSize: tensor.blockSize, blocks: cut.blocks.length };
  const form = groupFormOf(tensor.layout(), size, tensor.shape[1] <= narrowInputs);
  return { projection, tensor, cut, form };
}

/** Those of one form that multiply the same columns in the same order. */
function groupAlike<C extends BlockCut>(planned: readonly Planned<C>[]): Planned<C>[][] {
  const groups: Planned<C>[][] = [];
  for (const each of planned) {
    const found = groups.find(([first]) => sameForm(first!, each));
    if (found === undefined) groups.push([each]);
    else found.push(each);
  }
  return groups;
}

function sameForm(left: Planned, right: Planned): boolean {
  const [one, other] = [left.cut.order, right.cut.order];
  if (JSON.stringify(left.form) !== JSON.stringify(right.form)) return false;
  if (one === null || other === null) return one === other;
  return one.length === other.length && one.every((column, i) => column === other[i]);
}

/**
 * Matrices of at most so many inputs are multiplied twice: with rows in 8 bits, and with what that left of them. They cost
 * little, and errors of few inputs do not average out.
 */
const narrowInputs = 256;

/** Outputs that are packed at a time. */
const outputsAtOnce = 64 * groupOutputs;

/** uint8 [groups, bytes of a group], of all one after the other. */
function initializerOf(builder: GraphBuilder, alike: readonly Planned[], shared = false): Value {
  const { form } = alike[0]!;
  function* chunks(): Iterable<Uint8Array> {
    for (const each of alike) {
      const { start, end } = each.projection.rows;
      for (let first = start; first < end; first += outputsAtOnce) {
        yield pack(each, { start: first, end: Math.min(end, first + outputsAtOnce) });
      }
    }
  }
  const groups = alike.reduce((sum, { projection }) => sum + groupsOf(rangeSize(projection.rows)), 0);
  const shape = [groups, groupBytesOf(form)] as const;
  const source: InitializerSource = {
    read() {
      const bytes = new Uint8Array(shape[0] * shape[1]);
      let end = 0;
      for (const chunk of chunks()) {
        bytes.set(chunk, end);
        end += chunk.length;
      }
      return bytes;
    },
    costly: true,
    // Of what is shared, rows are looked up.
    streamed: !shared,
    shared,
    ...(alike.length === 1 ? partOfWhole(alike[0]!) : {}),
    chunks,
  };
  const names = alike.map(({ projection: { weight, rows, columns } }) => weight(rows, columns));
  return builder.initializer(nameOf(names.join('+'), form), 'uint8', shape, source);
}

const nameOf = (cuts: string, { blockSize, twice }: GroupForm): string =>
  `${cuts}.groups-${blockSize}${twice ? '-twice' : ''}`;

/** Where the groups of some of a matrix's rows are among those of all. */
function partOfWhole({ projection, form }: Planned): Pick<InitializerSource, 'part'> {
  const { tensor, weight, rows, columns } = projection;
  const [outputs] = tensor.shape;
  if (rangeSize(rows) === outputs || rows.start % groupOutputs !== 0) return {};
  const of = nameOf(weight({ start: 0, end: outputs }, columns), form);
  return { part: { of, offset: groupsOf(rows.start) * groupBytesOf(form) } };
}

function pack({ tensor, cut, form }: Planned, rows: Range): Uint8Array {
  const bytes = readOnce(tensor);
  const part = {
    packed: cutBytes(bytes.packed, tensor, rows, cut.blocks),
    scales: cutFloats(bytes.scales, tensor, rows, cut.blocks),
    ...(bytes.zeros ? { zeros: cutZeros(bytes.zeros, tensor, rows, cut.blocks) } : {}),
    ...(bytes.minima ? { minima: cutFloats(bytes.minima, tensor, rows, cut.blocks) } : {}),
  };
  return packGroups(form, part, rangeSize(rows));
}
