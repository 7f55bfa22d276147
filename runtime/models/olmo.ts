/**
 * OlmoForCausalLM: Llama with layer norms that have no weights, and projections clipped to a limit.
 * Source: transformers' modeling_olmo.py.
 */
import { z } from 'zod';
import type { Value } from '../graph/graph.ts';
import { add, clip } from '../graph/ops/elementwise.ts';
import { layerNorm } from '../graph/ops/norm.ts';
import { decoderConfig, decoderSpec, parseConfig } from './config.ts';
import { attention, gatedMlp, type Projections, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { embeddingTensor, headTensor, usualAttention, usualMlp } from './names.ts';
import type { RankGraph } from './rank-graph.ts';

const schema = z.looseObject({
  ...decoderConfig,
  attention_bias: z.boolean().default(false),
  clip_qkv: z.number().positive().nullish(),
});

const epsilon = 1e-5;

export const olmo: Architecture = {
  name: 'OlmoForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = decoderSpec(checkpoint, config, { architecture: 'OlmoForCausalLM' });
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    const limit = config.clip_qkv;
    const clipped = ({ builder }: RankGraph, { q, k, v }: Projections): Projections => {
      if (limit == null) return { q, k, v };
      const within = (value: Value): Value => clip(builder, `${value.name}.clipped`, value, limit);
      return { q: within(q), k: within(k), v: within(v) };
    };
    return {
      spec,
      buildBody(graph) {
        const { builder } = graph;
        const ones = builder.constant(
          'ones',
          'float32',
          [spec.hidden],
          new Float32Array(spec.hidden).fill(1),
        );
        const norm = (name: string, value: Value): Value =>
          layerNorm(builder, name, value, ones, null, epsilon);
        const tokens = builder.input('tokens', 'int32', ['tokens']);
        let x = graph.embed('embedded', embeddingTensor, tokens);
        for (let layer = 0; layer < spec.layers; layer++) {
          const name = `layer${layer}`;
          const attended = attention(graph, `${name}.attention`, norm(`${name}.in`, x), {
            layer,
            ...usualAttention(layer, spec, bias),
            adjust: (projections) => clipped(graph, projections),
          });
          x = add(builder, `${name}.middle`, x, attended);
          const mlp = gatedMlp(graph, `${name}.mlp`, norm(`${name}.mlp.in`, x), usualMlp(layer, spec));
          x = add(builder, `${name}.out`, x, mlp);
        }
        builder.output('hidden', norm('normed', x));
      },
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
