/** MistralForCausalLM: Llama with a sliding window in every layer. Source: transformers' modeling_mistral.py. */
import { z } from 'zod';
import { decoderConfig, decoderSpec, layerWindows, parseConfig, windowConfig } from './config.ts';
import { preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, usualAttention, usualMlp, usualPreNorm } from './names.ts';

const schema = z.looseObject({ ...decoderConfig, ...windowConfig });

/** What transformers takes where the key is absent; null says that there is none. */
const defaultWindow = 4096;

export const mistral: Architecture = {
  name: 'MistralForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const window = config.sliding_window === undefined ? defaultWindow : config.sliding_window;
    const spec = decoderSpec(checkpoint, config, {
      architecture: 'MistralForCausalLM',
      windows: layerWindows(checkpoint, config, window, () => true),
    });
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          attention: (layer) => usualAttention(layer, spec, { qkv: false, o: false }),
          mlp: (layer) => usualMlp(layer, spec),
          epsilon: config.rms_norm_eps,
        }),
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
