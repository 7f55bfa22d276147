/**
 * Products with quantized weights by the processor's own kernels: cuts of tensors in groups of outputs
 * (weights/column-groups.ts), those that multiply the same rows in one node. Quantized tensors enter, values of the graph
 * leave. Must not know formats or instructions.
 */
import type { GraphBuilder } from '../graph/builder.ts';
import type { InitializerSource, Value } from '../graph/graph.ts';
import { blockProduct } from '../graph/ops/custom.ts';
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

export interface BlockProjection {
  /** Of the product's value. */
  readonly name: string;
  readonly tensor: QuantizedTensor;
  /** Name of the cut, for its initializer. */
  readonly weight: string;
  readonly rows: Range;
  readonly columns: Range;
  /** [rows]. */
  readonly bias: Value | null;
}

interface Planned {
  readonly projection: BlockProjection;
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

function plan(projection: BlockProjection): Planned {
  const tensor = withSmallerBlocks(projection.tensor, projection.columns, largestGroupBlock);
  const cut = planCut(tensor, projection.columns);
  const form = groupFormOf(tensor.layout(), {
    bits: tensor.bits,
    blockSize: tensor.blockSize,
    blocks: cut.blocks.length,
  });
  return { projection, tensor, cut, form };
}

/** Those of one form that multiply the same columns in the same order. */
function groupAlike(planned: readonly Planned[]): Planned[][] {
  const groups: Planned[][] = [];
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

/** Outputs that are packed at a time. */
const outputsAtOnce = 64 * groupOutputs;

/** uint8 [groups, bytes of a group], of all one after the other. */
function initializerOf(builder: GraphBuilder, alike: readonly Planned[]): Value {
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
    chunks,
  };
  const names = alike.map(({ projection }) => projection.weight).join('+');
  return builder.initializer(`${names}.groups-${form.blockSize}`, 'uint8', shape, source);
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
