/**
 * Blocks that decoders share: attention over the paged cache and gated MLPs, cut for a rank. Names of tensors and
 * sizes enter, values of the graph leave. Must not know any one architecture.
 */
import { columns, type Value } from '../graph/graph.ts';
import { pagedAttention } from '../graph/ops/custom.ts';
import { activation, mul, scale, softcap } from '../graph/ops/elementwise.ts';
import { addRmsNorm, rmsNorm } from '../graph/ops/norm.ts';
import { reshape } from '../graph/ops/shape.ts';
import type { MatrixCut, NamedProjection, RankGraph, VectorCut } from './rank-graph.ts';
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
  /** What happens to the rank's projections before attention: norms, clips. */
  readonly adjust?: (projections: Projections) => Projections;
  /**
   * On a rank without heads: takes part in what `adjust` sums over ranks. Gets a value of the output's shape and
   * returns one that depends on the sums.
   */
  readonly abstain?: (like: Value) => Value;
}

/** [tokens, heads of the rank * headDim] each. */
export interface Projections {
  readonly q: Value;
  readonly k: Value;
  readonly v: Value;
}

/** x [tokens, hidden] in, [tokens, hidden] out, summed over ranks. */
export function attention(graph: RankGraph, name: string, x: Value, places: AttentionPlaces): Value {
  const { hidden, headDim, heads } = graph.spec;
  const { shard } = graph;
  if (rangeSize(shard.kvHeads) === 0) {
    return graph.reduce(`${name}.sum`, null, places.abstain?.(x) ?? x);
  }
  const side = (which: 'q' | 'k' | 'v'): NamedProjection => {
    const range = which === 'q' ? shard.heads : shard.kvHeads;
    const rows = { start: range.start * headDim, end: range.end * headDim };
    return projectionOf(graph, `${name}.${which}`, places[which], rows);
  };
  const sides = graph.projectAll(`${name}.qkv`, x, [side('q'), side('k'), side('v')]);
  const projections: Projections = { q: sides[0]!, k: sides[1]!, v: sides[2]! };
  const attended = pagedAttention(graph.builder, `${name}.attended`, {
    ...(places.adjust?.(projections) ?? projections),
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
  const [gate, up] = graph.projectAll(`${name}.gateUp`, x, [
    projectionOf(graph, `${name}.gate`, places.gate, rows),
    projectionOf(graph, `${name}.up`, places.up, rows),
  ]) as [Value, Value];
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

export interface PreNormPlaces {
  readonly embedding: string;
  readonly embeddingScale?: number;
  readonly inputNorm: (layer: number) => string;
  readonly attention: (layer: number) => Omit<AttentionPlaces, 'layer'>;
  readonly mlpNorm: (layer: number) => string;
  readonly mlp: (layer: number) => GatedMlpPlaces;
  /** What attention and MLP are multiplied by before they are added. */
  readonly residualScale?: number;
  readonly finalNorm: string;
  readonly epsilon: number;
}

/** The body of a decoder whose RMS norms come before attention and MLP: token ids to the final hidden state. */
export function preNormBody(graph: RankGraph, places: PreNormPlaces): void {
  const { builder, spec } = graph;
  const { epsilon, residualScale = 1 } = places;
  const norm = (tensor: string): Value => graph.vector({ tensor, size: spec.hidden });
  const tokens = builder.input('tokens', 'int32', ['tokens']);
  const embedded = graph.embed('embedded', places.embedding, tokens);
  let sum = scale(builder, 'embedded.scaled', embedded, places.embeddingScale ?? 1);
  let normed = rmsNorm(builder, 'normed', sum, norm(places.inputNorm(0)), epsilon);
  for (let layer = 0; layer < spec.layers; layer++) {
    const name = `layer${layer}`;
    const attended = attention(graph, `${name}.attention`, normed, { layer, ...places.attention(layer) });
    ({ normed, sum } = addRmsNorm(
      builder,
      `${name}.middle`,
      scale(builder, `${name}.attention.scaled`, attended, residualScale),
      sum,
      norm(places.mlpNorm(layer)),
      epsilon,
    ));
    const mlp = gatedMlp(graph, `${name}.mlp`, normed, places.mlp(layer));
    ({ normed, sum } = addRmsNorm(
      builder,
      `${name}.out`,
      scale(builder, `${name}.mlp.scaled`, mlp, residualScale),
      sum,
      norm(layer + 1 < spec.layers ? places.inputNorm(layer + 1) : places.finalNorm),
      epsilon,
    ));
  }
  builder.output('hidden', normed);
}

export interface HeadPlaces {
  readonly tensor: string;
  /** What logits are multiplied by. */
  readonly scale?: number;
  /** Logits become cap * tanh(logit / cap). */
  readonly softcap?: number | null;
}

/** The head: `hidden` [rows, hidden] to the rank's slice of the logits. */
export function vocabularyHead(graph: RankGraph, places: HeadPlaces): void {
  const { builder, spec, shard } = graph;
  const hidden = builder.input('hidden', 'float32', ['rows', spec.hidden]);
  const logits = graph.project('lm_head', hidden, {
    tensor: places.tensor,
    shape: [spec.vocabulary, spec.hidden],
    rows: shard.vocabulary,
  });
  const scaled = scale(builder, 'lm_head.scaled', logits, places.scale ?? 1);
  const { softcap: cap } = places;
  builder.output('logits', cap == null ? scaled : softcap(builder, 'lm_head.capped', scaled, cap));
}

/** An RMS norm over each head of [tokens, heads * headDim], with one weight [headDim] for all heads. */
export function headNorm(graph: RankGraph, value: Value, tensor: string, epsilon: number): Value {
  const { builder, spec } = graph;
  const width = columns(value.type);
  const weight = graph.vector({ tensor, size: spec.headDim });
  const heads = reshape(builder, `${value.name}.heads`, value, ['heads', spec.headDim]);
  const normed = rmsNorm(builder, `${value.name}.normed`, heads, weight, epsilon);
  return reshape(builder, `${value.name}.flat`, normed, ['tokens', width]);
}

/** The usual place of a projection: a weight, and a bias where there is one. */
export function projectionPlace(prefix: string, outputs: number, biased: boolean): ProjectionPlace {
  return { tensor: `${prefix}.weight`, outputs, ...(biased ? { bias: `${prefix}.bias` } : {}) };
}

function projectionOf(graph: RankGraph, name: string, place: ProjectionPlace, rows: Range): NamedProjection {
  const offset = place.offset ?? 0;
  const cut = { start: offset + rows.start, end: offset + rows.end };
  const bias: VectorCut | null =
    place.bias === undefined ? null : { tensor: place.bias, size: place.outputs, rows: cut };
  return { name, cut: { tensor: place.tensor, shape: [place.outputs, graph.spec.hidden], rows: cut }, bias };
}

/** The bias of a projection whose ranks are summed: one rank adds it. */
function sharedBias(graph: RankGraph, tensor: string | undefined): VectorCut | null {
  if (tensor === undefined || graph.shard.rank !== 0) return null;
  return { tensor, size: graph.spec.hidden };
}
