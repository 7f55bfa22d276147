/** LlamaForCausalLM: pre-norm decoder with grouped-query attention. Source: transformers' modeling_llama.py. */
import { z } from 'zod';
import { addRmsNorm, rmsNorm } from '../graph/ops/norm.ts';
import { decoderConfig, eosTokenIds, headCounts, parseActivation, parseConfig } from './config.ts';
import { attention, gatedMlp, type ProjectionPlace, vocabularyLogits } from './decoder.ts';
import type { Architecture, ModelSpec } from './model.ts';
import { parseRope, ropeConfig } from './rope.ts';

const schema = z.looseObject({
  ...decoderConfig,
  ...ropeConfig,
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(false),
});

export const llama: Architecture = {
  name: 'LlamaForCausalLM',
  parse(checkpoint) {
    const config = parseConfig(checkpoint, schema);
    const { heads, kvHeads, headDim } = headCounts(checkpoint, config);
    const rope = parseRope(checkpoint.path, config, {
      headDim,
      maxLength: config.max_position_embeddings,
      defaultTheta: 10_000,
    });
    const spec: ModelSpec = {
      architecture: 'LlamaForCausalLM',
      layers: config.num_hidden_layers,
      hidden: config.hidden_size,
      heads,
      kvHeads,
      headDim,
      intermediate: config.intermediate_size,
      activation: parseActivation(checkpoint, config.hidden_act),
      vocabulary: config.vocab_size,
      maxLength: rope.maxLength,
      rope,
      attentionScale: headDim ** -0.5,
      attentionSoftcap: null,
      windows: Array.from({ length: config.num_hidden_layers }, () => null),
      eosTokenIds: eosTokenIds(checkpoint),
      tiedEmbeddings: config.tie_word_embeddings,
    };
    const place = (tensor: string, outputs: number, biased: boolean): ProjectionPlace => ({
      tensor: `${tensor}.weight`,
      outputs,
      ...(biased ? { bias: `${tensor}.bias` } : {}),
    });
    return {
      spec,
      buildBody(graph) {
        const { builder } = graph;
        const epsilon = config.rms_norm_eps;
        const norm = (tensor: string) => graph.vector({ tensor, size: spec.hidden });
        const tokens = builder.input('tokens', 'int32', ['tokens']);
        let sum = graph.embed('embedded', 'model.embed_tokens.weight', tokens);
        let normed = rmsNorm(builder, 'normed', sum, norm('model.layers.0.input_layernorm.weight'), epsilon);
        for (let layer = 0; layer < spec.layers; layer++) {
          const prefix = `model.layers.${layer}`;
          const name = `layer${layer}`;
          const own = `${prefix}.self_attn`;
          const attended = attention(graph, `${name}.attention`, normed, {
            layer,
            q: place(`${own}.q_proj`, heads * headDim, config.attention_bias),
            k: place(`${own}.k_proj`, kvHeads * headDim, config.attention_bias),
            v: place(`${own}.v_proj`, kvHeads * headDim, config.attention_bias),
            o: place(`${own}.o_proj`, spec.hidden, config.attention_bias),
          });
          const middle = norm(`${prefix}.post_attention_layernorm.weight`);
          ({ normed, sum } = addRmsNorm(builder, `${name}.normed`, attended, sum, middle, epsilon));
          const mlp = gatedMlp(graph, `${name}.mlp`, normed, {
            gate: place(`${prefix}.mlp.gate_proj`, spec.intermediate, config.mlp_bias),
            up: place(`${prefix}.mlp.up_proj`, spec.intermediate, config.mlp_bias),
            down: place(`${prefix}.mlp.down_proj`, spec.hidden, config.mlp_bias),
          });
          const next = norm(
            layer + 1 < spec.layers
              ? `model.layers.${layer + 1}.input_layernorm.weight`
              : 'model.norm.weight',
          );
          ({ normed, sum } = addRmsNorm(builder, `${name}.out`, mlp, sum, next, epsilon));
        }
        builder.output('hidden', normed);
      },
      buildHead(graph) {
        const hidden = graph.builder.input('hidden', 'float32', ['rows', spec.hidden]);
        const tensor = spec.tiedEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight';
        graph.builder.output('logits', vocabularyLogits(graph, hidden, tensor));
      },
    };
  },
};
