/** GraniteForCausalLM: Llama with four multipliers. Source: transformers' modeling_granite.py. */
import { z } from 'zod';
import { decoderConfig, decoderSpec, parseConfig } from './config.ts';
import { preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, usualAttention, usualMlp, usualPreNorm } from './names.ts';

const multiplier = z.number().default(1);

const schema = z.looseObject({
  ...decoderConfig,
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  embedding_multiplier: multiplier,
  residual_multiplier: multiplier,
  attention_multiplier: multiplier,
  logits_scaling: z
    .number()
    .refine((value) => value !== 0, 'must not be 0')
    .default(1),
});

export const granite: Architecture = {
  name: 'GraniteForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = {
      ...decoderSpec(checkpoint, config, { architecture: 'GraniteForCausalLM' }),
      attentionScale: config.attention_multiplier,
    };
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          embeddingScale: config.embedding_multiplier,
          attention: (layer) => usualAttention(layer, spec, bias),
          mlp: (layer) => usualMlp(layer, spec, config.mlp_bias),
          residualScale: config.residual_multiplier,
          epsilon: config.rms_norm_eps,
        }),
      buildHead: (graph) =>
        vocabularyHead(graph, { tensor: headTensor(spec), scale: 1 / config.logits_scaling }),
    };
  },
};
