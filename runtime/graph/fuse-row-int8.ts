/**
 * Makes one node of rows and what feeds them: a graph enters, an equal one leaves in which sums' norms and gated products
 * that only become rows of bytes are never written as floats. Must not know models.
 */
import assert from 'node:assert';
import type { Graph, Node } from './graph.ts';
import { Links } from './links.ts';
import { activationOp, mulOp } from './ops/elementwise.ts';
import { addRmsNormOp } from './ops/norm.ts';
import { integerProductOp, quantizeAddNormOp, quantizeGatedOp, quantizeRowsOp } from './ops/row-int8.ts';
import { splitOp } from './ops/shape.ts';

export function fuseRowInt8(graph: Graph): Graph {
  const links = new Links(graph);
  const gone = new Set<Node>();
  const instead = new Map<Node, Node>();
  for (const node of graph.nodes) {
    if (node.op !== quantizeRowsOp) continue;
    const fused = fuseAddNorm(node, links) ?? fuseGated(node, links);
    if (fused === undefined) continue;
    const [last, ...before] = fused.nodes;
    for (const other of before) gone.add(other);
    assert(last === node, 'what is fused ends with the rows');
    // The sum of a norm is used before its rows are: the fused node stands where its first part stood.
    const place = fused.early ? before.at(-1)! : node;
    gone.delete(place);
    if (place !== node) gone.add(node);
    instead.set(place, fused.node);
  }
  const nodes = graph.nodes.filter((node) => !gone.has(node)).map((node) => instead.get(node) ?? node);
  return { ...graph, nodes };
}

interface Fused {
  readonly node: Node;
  /** Those that it replaces, the last one first. */
  readonly nodes: readonly Node[];
  readonly early: boolean;
}

function fuseAddNorm(rows: Node, links: Links): Fused | undefined {
  const norm = links.onlyFor(rows.inputs[0]!, addRmsNormOp);
  if (norm === undefined) return undefined;
  return {
    node: {
      op: quantizeAddNormOp,
      inputs: norm.inputs,
      outputs: [norm.outputs[1]!, ...rows.outputs],
      attributes: norm.attributes,
    },
    nodes: [rows, norm],
    early: true,
  };
}

function fuseGated(rows: Node, links: Links): Fused | undefined {
  const gated = links.onlyFor(rows.inputs[0]!, mulOp);
  const active = gated && links.onlyFor(gated.inputs[0]!, activationOp);
  if (active === undefined || active.attributes.kind !== 'silu') return undefined;
  const parts = links.onlyFor(active.inputs[0]!, splitOp);
  if (parts === undefined || parts.outputs.length !== 2) return undefined;
  const [gate, up] = parts.outputs;
  if (active.inputs[0] !== gate || links.onlyFor(gated!.inputs[1]!, splitOp) !== parts) return undefined;
  if (gated!.inputs[1] !== up || parts.attributes.sizes[0] !== parts.attributes.sizes[1]) return undefined;
  const scaled = links.onlyFor(parts.inputs[0]!, mulOp);
  if (scaled === undefined || links.onlyFor(scaled.inputs[0]!, integerProductOp) === undefined)
    return undefined;
  return {
    node: { op: quantizeGatedOp, inputs: scaled.inputs, outputs: rows.outputs, attributes: {} },
    nodes: [rows, gated!, active, parts, scaled],
    early: false,
  };
}
