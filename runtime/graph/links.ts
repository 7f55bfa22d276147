/** Which node makes a value and how often it is used: what passes over a graph ask. */
import type { Graph, Node, Value } from './graph.ts';

export class Links {
  readonly #makers = new Map<Value, Node>();
  readonly #uses = new Map<Value, number>();

  constructor({ nodes }: Graph) {
    for (const node of nodes) {
      for (const output of node.outputs) this.#makers.set(output, node);
      for (const input of node.inputs) {
        if (input !== null) this.#uses.set(input, (this.#uses.get(input) ?? 0) + 1);
      }
    }
  }

  /** The node of `op` that makes the value, when it is used once. */
  onlyFor<A>(value: Value, op: Node<A>['op']): Node<A> | undefined {
    const maker = this.#makers.get(value);
    return maker?.op === op && this.#uses.get(value) === 1 ? maker : undefined;
  }
}
