/** Nodes of the domain `sluice`: kernels of the engine's own, and users' ops. */
import type { GraphBuilder } from '../builder.ts';
import type { Attributes, Op, TensorType, Value } from '../graph.ts';

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

/**
 * The sum over all ranks of a float32 value [tokens, columns]. `index` counts the graph's reductions, the same on
 * every rank. With `contributes` false the rank adds nothing: the value gives the shape only.
 */
export function allReduce(
  builder: GraphBuilder,
  name: string,
  value: Value,
  { index, contributes }: { readonly index: number; readonly contributes: boolean },
): Value {
  return custom(builder, name, 'AllReduce', [value], [value.type], { index, contributes })[0]!;
}
