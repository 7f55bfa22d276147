/**
 * Gives what is done to rows between products to the engine's own kernels: a graph enters, an equal one leaves whose sums
 * with RMS norms and gated activations are nodes of the domain `sluice`. Must not know models.
 */
import { columns, type Graph, type Node, type Op } from './graph.ts';
import { Links } from './links.ts';
import { activationOp, mulOp } from './ops/elementwise.ts';
import { addRmsNormOp } from './ops/norm.ts';

/** As addRmsNormOp. */
const addNormOp: Op<{ epsilon: number }> = {
  ...addRmsNormOp,
  name: 'addNorm',
  emit: ({ inputs, outputs, attributes }, onnx) =>
    onnx.node(
      'AddRmsNorm',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { columns: columns(inputs[0]!.type), epsilon: { float: attributes.epsilon } },
      'sluice',
    ),
};

/** [gate, up] to silu(gate) * up. */
const gatedSiluOp: Op<Record<never, never>> = {
  name: 'gatedSilu',
  infer: ([gate]) => [gate!],
  emit: ({ inputs, outputs }, onnx) =>
    onnx.node(
      'GatedSilu',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { columns: columns(outputs[0]!.type) },
      'sluice',
    ),
};

/** `fits`: whether there is a kernel for rows of so many columns. */
export function fuseRows(graph: Graph, fits: (columns: number) => boolean): Graph {
  const links = new Links(graph);
  const gone = new Set<Node>();
  const instead = new Map<Node, Node>();
  for (const node of graph.nodes) {
    const [output] = node.outputs;
    if (output === undefined || typeof output.type.shape.at(-1) !== 'number' || !fits(columns(output.type)))
      continue;
    if (node.op === addRmsNormOp) instead.set(node, { ...node, op: addNormOp });
    if (node.op !== mulOp) continue;
    const active = links.onlyFor(node.inputs[0]!, activationOp);
    if (active === undefined || active.attributes.kind !== 'silu') continue;
    gone.add(active);
    instead.set(node, { ...node, op: gatedSiluOp, inputs: [active.inputs[0]!, node.inputs[1]!] });
  }
  const nodes = graph.nodes.filter((node) => !gone.has(node)).map((node) => instead.get(node) ?? node);
  return { ...graph, nodes };
}
