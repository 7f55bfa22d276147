/**
 * Gives what is done to rows between products to the engine's own kernels: a graph enters, an equal one leaves whose sums
 * with RMS norms, also of what ranks add up, and gated activations are nodes of the domain `sluice`. Must not know models.
 */
import { columns, type Graph, type Node, type Op, type Value } from './graph.ts';
import { Links } from './links.ts';
import { allReduceOp } from './ops/custom.ts';
import { activationOp, mulOp } from './ops/elementwise.ts';
import { addRmsNormOp } from './ops/norm.ts';

/** Of addRmsNormOp. */
const residualInput = 1;

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

interface AllReduceNormAttributes {
  readonly contributes: boolean;
  readonly epsilon: number;
  /** Whether the sums are only read by other nodes of this op. */
  readonly split: boolean;
}

/** As addRmsNormOp, of the sum over ranks of its first input. */
const allReduceNormOp: Op<AllReduceNormAttributes> = {
  ...addRmsNormOp,
  name: 'allReduceNorm',
  emit: ({ inputs, outputs, attributes: { contributes, epsilon, split } }, onnx) =>
    onnx.node(
      'AllReduceNorm',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { columns: columns(inputs[0]!.type), contributes, epsilon: { float: epsilon }, split },
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
    if (node.op === addRmsNormOp) {
      const reduced = links.onlyFor(node.inputs[0]!, allReduceOp);
      if (reduced === undefined) instead.set(node, { ...node, op: addNormOp });
      else {
        gone.add(reduced);
        const attributes = { ...node.attributes, contributes: reduced.attributes.contributes, split: false };
        const inputs = [reduced.inputs[0]!, ...node.inputs.slice(1)];
        instead.set(node, { ...node, op: allReduceNormOp, inputs, attributes });
      }
    }
    if (node.op !== mulOp) continue;
    const active = links.onlyFor(node.inputs[0]!, activationOp);
    if (active === undefined || active.attributes.kind !== 'silu') continue;
    gone.add(active);
    instead.set(node, { ...node, op: gatedSiluOp, inputs: [active.inputs[0]!, node.inputs[1]!] });
  }
  const nodes = graph.nodes.filter((node) => !gone.has(node)).map((node) => instead.get(node) ?? node);
  return splitSums({ ...graph, nodes });
}

/** Marks the nodes whose sums only others of them read: of many rows, ranks then keep those of their share alone. */
function splitSums(graph: Graph): Graph {
  const whole = new Set<Value | null>(graph.outputs);
  const nodes = graph.nodes.toReversed().map((node) => {
    const split = node.op === allReduceNormOp && !whole.has(node.outputs[1]!);
    for (const [index, input] of node.inputs.entries()) {
      if (!split || index !== residualInput) whole.add(input);
    }
    return split ? { ...node, attributes: { ...node.attributes, split } } : node;
  });
  return { ...graph, nodes: nodes.toReversed() };
}
