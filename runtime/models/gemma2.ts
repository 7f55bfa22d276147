/**
 * Gemma2ForCausalLM: norms before and after attention and MLP, whose weights are stored less one; windows in every
 * other layer; soft caps on scores and logits. Source: transformers' modeling_gemma2.py.
 */
import { z } from 'zod';
import type { Value } from '../graph/graph.ts';
import { scale } from '../graph/ops/elementwise.ts';
import { addRmsNorm, rmsNorm } from '../graph/ops/norm.ts';
import { count, decoderConfig, decoderSpec, layerWindows, parseConfig, windowConfig } from './config.ts';
import { attention, gatedMlp, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import {
  embeddingTensor,
  finalNormTensor,
  headTensor,
  layerPrefix,
  usualAttention,
  usualMlp,
} from './names.ts';

const cap = z.number().positive().nullish();

const schema = z.looseObject({
  ...decoderConfig,
  ...windowConfig,
  sliding_window: count.nullish().default(4096),
  hidden_activation: z.string().nullish(),
  query_pre_attn_scalar: z.number().positive().default(256),
  attn_logit_softcapping: cap.default(50),
  final_logit_softcapping: cap.default(30),
  attention_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
});

export const gemma2: Architecture = {
  name: 'Gemma2ForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    // hidden_act, where it is there, is a name for what was always the tanh form.
    const activation = config.hidden_activation ?? 'gelu_pytorch_tanh';
    const spec = {
      ...decoderSpec(
        checkpoint,
        { ...config, hidden_act: activation },
        {
          architecture: 'Gemma2ForCausalLM',
          defaultHeadDim: 256,
          windows: layerWindows(
            checkpoint,
            config,
            config.sliding_window ?? null,
            (layer) => layer % 2 === 0,
          ),
        },
      ),
      attentionScale: config.query_pre_attn_scalar ** -0.5,
      attentionSoftcap: config.attn_logit_softcapping ?? null,
    };
    const epsilon = config.rms_norm_eps;
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    return {
      spec,
      buildBody(graph) {
        const { builder } = graph;
        const weight = (tensor: string): Value => graph.vector({ tensor, size: spec.hidden, plus: 1 });
        const after = (name: string, value: Value, tensor: string): Value =>
          rmsNorm(builder, name, value, weight(tensor), epsilon);
        const tokens = builder.input('tokens', 'int32', ['tokens']);
        const embedded = graph.embed('embedded', embeddingTensor, tokens);
        let sum = scale(builder, 'embedded.scaled', embedded, Math.fround(Math.sqrt(spec.hidden)));
        let normed = after('normed', sum, `${layerPrefix(0)}.input_layernorm.weight`);
        for (let layer = 0; layer < spec.layers; layer++) {
          const name = `layer${layer}`;
          const prefix = layerPrefix(layer);
          const attended = attention(graph, `${name}.attention`, normed, {
            layer,
            ...usualAttention(layer, spec, bias),
          });
          ({ normed, sum } = addRmsNorm(
            builder,
            `${name}.middle`,
            after(`${name}.attention.normed`, attended, `${prefix}.post_attention_layernorm.weight`),
            sum,
            weight(`${prefix}.pre_feedforward_layernorm.weight`),
            epsilon,
          ));
          const mlp = gatedMlp(graph, `${name}.mlp`, normed, usualMlp(layer, spec));
          const last = layer + 1 === spec.layers;
          ({ normed, sum } = addRmsNorm(
            builder,
            `${name}.out`,
            after(`${name}.mlp.normed`, mlp, `${prefix}.post_feedforward_layernorm.weight`),
            sum,
            weight(last ? finalNormTensor : `${layerPrefix(layer + 1)}.input_layernorm.weight`),
            epsilon,
          ));
        }
        builder.output('hidden', normed);
      },
      buildHead: (graph) =>
        vocabularyHead(graph, { tensor: headTensor(spec), softcap: config.final_logit_softcapping ?? null }),
    };
  },
};
