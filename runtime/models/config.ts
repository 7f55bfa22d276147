/**
 * Reading a checkpoint's configuration: what all architectures share. Raw JSON enters, typed values leave; what is
 * missing or wrong is one line with the key's name. Must not know any one architecture.
 */
import { z } from 'zod';
import { SluiceError } from '../errors.ts';
import type { Activation } from '../graph/ops/elementwise.ts';
import type { Checkpoint } from '../weights/checkpoint.ts';
import type { ModelSpec } from './model.ts';
import { parseRope, ropeConfig } from './rope.ts';

export const count = z
  .int()
  .positive()
  .max(2 ** 31);

/** Keys that nearly every decoder has, under their usual names. */
export const decoderConfig = {
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count.max(4096),
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  vocab_size: count,
  max_position_embeddings: count,
  rms_norm_eps: z.number().positive().default(1e-6),
  hidden_act: z.string().default('silu'),
  tie_word_embeddings: z.boolean().default(false),
  ...ropeConfig,
};

export type DecoderConfig = z.output<z.ZodObject<typeof decoderConfig>>;

export type CheckpointConfig = Pick<Checkpoint, 'path' | 'config' | 'generationConfig' | 'tensors'>;

/** Throws SluiceError `checkpoint_invalid` with every key that is wrong, in one line. */
export function parseConfig<S extends z.ZodType>(checkpoint: CheckpointConfig, schema: S): z.output<S> {
  const result = schema.safeParse(checkpoint.config);
  if (result.success) return result.data;
  const problems = result.error.issues.map((issue) => {
    const value = issue.path.reduce<unknown>(
      (from, key) => (from as Record<PropertyKey, unknown> | undefined)?.[key],
      checkpoint.config,
    );
    const received = value === undefined ? 'it is missing' : `received ${JSON.stringify(value).slice(0, 60)}`;
    return `${issue.path.join('.')}: ${issue.message} (${received})`;
  });
  throw new SluiceError(
    'checkpoint_invalid',
    `${checkpoint.path}: config.json is wrong: ${problems.join('; ')}`,
  );
}

export interface HeadCounts {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Checks that heads divide as they must. Throws SluiceError `checkpoint_invalid`. */
export function headCounts(
  checkpoint: CheckpointConfig,
  config: {
    hidden_size: number;
    num_attention_heads: number;
    num_key_value_heads?: number | null | undefined;
    head_dim?: number | null | undefined;
  },
): HeadCounts {
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  if (heads % kvHeads !== 0) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${checkpoint.path}: num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`,
    );
  }
  if (config.head_dim == null && config.hidden_size % heads !== 0) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${checkpoint.path}: hidden_size ${config.hidden_size} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    );
  }
  const headDim = config.head_dim ?? config.hidden_size / heads;
  if (headDim > maxHeadDim) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${checkpoint.path}: heads of ${headDim} dimensions; ${maxHeadDim} is the most`,
    );
  }
  return { heads, kvHeads, headDim };
}

/** Some ten times what any model has; rotary tables are made of this length. */
const maxHeadDim = 4096;

const tokenIds = z.union([z.int().nonnegative(), z.array(z.int().nonnegative())]).nullish();

/** The ids that end a sequence: generation_config.json's, else config.json's; one or several. */
export function eosTokenIds(checkpoint: CheckpointConfig): number[] {
  for (const [file, source] of [
    ['generation_config.json', checkpoint.generationConfig],
    ['config.json', checkpoint.config],
  ] as const) {
    const parsed = tokenIds.safeParse(source.eos_token_id);
    if (!parsed.success) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${checkpoint.path}: ${file}: eos_token_id is ${JSON.stringify(source.eos_token_id)?.slice(0, 60)}: expected an id or a list of ids, for example 2`,
      );
    }
    if (parsed.data != null) return [parsed.data].flat();
  }
  return [];
}

const activations: Readonly<Record<string, Activation>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  relu: 'relu',
};

/** Throws SluiceError `checkpoint_unsupported`. */
export function parseActivation(checkpoint: CheckpointConfig, name: string): Activation {
  const activation = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (activation === undefined) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${checkpoint.path}: activation "${name.slice(0, 40)}"; known are ${Object.keys(activations).join(', ')}`,
    );
  }
  return activation;
}

export interface SpecChoices {
  readonly architecture: string;
  readonly defaultTheta?: number;
  /** Where there is no head_dim; absent: hidden_size / num_attention_heads. */
  readonly defaultHeadDim?: number;
  /** By layer; absent: every layer sees all. */
  readonly windows?: readonly (number | null)[];
}

/** The facts of a decoder with the usual keys; architectures change what they do otherwise. Throws SluiceError. */
export function decoderSpec(
  checkpoint: CheckpointConfig,
  config: DecoderConfig,
  choices: SpecChoices,
): ModelSpec {
  const { heads, kvHeads, headDim } = headCounts(checkpoint, {
    ...config,
    head_dim: config.head_dim ?? choices.defaultHeadDim,
  });
  const rope = parseRope(checkpoint.path, config, {
    headDim,
    maxLength: config.max_position_embeddings,
    defaultTheta: choices.defaultTheta ?? 10_000,
  });
  return {
    architecture: choices.architecture,
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
    windows: choices.windows ?? Array.from({ length: config.num_hidden_layers }, () => null),
    eosTokenIds: eosTokenIds(checkpoint),
    tiedEmbeddings: config.tie_word_embeddings,
  };
}

const layerTypes = z.array(z.enum(['full_attention', 'sliding_attention'])).nullish();

/** Keys of models that have windows in some layers. */
export const windowConfig = {
  sliding_window: count.nullish(),
  layer_types: layerTypes,
};

/** The window of each layer: by `layer_types` where it is there, else by the architecture's own rule. */
export function layerWindows(
  checkpoint: CheckpointConfig,
  config: { num_hidden_layers: number; layer_types?: z.output<typeof layerTypes> },
  window: number | null,
  slides: (layer: number) => boolean,
): (number | null)[] {
  const { num_hidden_layers: layers, layer_types: types } = config;
  if (types != null && types.length !== layers) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${checkpoint.path}: config.json: layer_types has ${types.length} entries for ${layers} layers`,
    );
  }
  return Array.from({ length: layers }, (_, layer) =>
    (types == null ? slides(layer) : types[layer] === 'sliding_attention') ? window : null,
  );
}
