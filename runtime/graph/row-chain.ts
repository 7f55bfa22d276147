/**
 * Joins nodes that work on the same rows, one after the other, into one: what ONNX Runtime does for each node (it finds its
 * tensors, allocates, counts) is then done once. A graph enters, an equal one leaves; a chain's nodes are described in JSON
 * (RowChain). Must not know what the nodes compute.
 */
import { type Attributes, columns, type Graph, type Node, type Op, type Value } from './graph.ts';
import type { OnnxNodes } from './onnx.ts';

/** A node's place in a chain. Values are numbers: the chain's inputs in their order, then what its nodes make. */
export interface ChainedNode {
  readonly type: string;
  readonly attributes: Readonly<Record<string, number | string>>;
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
}

export interface RowChain {
  /** Inputs that differ from run to run come first; the others are initializers. */
  readonly inputs: number;
  readonly constants: number;
  readonly nodes: readonly ChainedNode[];
  /** Which values leave. */
  readonly outputs: readonly number[];
}

interface ChainAttributes {
  readonly chain: RowChain;
  readonly types: readonly Value['type'][];
}

const rowChainOp: Op<ChainAttributes> = {
  name: 'rowChain',
  infer: (_inputs, { types }) => types,
  emit: ({ inputs, outputs, attributes: { chain } }, onnx) =>
    onnx.node(
      'RowChain',
      inputs.map((input) => input!.name),
      outputs.map(({ name }) => name),
      { chain: JSON.stringify(chain), columns: outputs.map(({ type }) => columns(type)).join() },
      'sluice',
    ),
};

interface Emitted {
  readonly node: Node;
  readonly type: string;
  readonly attributes: Attributes;
}

/** What a node becomes, if that is one node of the domain `sluice` whose type is among `types`. */
function emitted(node: Node, types: ReadonlySet<string>): Emitted | undefined {
  const made: Emitted[] = [];
  let others = 0;
  const other = (): string => `other${others++}`;
  const recorder: OnnxNodes = {
    node(type, _inputs, _outputs, attributes = {}, domain = '') {
      if (domain === 'sluice' && types.has(type)) made.push({ node, type, attributes });
      else others++;
    },
    ints: other,
    float: other,
    byte: other,
  };
  if (node.inputs.some((input) => input === null)) return undefined;
  node.op.emit(node, recorder);
  return others === 0 && made.length === 1 ? made[0] : undefined;
}

/** `types`: ops whose nodes can be members, by their ONNX names. */
export function chainRows(graph: Graph, types: ReadonlySet<string>): Graph {
  const nodes: Node[] = [];
  const uses = new Map<Value, number>();
  for (const { inputs } of graph.nodes) {
    for (const input of inputs) if (input !== null) uses.set(input, (uses.get(input) ?? 0) + 1);
  }
  let members: Emitted[] = [];
  const end = (): void => {
    if (members.length > 1) nodes.push(chainOf(members, new Set<Value>(graph.initializers), uses));
    else nodes.push(...members.map(({ node }) => node));
    members = [];
  };
  for (const node of graph.nodes) {
    const member = emitted(node, types);
    if (member === undefined) {
      end();
      nodes.push(node);
    } else members.push(member);
  }
  end();
  return { ...graph, nodes };
}

function chainOf(
  members: readonly Emitted[],
  initializers: ReadonlySet<Value>,
  uses: ReadonlyMap<Value, number>,
): Node {
  const made = new Set(members.flatMap(({ node }) => node.outputs));
  const entering = [...new Set(members.flatMap(({ node }) => node.inputs as readonly Value[]))].filter(
    (value) => !made.has(value),
  );
  const constants = entering.filter((value) => initializers.has(value));
  const inputs = [...entering.filter((value) => !initializers.has(value)), ...constants];
  const numbers = new Map([...inputs, ...made].map((value, index) => [value, index]));
  const within = new Map<Value, number>();
  for (const { node } of members) {
    for (const input of node.inputs) within.set(input!, (within.get(input!) ?? 0) + 1);
  }
  const outputs = [...made].filter((value) => (uses.get(value) ?? 0) > (within.get(value) ?? 0));
  const numbersOf = (values: readonly (Value | null)[]): number[] =>
    values.map((value) => numbers.get(value!)!);
  const chain: RowChain = {
    inputs: inputs.length,
    constants: constants.length,
    nodes: members.map(({ node, type, attributes }) => ({
      type,
      attributes: plain(attributes),
      inputs: numbersOf(node.inputs),
      outputs: numbersOf(node.outputs),
    })),
    outputs: numbersOf(outputs),
  };
  return {
    op: rowChainOp,
    inputs,
    outputs,
    attributes: { chain, types: outputs.map(({ type }) => type) } satisfies ChainAttributes,
  };
}

/** Attributes as a kernel reads them. */
function plain(attributes: Attributes): Record<string, number | string> {
  return Object.fromEntries(
    Object.entries(attributes).map(([name, value]) => {
      if (typeof value === 'boolean') return [name, value ? 1 : 0];
      if (typeof value === 'object' && 'float' in value) return [name, Math.fround(value.float)];
      return [name, value as number | string];
    }),
  );
}
