/**
 * ExaoneForCausalLM: Llama under its own names of tensors and keys.
 * Source: modeling_exaone.py and configuration_exaone.py beside the published checkpoints.
 */
import { z } from 'zod';
import { count, decoderConfig, decoderSpec, parseConfig } from './config.ts';
import { preNormBody, projectionPlace, vocabularyHead } from './decoder.ts';
import type { Architecture } from './model.ts';

const { num_hidden_layers, hidden_act: _, rms_norm_eps: __, ...shared } = decoderConfig;

const schema = z.looseObject({
  ...shared,
  intermediate_size: count.nullish(),
  num_layers: num_hidden_layers,
  layer_norm_epsilon: z.number().positive().default(1e-5),
  activation_function: z.string().default('silu'),
});

const embedding = 'transformer.wte.weight';

export const exaone: Architecture = {
  name: 'ExaoneForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const spec = decoderSpec(
      checkpoint,
      {
        ...config,
        num_hidden_layers: config.num_layers,
        intermediate_size: config.intermediate_size ?? 4 * config.hidden_size,
        hidden_act: config.activation_function,
        rms_norm_eps: config.layer_norm_epsilon,
      },
      { architecture: 'ExaoneForCausalLM' },
    );
    const { heads, kvHeads, headDim, hidden, intermediate } = spec;
    const prefix = (layer: number): string => `transformer.h.${layer}`;
    return {
      spec,
      buildBody: (graph) =>
        preNormBody(graph, {
          embedding,
          inputNorm: (layer) => `${prefix(layer)}.ln_1.weight`,
          attention(layer) {
            const own = `${prefix(layer)}.attn.attention`;
            return {
              q: projectionPlace(`${own}.q_proj`, heads * headDim, false),
              k: projectionPlace(`${own}.k_proj`, kvHeads * headDim, false),
              v: projectionPlace(`${own}.v_proj`, kvHeads * headDim, false),
              o: projectionPlace(`${own}.out_proj`, hidden, false),
            };
          },
          mlpNorm: (layer) => `${prefix(layer)}.ln_2.weight`,
          mlp(layer) {
            const own = `${prefix(layer)}.mlp`;
            return {
              gate: projectionPlace(`${own}.c_fc_0`, intermediate, false),
              up: projectionPlace(`${own}.c_fc_1`, intermediate, false),
              down: projectionPlace(`${own}.c_proj`, hidden, false),
            };
          },
          finalNorm: 'transformer.ln_f.weight',
          epsilon: config.layer_norm_epsilon,
        }),
      buildHead: (graph) =>
        vocabularyHead(graph, { tensor: spec.tiedEmbeddings ? embedding : 'lm_head.weight' }),
    };
  },
};
