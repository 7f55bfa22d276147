/**
 * Qwen2ForCausalLM: Llama with biases on q, k and v, and windows in the upper layers where they are switched on.
 * Source: transformers' modeling_qwen2.py.
 */
import { z } from 'zod';
import { decoderConfig, decoderSpec, layerWindows, parseConfig, windowConfig } from './config.ts';
import { preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, usualAttention, usualMlp, usualPreNorm } from './names.ts';

const schema = z.looseObject({
  ...decoderConfig,
  ...windowConfig,
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.int().nonnegative().default(28),
});

export const qwen2: Architecture = {
  name: 'Qwen2ForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const window = config.use_sliding_window ? (config.sliding_window ?? null) : null;
    const spec = decoderSpec(checkpoint, config, {
      architecture: 'Qwen2ForCausalLM',
      windows: layerWindows(checkpoint, config, window, (layer) => layer >= config.max_window_layers),
    });
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          attention: (layer) => usualAttention(layer, spec, { qkv: true, o: false }),
          mlp: (layer) => usualMlp(layer, spec),
          epsilon: config.rms_norm_eps,
        }),
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
