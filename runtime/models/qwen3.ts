/**
 * Qwen3ForCausalLM: Llama with an RMS norm over each head of q and k. Source: transformers' modeling_qwen3.py.
 */
import { z } from 'zod';
import { decoderConfig, decoderSpec, layerWindows, parseConfig, windowConfig } from './config.ts';
import { headNorm, preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, layerPrefix, usualAttention, usualMlp, usualPreNorm } from './names.ts';

const schema = z.looseObject({
  ...decoderConfig,
  ...windowConfig,
  attention_bias: z.boolean().default(false),
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.int().nonnegative().default(28),
});

export const qwen3: Architecture = {
  name: 'Qwen3ForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const window = config.use_sliding_window ? (config.sliding_window ?? null) : null;
    const spec = decoderSpec(checkpoint, config, {
      architecture: 'Qwen3ForCausalLM',
      defaultHeadDim: 128,
      windows: layerWindows(checkpoint, config, window, (layer) => layer >= config.max_window_layers),
    });
    const bias = { qkv: config.attention_bias, o: config.attention_bias };
    const epsilon = config.rms_norm_eps;
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          attention: (layer) => {
            const own = `${layerPrefix(layer)}.self_attn`;
            return {
              ...usualAttention(layer, spec, bias),
              adjust: ({ q, k, v }) => ({
                q: headNorm(graph, q, `${own}.q_norm.weight`, epsilon),
                k: headNorm(graph, k, `${own}.k_norm.weight`, epsilon),
                v,
              }),
            };
          },
          mlp: (layer) => usualMlp(layer, spec),
          epsilon,
        }),
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
