/**
 * Builds a graph node by node: values enter, the value of a new node leaves, its type inferred at once, so that a
 * wrong shape is found at the line that made it. Must not know ONNX or models.
 */
import assert from 'node:assert';
import type { DType } from '../dtype.ts';
import type { Dimension, Graph, Initializer, InitializerSource, Node, Op, Value } from './graph.ts';
import { tensorType } from './graph.ts';

export class GraphBuilder {
  readonly #name: string;
  readonly #inputs: Value[] = [];
  readonly #outputs: Value[] = [];
  readonly #initializers = new Map<string, Initializer>();
  readonly #nodes: Node[] = [];
  readonly #names = new Set<string>();

  constructor(name: string) {
    this.#name = name;
  }

  input(name: string, dtype: DType, shape: readonly Dimension[]): Value {
    const value = { name: this.#claim(name), type: tensorType(dtype, shape) };
    this.#inputs.push(value);
    return value;
  }

  /** Names a value and makes it an output. */
  output(name: string, value: Value): void {
    this.#outputs.push({ name: this.#claim(name), type: value.type });
    this.#nodes.push({
      op: identity,
      inputs: [value],
      outputs: [{ name, type: value.type }],
      attributes: {},
    });
  }

  /** A weight. A second call with the same name gives the same value: tied weights are one. */
  initializer(name: string, dtype: DType, shape: readonly number[], source: InitializerSource): Value {
    const known = this.#initializers.get(name);
    if (known !== undefined) {
      assert.deepEqual(known.type, tensorType(dtype, shape), `${name} is declared twice, differently`);
      return known;
    }
    const value: Initializer = {
      name: this.#claim(name),
      type: { dtype, shape: [...shape] },
      source,
    };
    this.#initializers.set(name, value);
    return value;
  }

  /** A small tensor of the graph's own. */
  constant(name: string, dtype: DType, shape: readonly number[], data: ArrayBufferView): Value {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return this.initializer(name, dtype, shape, { read: () => bytes.slice() });
  }

  /** The same float everywhere in the graph. */
  scalar(value: number): Value {
    return this.constant(`scalar.${value}`, 'float32', [], Float32Array.of(value));
  }

  /** Adds a node; `name` is the name of its first output, unique or made so. */
  node<A>(op: Op<A>, name: string, inputs: readonly (Value | null)[], attributes: A): readonly Value[] {
    const types = op.infer(
      inputs.map((input) => input?.type ?? null),
      attributes,
    );
    const first = this.#claim(this.#unique(name));
    const outputs = types.map((type, index) => ({
      name: index === 0 ? first : this.#claim(`${first}.${index}`),
      type,
    }));
    this.#nodes.push({ op, inputs: [...inputs], outputs, attributes });
    return outputs;
  }

  /** As `node`, for ops with one output. */
  apply<A>(op: Op<A>, name: string, inputs: readonly (Value | null)[], attributes: A): Value {
    const outputs = this.node(op, name, inputs, attributes);
    assert(outputs.length === 1, `${op.name} has ${outputs.length} outputs`);
    return outputs[0]!;
  }

  build(): Graph {
    return {
      name: this.#name,
      inputs: [...this.#inputs],
      outputs: [...this.#outputs],
      initializers: [...this.#initializers.values()],
      nodes: [...this.#nodes],
    };
  }

  #claim(name: string): string {
    assert(!this.#names.has(name), `the graph has two values named ${name}`);
    this.#names.add(name);
    return name;
  }

  #unique(name: string): string {
    if (!this.#names.has(name)) return name;
    for (let count = 2; ; count++) {
      if (!this.#names.has(`${name}.${count}`)) return `${name}.${count}`;
    }
  }
}

const identity: Op<Record<never, never>> = {
  name: 'identity',
  infer: ([input]) => [input!],
  emit: (node, onnx) => onnx.node('Identity', [node.inputs[0]!.name], [node.outputs[0]!.name]),
};
