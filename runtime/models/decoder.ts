/**
 * Blocks that decoders share: attention over the paged cache and gated MLPs, cut for a rank. Names of tensors and
 * sizes enter, values of the graph leave. Must not know any one architecture.
 */
import type { Value } from '../graph/graph.ts';
import { pagedAttention } from '../graph/ops/custom.ts';
import { activation, mul } from '../graph/ops/elementwise.ts';
import type { MatrixCut, RankGraph, VectorCut } from './rank-graph.ts';
import { type Range, rangeSize } from './shard.ts';

/** Where rows of a projection lie: a tensor of its own, or a part of a fused one that starts at `offset`. */
export interface ProjectionPlace {
  readonly tensor: string;
  /** Rows of the whole tensor. */
  readonly outputs: number;
  readonly offset?: number;
  readonly bias?: string;
}

export interface AttentionPlaces {
  readonly layer: number;
  readonly q: ProjectionPlace;
  readonly k: ProjectionPlace;
  readonly v: ProjectionPlace;
  readonly o: { readonly tensor: string; readonly bias?: string };
  /** What happens to a projection before attention: a norm, a clip. */
  readonly adjust?: (value: Value, which: 'q' | 'k' | 'v', heads: Range) => Value;
}

/** x [tokens, hidden] in, [tokens, hidden] out, summed over ranks. */
export function attention(graph: RankGraph, name: string, x: Value, places: AttentionPlaces): Value {
  const { hidden, headDim, heads } = graph.spec;
  const { shard } = graph;
  if (rangeSize(shard.kvHeads) === 0) return graph.reduce(`${name}.sum`, null, x);
  const side = (which: 'q' | 'k' | 'v'): Value => {
    const range = which === 'q' ? shard.heads : shard.kvHeads;
    const rows = { start: range.start * headDim, end: range.end * headDim };
    const value = projectRows(graph, `${name}.${which}`, x, places[which], rows);
    return places.adjust?.(value, which, range) ?? value;
  };
  const attended = pagedAttention(graph.builder, `${name}.attended`, {
    q: side('q'),
    k: side('k'),
    v: side('v'),
    layer: places.layer,
  });
  const columns = { start: shard.heads.start * headDim, end: shard.heads.end * headDim };
  const cut: MatrixCut = { tensor: places.o.tensor, shape: [hidden, heads * headDim], columns };
  const partial = graph.project(`${name}.o`, attended, cut, sharedBias(graph, places.o.bias));
  return graph.reduce(`${name}.sum`, partial, x);
}

export interface GatedMlpPlaces {
  readonly gate: ProjectionPlace;
  readonly up: ProjectionPlace;
  readonly down: { readonly tensor: string; readonly bias?: string };
}

/** down(activation(gate(x)) * up(x)), summed over ranks. */
export function gatedMlp(graph: RankGraph, name: string, x: Value, places: GatedMlpPlaces): Value {
  const { builder, spec, shard } = graph;
  const rows = shard.intermediate;
  const gate = projectRows(graph, `${name}.gate`, x, places.gate, rows);
  const up = projectRows(graph, `${name}.up`, x, places.up, rows);
  const gated = mul(
    builder,
    `${name}.gated`,
    activation(builder, `${name}.active`, gate, spec.activation),
    up,
  );
  const cut: MatrixCut = {
    tensor: places.down.tensor,
    shape: [spec.hidden, spec.intermediate],
    columns: rows,
  };
  const partial = graph.project(`${name}.down`, gated, cut, sharedBias(graph, places.down.bias));
  return graph.reduce(`${name}.sum`, partial, x);
}

/** The head: hidden [rows, hidden] to the rank's slice of the logits. */
export function vocabularyLogits(graph: RankGraph, hidden: Value, tensor: string): Value {
  const { vocabulary, hidden: width } = graph.spec;
  return graph.project('lm_head', hidden, {
    tensor,
    shape: [vocabulary, width],
    rows: graph.shard.vocabulary,
  });
}

function projectRows(graph: RankGraph, name: string, x: Value, place: ProjectionPlace, rows: Range): Value {
  const offset = place.offset ?? 0;
  const cut = { start: offset + rows.start, end: offset + rows.end };
  const bias: VectorCut | null =
    place.bias === undefined ? null : { tensor: place.bias, size: place.outputs, rows: cut };
  return graph.project(
    name,
    x,
    { tensor: place.tensor, shape: [place.outputs, graph.spec.hidden], rows: cut },
    bias,
  );
}

/** The bias of a projection whose ranks are summed: one rank adds it. */
function sharedBias(graph: RankGraph, tensor: string | undefined): VectorCut | null {
  if (tensor === undefined || graph.shard.rank !== 0) return null;
  return { tensor, size: graph.spec.hidden };
}
