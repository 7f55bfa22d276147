/**
 * Olmo2ForCausalLM: norms come after attention and MLP, and q and k are normed over all their heads together.
 * Source: transformers' modeling_olmo2.py.
 */
import { z } from 'zod';
import type { Value } from '../graph/graph.ts';
import { add, inverseSqrt, mul, scale } from '../graph/ops/elementwise.ts';
import { blockSums } from '../graph/ops/linear.ts';
import { rmsNorm } from '../graph/ops/norm.ts';
import { concat, slice } from '../graph/ops/shape.ts';
import { decoderConfig, decoderSpec, parseConfig } from './config.ts';
import { attention, gatedMlp, type Projections, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import {
  embeddingTensor,
  finalNormTensor,
  headTensor,
  layerPrefix,
  usualAttention,
  usualMlp,
} from './names.ts';
import type { RankGraph } from './rank-graph.ts';
import type { Range } from './shard.ts';

const schema = z.looseObject({
  ...decoderConfig,
  rms_norm_eps: z.number().positive().default(1e-5),
  attention_bias: z.boolean().default(false),
});

export const olmo2: Architecture = {
  name: 'Olmo2ForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = {
      ...decoderSpec(checkpoint, config, { architecture: 'Olmo2ForCausalLM' }),
      sumsOverKvHeads: true,
    };
    const epsilon = config.rms_norm_eps;
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    return {
      spec,
      buildBody(graph) {
        const { builder } = graph;
        const norm = (name: string, value: Value, tensor: string): Value =>
          rmsNorm(builder, name, value, graph.vector({ tensor, size: spec.hidden }), epsilon);
        const tokens = builder.input('tokens', 'int32', ['tokens']);
        let x = graph.embed('embedded', embeddingTensor, tokens);
        for (let layer = 0; layer < spec.layers; layer++) {
          const name = `layer${layer}`;
          const prefix = layerPrefix(layer);
          const attended = attention(graph, `${name}.attention`, x, {
            layer,
            ...usualAttention(layer, spec, bias),
            adjust: (projections) =>
              normProjections(graph, name, `${prefix}.self_attn`, projections, epsilon),
            abstain: (like) => abstainFromNorm(graph, name, like),
          });
          const attendedNorm = `${prefix}.post_attention_layernorm.weight`;
          x = add(builder, `${name}.middle`, x, norm(`${name}.attention.normed`, attended, attendedNorm));
          const mlp = gatedMlp(graph, `${name}.mlp`, x, usualMlp(layer, spec));
          const mlpNorm = `${prefix}.post_feedforward_layernorm.weight`;
          x = add(builder, `${name}.out`, x, norm(`${name}.mlp.normed`, mlp, mlpNorm));
        }
        builder.output('hidden', norm('normed', x, finalNormTensor));
      },
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};

/** The norms of q and k over all heads: ranks hold some heads each, so the sums of squares are summed over ranks. */
function normProjections(
  graph: RankGraph,
  name: string,
  own: string,
  { q, k, v }: Projections,
  epsilon: number,
): Projections {
  const { builder, shard, spec } = graph;
  const squares = (value: Value, side: string, width: number): Value =>
    blockSums(builder, `${name}.${side}.sum`, mul(builder, `${name}.${side}.squares`, value, value), width);
  const heads = (range: Range): Range => ({
    start: range.start * spec.headDim,
    end: range.end * spec.headDim,
  });
  const [qRows, kRows] = [heads(shard.heads), heads(shard.kvHeads)];
  const partial = concat(builder, `${name}.qk.sums`, [
    squares(q, 'q', qRows.end - qRows.start),
    squares(k, 'k', kRows.end - kRows.start),
  ]);
  const sums = graph.reduce(`${name}.qk`, partial, partial);
  const normed = (value: Value, side: 'q' | 'k', index: number, size: number, rows: Range): Value => {
    const sum = slice(builder, `${name}.${side}.all`, sums, index, index + 1);
    const mean = scale(builder, `${name}.${side}.mean`, sum, 1 / size);
    const factor = inverseSqrt(
      builder,
      `${name}.${side}.factor`,
      add(builder, `${name}.${side}.stable`, mean, builder.scalar(epsilon)),
    );
    const weight = graph.vector({ tensor: `${own}.${side}_norm.weight`, size, rows });
    return mul(
      builder,
      `${name}.${side}.normed`,
      mul(builder, `${name}.${side}.unit`, value, factor),
      weight,
    );
  };
  return {
    q: normed(q, 'q', 0, spec.heads * spec.headDim, qRows),
    k: normed(k, 'k', 1, spec.kvHeads * spec.headDim, kRows),
    v,
  };
}

/** A rank without heads takes part in the sums; what it returns depends on them, so that they are not left out. */
function abstainFromNorm(graph: RankGraph, name: string, like: Value): Value {
  const { builder } = graph;
  const sums = graph.reduce(`${name}.qk`, null, slice(builder, `${name}.qk.none`, like, 0, 2));
  return add(builder, `${name}.qk.seen`, like, slice(builder, `${name}.qk.one`, sums, 0, 1));
}
