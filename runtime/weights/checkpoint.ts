/**
 * What a checkpoint is to the rest of the runtime: a parsed config and named tensors whose bytes are read when asked.
 * Knows files and formats; must not know graphs, devices or model architectures.
 */
import type { DType } from '../dtype.ts';

/** A dense tensor, row-major, little-endian. */
export interface DenseTensor {
  readonly kind: 'dense';
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Where the bytes lie when they are contiguous in a file: lets ONNX Runtime map them without a copy. */
  readonly location?: { readonly file: string; readonly offset: number; readonly bytes: number };
  /** The bytes, read anew at each call; the caller owns them. */
  read(): Uint8Array;
}

/**
 * A weight matrix in blocks along its input dimension, dequantised as
 * `w[n][k] = (q - zero) * scale + minimum`, with q unsigned. Everything is indexed [N][ceil(K / blockSize)].
 */
export interface QuantizedTensor {
  readonly kind: 'quantized';
  /** [outputs N, inputs K]. */
  readonly shape: readonly [number, number];
  readonly bits: 4 | 8;
  readonly blockSize: number;
  /** What `read` will give, found without reading the values: graphs are built from it at every start. */
  layout(): QuantizedLayout;
  /** The bytes, made anew at each call; the caller owns them. */
  read(): QuantizedBytes;
}

/** Which parts of QuantizedBytes there are. */
export interface QuantizedLayout {
  readonly zeros: boolean;
  readonly minima: boolean;
  readonly permutation?: Int32Array;
  /** float16 holds every scale, and what each minimum is for q = 0, as they are. Default: float32. */
  readonly factors?: 'float16' | 'float32';
}

export interface QuantizedBytes {
  /** [N, K / blockSize, blockSize * bits / 8]; in a byte of two, the low nibble comes first (MatMulNBits' layout). */
  readonly packed: Uint8Array;
  /** [N, K / blockSize]. */
  readonly scales: Float32Array;
  /** [N, ceil(K / blockSize * bits / 8)], packed like the weights; absent: 2^(bits-1) everywhere. */
  readonly zeros?: Uint8Array;
  /** [N, K / blockSize], added after scaling (exact affine forms such as Q4_1's); absent: 0. */
  readonly minima?: Float32Array;
  /**
   * [stored columns]: stored column j multiplies input `permutation[j]` (GPTQ's desc_act), none where that is -1 (padding
   * to whole blocks; there may then be more stored columns than K); absent: identity, K stored columns.
   */
  readonly permutation?: Int32Array;
}

export type StoredTensor = DenseTensor | QuantizedTensor;

export interface Checkpoint {
  /** The folder (or the GGUF file) it came from, for messages. */
  readonly path: string;
  /** config.json, or what a GGUF's metadata says in the same keys. */
  readonly config: Readonly<Record<string, unknown>>;
  /** generation_config.json; {} where there is none. */
  readonly generationConfig: Readonly<Record<string, unknown>>;
  /** Names as transformers has them for the architecture (`model.layers.0.self_attn.q_proj.weight`, ...). */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** How the weights are stored: `float32`, `bfloat16`, `float16`, `gptq`, `awq`, `q4_1`, ... */
  readonly encoding: string;
  /** Bytes of all weights as stored. */
  readonly weightBytes: number;
  /** Changes when the files' content does: what prepared weights are cached under. Absent: they are not cached. */
  readonly identity?: string;
  /** All metadata of a GGUF, for its tokenizer and chat template; absent elsewhere. */
  readonly metadata?: ReadonlyMap<string, unknown>;
}

/** Whether any of its weights are. */
export function isQuantized({ tensors }: Pick<Checkpoint, 'tensors'>): boolean {
  return [...tensors.values()].some(({ kind }) => kind === 'quantized');
}
