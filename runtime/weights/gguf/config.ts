/**
 * A GGUF's metadata as config.json and generation_config.json would say it. Pure.
 * Source: the GGUF specification's "Standardized key-value pairs" and llama.cpp's convert_hf_to_gguf.py.
 */
import { SluiceError } from '../../errors.ts';
import type { GgufArchitecture } from './names.ts';
import { type GgufValue, quote } from './reader.ts';

type Metadata = ReadonlyMap<string, GgufValue>;

export interface RotaryFactors {
  /** rope_freqs.weight: divides each frequency (Llama 3's scaling, already worked out). */
  readonly all?: readonly number[];
  readonly long?: readonly number[];
  readonly short?: readonly number[];
}

const numeric = (value: GgufValue | undefined): number | undefined => {
  if (typeof value === 'number') return value;
  if (typeof value === 'bigint') return Number(value);
  return undefined;
};

export function configFromMetadata(
  file: string,
  metadata: Metadata,
  kind: GgufArchitecture,
  facts: {
    readonly tied: boolean;
    readonly vocabulary: number;
    readonly rotaryFactors: RotaryFactors;
    readonly biases: ReadonlySet<string>;
  },
): Record<string, unknown> {
  const prefix = String(metadata.get('general.architecture'));
  const optional = (key: string): number | undefined => {
    const value = metadata.get(`${prefix}.${key}`);
    // Some converters write one value a layer; a model whose layers differ is not one that we know.
    if (Array.isArray(value)) {
      const distinct = new Set(value.map((item) => numeric(item)));
      if (distinct.size > 1) {
        throw new SluiceError('checkpoint_unsupported', `${file}: ${prefix}.${key} differs between layers`);
      }
      return numeric(value[0]);
    }
    return numeric(value);
  };
  const required = (key: string): number => {
    const value = optional(key);
    if (value === undefined || !Number.isFinite(value)) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${file}: the metadata key ${quote(`${prefix}.${key}`)} is missing or no number`,
      );
    }
    return value;
  };

  const hidden = required('embedding_length');
  const heads = required('attention.head_count');
  const headDim = optional('attention.key_length') ?? (heads > 0 ? Math.floor(hidden / heads) : 0);
  const rotaryDim = optional('rope.dimension_count') ?? headDim;
  const context = required('context_length');
  const config: Record<string, unknown> = {
    architectures: [kind.architecture],
    model_type: kind.modelType,
    hidden_size: hidden,
    intermediate_size: required('feed_forward_length'),
    num_hidden_layers: required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: optional('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    max_position_embeddings: context,
    vocab_size: facts.vocabulary,
    rope_theta: optional('rope.freq_base') ?? 10000,
    tie_word_embeddings: facts.tied,
    hidden_act: kind.modelType === 'gemma2' ? 'gelu_pytorch_tanh' : 'silu',
    attention_bias: facts.biases.has('attn_q') || facts.biases.has('attn_output'),
    mlp_bias: facts.biases.has('ffn_up'),
  };
  const set = (name: string, value: unknown): void => {
    if (value !== undefined) config[name] = value;
  };
  set('rms_norm_eps', optional('attention.layer_norm_rms_epsilon'));
  set('layer_norm_eps', optional('attention.layer_norm_epsilon'));
  set('sliding_window', optional('attention.sliding_window'));
  set('clip_qkv', optional('attention.clamp_kqv'));
  set('attn_logit_softcapping', optional('attn_logit_softcapping'));
  set('final_logit_softcapping', optional('final_logit_softcapping'));
  set('embedding_multiplier', optional('embedding_scale'));
  set('residual_multiplier', optional('residual_scale'));
  set('attention_multiplier', optional('attention.scale'));
  set('logits_scaling', optional('logit_scale'));
  if (rotaryDim !== headDim) config.partial_rotary_factor = rotaryDim / headDim;
  if (kind.modelType === 'gemma2') config.query_pre_attn_scalar = optional('attention.key_length') ?? headDim;
  if (kind.modelType === 'qwen2' && config.sliding_window !== undefined) config.use_sliding_window = true;

  const original = optional('rope.scaling.original_context_length');
  const factor = optional('rope.scaling.factor');
  const type = metadata.get(`${prefix}.rope.scaling.type`);
  const { all, long, short } = facts.rotaryFactors;
  if (long && short) {
    config.original_max_position_embeddings = original ?? context;
    config.rope_scaling = {
      rope_type: 'longrope',
      long_factor: long,
      short_factor: short,
      ...(optional('rope.scaling.attn_factor') === undefined
        ? {}
        : { attention_factor: optional('rope.scaling.attn_factor') }),
    };
  } else if (all) {
    config.rope_scaling = { rope_type: 'frequency_factors', factors: all };
  } else if (type === 'linear') {
    config.rope_scaling = { rope_type: 'linear', factor: factor ?? 1 };
  } else if (type !== undefined && type !== 'none') {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${file}: rope scaling ${quote(String(type))} of a GGUF is not known; linear and longrope are`,
    );
  }
  return config;
}

export function generationConfigFromMetadata(metadata: Metadata): Record<string, unknown> {
  const ids = ['eos_token_id', 'eot_token_id', 'eom_token_id']
    .map((key) => numeric(metadata.get(`tokenizer.ggml.${key}`)))
    .filter((id) => id !== undefined);
  const bos = numeric(metadata.get('tokenizer.ggml.bos_token_id'));
  return {
    ...(bos === undefined ? {} : { bos_token_id: bos }),
    ...(ids.length === 0 ? {} : { eos_token_id: [...new Set(ids)] }),
  };
}
