/**
 * Phi3ForCausalLM: Llama with fused projections, rotation of a part of each head, and two sets of rotary factors.
 * Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini. Source: transformers' modeling_phi3.py.
 */
import { z } from 'zod';
import { decoderConfig, decoderSpec, layerWindows, parseConfig, windowConfig } from './config.ts';
import { preNormBody, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';
import { headTensor, layerPrefix, usualPreNorm } from './names.ts';

const schema = z.looseObject({
  ...decoderConfig,
  ...windowConfig,
  rms_norm_eps: z.number().positive().default(1e-5),
});

export const phi3: Architecture = {
  name: 'Phi3ForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = decoderSpec(checkpoint, config, {
      architecture: 'Phi3ForCausalLM',
      windows: layerWindows(checkpoint, config, config.sliding_window ?? null, () => true),
    });
    const { heads, kvHeads, headDim, intermediate } = spec;
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          ...usualPreNorm,
          attention(layer) {
            const own = `${layerPrefix(layer)}.self_attn`;
            const fused = { tensor: `${own}.qkv_proj.weight`, outputs: (heads + 2 * kvHeads) * headDim };
            return {
              q: fused,
              k: { ...fused, offset: heads * headDim },
              v: { ...fused, offset: (heads + kvHeads) * headDim },
              o: { tensor: `${own}.o_proj.weight` },
            };
          },
          mlp(layer) {
            const own = `${layerPrefix(layer)}.mlp`;
            const fused = { tensor: `${own}.gate_up_proj.weight`, outputs: 2 * intermediate };
            return {
              gate: fused,
              up: { ...fused, offset: intermediate },
              down: { tensor: `${own}.down_proj.weight` },
            };
          },
          epsilon: config.rms_norm_eps,
        }),
      buildHead: (graph) => vocabularyHead(graph, { tensor: headTensor(spec) }),
    };
  },
};
