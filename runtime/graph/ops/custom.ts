/** Nodes of the domain `sluice`: kernels of the engine's own, and users' ops. */
import type { GraphBuilder } from '../builder.ts';
import { type Attributes, columns, type Op, type TensorType, type Value } from '../graph.ts';

interface CustomAttributes {
  readonly type: string;
  readonly outputs: readonly TensorType[];
  readonly attributes: Attributes;
}

const customOp: Op<CustomAttributes> = {
  name: 'custom',
  infer: (_inputs, { outputs }) => outputs,
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      attributes.type,
      inputs.map((input) => input?.name ?? ''),
      outputs.map((output) => output.name),
      attributes.attributes,
      'sluice',
    ),
};

/** A node whose kernel the session is given; its outputs' types are the caller's word. */
export function custom(
  builder: GraphBuilder,
  name: string,
  type: string,
  inputs: readonly (Value | null)[],
  outputs: readonly TensorType[],
  attributes: Attributes = {},
): readonly Value[] {
  return builder.node(customOp, name, inputs, { type, outputs, attributes });
}

/**
 * Attention of one layer over the paged KV cache. The kernel rotates q and k, writes k and v to their blocks, and
 * attends; positions and block tables come from the step, not from the graph.
 * q [tokens, heads * headDim], k and v [tokens, kvHeads * headDim] in; [tokens, heads * headDim] out.
 */
export function pagedAttention(
  builder: GraphBuilder,
  name: string,
  { q, k, v, layer }: { readonly q: Value; readonly k: Value; readonly v: Value; readonly layer: number },
): Value {
  return custom(builder, name, 'PagedAttention', [q, k, v], [q.type], { layer })[0]!;
}

export interface BlockProductAttributes {
  /** How the groups are laid out; the kernel's business. */
  readonly form: Readonly<Record<string, string | number | boolean>>;
  /** Outputs of each part. A part's groups are whole. */
  readonly outputs: readonly number[];
}

/**
 * x [rows, K] times matrices that lie in groups of outputs (uint8 [groups, bytes of a group]), one after the other:
 * [rows, outputs] of each. x is quantized in blocks on the way.
 */
export function blockProduct(
  builder: GraphBuilder,
  name: string,
  x: Value,
  groups: Value,
  { form, outputs }: BlockProductAttributes,
): readonly Value[] {
  const types = outputs.map((count) => ({ ...x.type, shape: [...x.type.shape.slice(0, -1), count] }));
  const attributes = { form: JSON.stringify(form), outputs: outputs.join(), inputs: columns(x.type) };
  return custom(builder, name, 'BlockProduct', [x, groups], types, attributes);
}

export interface TableRowsAttributes {
  /** How the table is stored; the kernel's business. */
  readonly form: Readonly<Record<string, string | number | boolean>>;
  readonly outputs: number;
  readonly inputs: number;
}

/** Rows, by ids [tokens] int32, of a table [outputs, inputs] whose bytes are a uint8 value: [tokens, inputs] float32. */
export function tableRows(
  builder: GraphBuilder,
  name: string,
  ids: Value,
  table: Value,
  { form, outputs, inputs }: TableRowsAttributes,
): Value {
  const type: TensorType = { dtype: 'float32', shape: [...ids.type.shape, inputs] };
  const attributes = { form: JSON.stringify(form), outputs, inputs };
  return custom(builder, name, 'TableRows', [ids, table], [type], attributes)[0]!;
}

export interface AllReduceAttributes {
  readonly index: number;
  readonly contributes: boolean;
}

export const allReduceOp: Op<AllReduceAttributes> = {
  name: 'allReduce',
  infer: ([value]) => [value!],
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'AllReduce',
      [inputs[0]!.name],
      [outputs[0]!.name],
      { ...attributes, columns: columns(inputs[0]!.type) },
      'sluice',
    ),
};

/**
 * The sum over all ranks of a float32 value [tokens, columns]. `index` counts the graph's reductions, the same on
 * every rank. With `contributes` false the rank adds nothing: the value gives the shape only.
 */
export function allReduce(
  builder: GraphBuilder,
  name: string,
  value: Value,
  attributes: AllReduceAttributes,
): Value {
  return builder.apply(allReduceOp, name, [value], attributes);
}
