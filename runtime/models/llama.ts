/** LlamaForCausalLM: pre-norm decoder with grouped-query attention. Source: transformers' modeling_llama.py. */
import { z } from 'zod';
import { decoderConfig, decoderSpec, parseConfig } from './config.ts';
import { preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, usualAttention, usualMlp, usualPreNorm } from './names.ts';

const schema = z.looseObject({
  ...decoderConfig,
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
});

export const llama: Architecture = {
  name: 'LlamaForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = decoderSpec(checkpoint, config, { architecture: 'LlamaForCausalLM' });
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          attention: (layer) => usualAttention(layer, spec, bias),
          mlp: (layer) => usualMlp(layer, spec, config.mlp_bias),
          epsilon: config.rms_norm_eps,
        }),
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
