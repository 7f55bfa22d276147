/**
 * Rotary embeddings: a configuration's keys enter, frequencies leave. Pure.
 * Source: transformers' modeling_rope_utils.py. Halves are rotated together (j with j + rotaryDim / 2).
 */
import { z } from 'zod';
import { SluiceError } from '../errors.ts';

/** Position p turns pair j by p * inverseFrequencies[j]; sine and cosine are multiplied by attentionFactor. */
export interface RopeTable {
  /** [rotaryDim / 2]. */
  readonly inverseFrequencies: Float64Array;
  readonly attentionFactor: number;
}

export interface RopeSpec {
  /** The first dimensions of a head that are rotated; the others stay. Even. */
  readonly rotaryDim: number;
  /** Longest sequence in tokens, with the scaling. */
  readonly maxLength: number;
  /**
   * Which table a sequence of a length (all its tokens so far) uses.
   */
  variant(length: number): number;
  /**
   * What is to happen when a sequence's variant changes while it grows: true: it is run anew, so that all its keys are
   * of one table; false: keys stay as they are, as in the reference implementation.
   */
  readonly recomputes: boolean;
  table(variant: number): RopeTable;
}

const positive = z.number().positive();

/** `type` is what `rope_type` was called before transformers 4.43. */
const scalingSchema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: positive.optional(),
  partial_rotary_factor: positive.max(1).optional(),
  factor: z.number().min(1).optional(),
  low_freq_factor: positive.optional(),
  high_freq_factor: positive.optional(),
  original_max_position_embeddings: positive.optional(),
  attention_factor: positive.nullish(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  mscale: positive.nullish(),
  mscale_all_dim: positive.nullish(),
  truncate: z.boolean().optional(),
  short_factor: z.array(positive).optional(),
  long_factor: z.array(positive).optional(),
  factors: z.array(positive).optional(),
});

/** The keys that say how to rotate, as any version of transformers writes them. */
export const ropeConfig = {
  rope_theta: positive.nullish(),
  rope_scaling: scalingSchema.nullish(),
  rope_parameters: scalingSchema.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
  original_max_position_embeddings: positive.nullish(),
};

type Scaling = z.output<typeof scalingSchema>;

export interface RopeFacts {
  readonly headDim: number;
  readonly maxLength: number;
  readonly defaultTheta: number;
}

type RopeKeys = z.output<z.ZodObject<typeof ropeConfig>>;

interface Basis {
  readonly theta: number;
  readonly rotaryDim: number;
  readonly maxLength: number;
  readonly originalMaxLength: number | undefined;
  readonly scaling: Scaling;
  /** A key that the kind needs. */
  need<K extends keyof Scaling & string>(key: K): NonNullable<Scaling[K]>;
}

/** Throws SluiceError: an unknown kind is `checkpoint_unsupported`, a missing key `checkpoint_invalid`. */
export function parseRope(path: string, config: RopeKeys, facts: RopeFacts): RopeSpec {
  const scaling = oneScaling(path, config.rope_parameters ?? config.rope_scaling ?? {});
  const kind = scaling.rope_type ?? scaling.type ?? 'default';
  const share = scaling.partial_rotary_factor ?? config.partial_rotary_factor ?? 1;
  const rotaryDim = Math.floor(facts.headDim * share);
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${path}: ${rotaryDim} rotary dimensions of a head of ${facts.headDim}: expected an even number`,
    );
  }
  const builder = Object.hasOwn(kinds, kind) ? kinds[kind] : undefined;
  if (builder === undefined) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${path}: rope type "${kind.slice(0, 40)}"; known are ${Object.keys(kinds).join(', ')}`,
    );
  }
  return builder({
    theta: scaling.rope_theta ?? config.rope_theta ?? facts.defaultTheta,
    rotaryDim,
    maxLength: facts.maxLength,
    originalMaxLength:
      scaling.original_max_position_embeddings ?? config.original_max_position_embeddings ?? undefined,
    scaling,
    need(key) {
      const value = scaling[key];
      if (value === undefined || value === null) {
        throw new SluiceError(
          'checkpoint_invalid',
          `${path}: rope type "${kind}" needs ${key} in rope_scaling`,
        );
      }
      return value;
    },
  });
}

/** Newer configurations may say it for each kind of layer; what is said must be the same for all. */
function oneScaling(path: string, scaling: Scaling): Scaling {
  const layered = Object.values(scaling).filter(
    (value) => typeof value === 'object' && !Array.isArray(value),
  );
  const first = layered.find((value) => value !== null);
  if (first === undefined) return scaling;
  const parsed = scalingSchema.safeParse(first);
  if (!parsed.success || layered.some((value) => JSON.stringify(value) !== JSON.stringify(first))) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${path}: rope_parameters differ between kinds of layers (${Object.keys(scaling).slice(0, 4).join(', ')}); the same for all are expected`,
    );
  }
  return parsed.data;
}

const kinds: Readonly<Record<string, (basis: Basis) => RopeSpec>> = {
  default: (basis) => fixed(basis, inverseFrequencies(basis.theta, basis.rotaryDim)),
  linear(basis) {
    const factor = basis.need('factor');
    return fixed(
      basis,
      inverseFrequencies(basis.theta, basis.rotaryDim).map((frequency) => frequency / factor),
    );
  },
  dynamic,
  llama3,
  yarn,
  longrope,
  su: longrope,
  frequency_factors: frequencyFactors,
};

function inverseFrequencies(theta: number, rotaryDim: number): Float64Array {
  return Float64Array.from({ length: rotaryDim / 2 }, (_, pair) => theta ** ((-2 * pair) / rotaryDim));
}

function fixed(basis: Basis, frequencies: Float64Array, attentionFactor = 1): RopeSpec {
  const table = { inverseFrequencies: frequencies, attentionFactor };
  const { rotaryDim, maxLength } = basis;
  return { rotaryDim, maxLength, variant: () => 0, recomputes: false, table: () => table };
}

/** Beyond the original length the base grows with the sequence: a variant is a length, 0 the original. */
function dynamic(basis: Basis): RopeSpec {
  const { theta, rotaryDim, maxLength } = basis;
  const factor = basis.need('factor');
  return {
    rotaryDim,
    maxLength: Math.floor(maxLength * factor),
    variant: (length) => (length > maxLength ? length : 0),
    recomputes: false,
    table(length) {
      const stretch = length === 0 ? 1 : (factor * length) / maxLength - (factor - 1);
      const base = theta * stretch ** (rotaryDim / (rotaryDim - 2));
      return { inverseFrequencies: inverseFrequencies(base, rotaryDim), attentionFactor: 1 };
    },
  };
}

/** Long waves are stretched, short ones kept, those between blended. */
function llama3(basis: Basis): RopeSpec {
  const factor = basis.need('factor');
  const low = basis.need('low_freq_factor');
  const high = basis.need('high_freq_factor');
  const original = basis.need('original_max_position_embeddings');
  const frequencies = inverseFrequencies(basis.theta, basis.rotaryDim).map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength < original / high) return frequency;
    if (wavelength > original / low) return frequency / factor;
    const smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * (frequency / factor) + smooth * frequency;
  });
  return fixed(basis, frequencies);
}

/** Source: YaRN (arXiv 2309.00071) as transformers computes it. */
function yarn(basis: Basis): RopeSpec {
  const { theta, rotaryDim, scaling } = basis;
  const original = basis.originalMaxLength ?? basis.maxLength;
  const factor = scaling.factor ?? basis.maxLength / original;
  const magnitude = (scale: number, weight = 1): number =>
    scale <= 1 ? 1 : 0.1 * weight * Math.log(scale) + 1;
  const { mscale, mscale_all_dim: mscaleAll } = scaling;
  const attentionFactor =
    scaling.attention_factor ??
    (mscale && mscaleAll ? magnitude(factor, mscale) / magnitude(factor, mscaleAll) : magnitude(factor));
  const boundary = (rotations: number): number =>
    (rotaryDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const round = scaling.truncate ?? true;
  const first = boundary(scaling.beta_fast ?? 32);
  const final = boundary(scaling.beta_slow ?? 1);
  const low = Math.max(round ? Math.floor(first) : first, 0);
  let high = Math.min(round ? Math.ceil(final) : final, rotaryDim - 1);
  if (low === high) high += 0.001;
  const frequencies = inverseFrequencies(theta, rotaryDim).map((frequency, pair) => {
    const ramp = Math.min(1, Math.max(0, (pair - low) / (high - low)));
    return (frequency / factor) * ramp + frequency * (1 - ramp);
  });
  // The configuration's own length is often the one before it is stretched.
  const stretched = basis.originalMaxLength === undefined ? 0 : Math.floor(original * factor);
  return fixed({ ...basis, maxLength: Math.max(basis.maxLength, stretched) }, frequencies, attentionFactor);
}

/** A divisor for each frequency, worked out beforehand: what a GGUF holds (rope_freqs.weight). */
function frequencyFactors(basis: Basis): RopeSpec {
  return fixed(basis, divided(basis, 'factors'));
}

/** The plain frequencies, each divided by its own factor. */
function divided(basis: Basis, key: 'factors' | 'short_factor' | 'long_factor'): Float64Array {
  const { theta, rotaryDim } = basis;
  const factors = basis.need(key);
  const base = inverseFrequencies(theta, rotaryDim);
  if (factors.length !== base.length) {
    throw new SluiceError(
      'checkpoint_invalid',
      `rope_scaling.${key} has ${factors.length} numbers, ${base.length} are expected (half of ${rotaryDim} rotary dimensions)`,
    );
  }
  return base.map((frequency, pair) => frequency / factors[pair]!);
}

/** Two sets of divisors: variant 1 is for sequences beyond the original length. */
function longrope(basis: Basis): RopeSpec {
  const { rotaryDim, scaling, maxLength } = basis;
  const original = basis.originalMaxLength ?? maxLength;
  // Without the original length the factor says how far the context was stretched.
  const stretch = basis.originalMaxLength === undefined ? (scaling.factor ?? 1) : maxLength / original;
  const attentionFactor =
    scaling.attention_factor ?? (stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(original)));
  const tables = (['short_factor', 'long_factor'] as const).map((key) => ({
    inverseFrequencies: divided(basis, key),
    attentionFactor,
  }));
  return {
    rotaryDim,
    maxLength,
    variant: (length) => (length > original ? 1 : 0),
    recomputes: true,
    table: (variant) => tables[variant]!,
  };
}
