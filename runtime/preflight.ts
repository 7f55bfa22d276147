/**
 * Can a checkpoint be run as asked: cut for so many ranks, in that encoding, in that memory? Facts about the checkpoint
 * and the wish enter; what stands against it leaves, as lines for a user. Pure: the operator asks it too, before any
 * pod exists.
 */

/** What is known of a checkpoint without its weights. */
export interface CheckpointFacts {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Absent: hidden / heads. */
  readonly headDim?: number;
  /** Columns of the MLP. */
  readonly intermediate: number;
  readonly layers: number;
  readonly vocabulary: number;
  /** How the weights are stored: `float32`, `bfloat16`, `float16`, `gptq`, `awq`, `q4_1`, ... */
  readonly encoding: string;
  readonly weightBytes: number;
}

export interface RunWish {
  readonly ranks: number;
  /** `--quantization-encoding`; absent: as the checkpoint is. */
  readonly encoding?: string;
  /** Memory of all ranks together; absent: not checked. */
  readonly memoryBytes?: number;
  /** What that memory is, for the message: `2 GPUs of 15360 MiB`. */
  readonly memorySource?: string;
  /** Whose memory. Half-precision weights are computed with as float32 on a CPU. Default: cpu. */
  readonly device?: 'cpu' | 'gpu';
  /** Of the KV cache. Default: what 256 tokens take. */
  readonly kvBytes?: number;
  /** A key's or a value's element in the KV cache. Default: 4, float32. */
  readonly kvElementBytes?: number;
}

/** By how the cache keeps keys and values. */
export const kvElementBytes = { float32: 4, bfloat16: 2, int8: 1 } as const;

export type PreflightCode = 'heads' | 'ranks' | 'encoding' | 'memory';

export interface PreflightProblem {
  readonly code: PreflightCode;
  /** One line: what stands against it, the numbers, what would work. */
  readonly message: string;
}

/** Columns of the MLP that are never cut apart: the smallest block of the kernels for quantized weights. */
export const smallestUnit = 16;

/** Empty: nothing known stands against it. */
export function preflight(facts: CheckpointFacts, wish: RunWish): PreflightProblem[] {
  return [
    ...headProblems(facts),
    ...rankProblems(facts, wish),
    ...encodingProblems(facts, wish),
    ...memoryProblems(facts, wish),
  ];
}

/** The most ranks that the model can be cut for. */
export function maximumRanks({ intermediate }: Pick<CheckpointFacts, 'intermediate'>): number {
  return Math.ceil(intermediate / smallestUnit);
}

function headProblems({ hidden, heads, kvHeads, headDim }: CheckpointFacts): PreflightProblem[] {
  const problems: PreflightProblem[] = [];
  if (heads % kvHeads !== 0) {
    problems.push({
      code: 'heads',
      message: `num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`,
    });
  }
  if (headDim === undefined && hidden % heads !== 0) {
    problems.push({
      code: 'heads',
      message: `hidden_size ${hidden} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    });
  }
  return problems;
}

function rankProblems(facts: CheckpointFacts, { ranks }: RunWish): PreflightProblem[] {
  const most = maximumRanks(facts);
  if (ranks <= most) return [];
  return [
    {
      code: 'ranks',
      message: `${ranks} ranks: the model's MLP of ${facts.intermediate} columns can be cut into ${most} pieces of ${smallestUnit}, so at most ${most} ranks`,
    },
  ];
}

const plainEncodings = ['float32', 'bfloat16', 'float16'];

/** Bytes a weight of the encodings that plain weights are quantized to when they are loaded, scales included. */
const loadedBytes: Readonly<Record<string, number>> = { int8: 1.125, int4: 0.625 };

function encodingProblems(facts: CheckpointFacts, { encoding }: RunWish): PreflightProblem[] {
  if (encoding === undefined || encoding === facts.encoding) return [];
  // Widening loses nothing.
  const possible = plainEncodings.includes(facts.encoding)
    ? [...new Set([facts.encoding, 'float32']), ...Object.keys(loadedBytes)]
    : [facts.encoding];
  if (possible.includes(encoding)) return [];
  return [
    {
      code: 'encoding',
      message: `encoding ${encoding}: the checkpoint is stored as ${facts.encoding}, which gives ${possible.join(' or ')}`,
    },
  ];
}

function memoryProblems(facts: CheckpointFacts, wish: RunWish): PreflightProblem[] {
  const { memoryBytes, memorySource, device, kvElementBytes = 4 } = wish;
  if (memoryBytes === undefined) return [];
  const weights = residentBytes(facts, wish.encoding, device);
  const minimal = (kvBytesPerToken(facts) / 4) * kvElementBytes * minimalTokens;
  const needed = weights + (wish.kvBytes ?? minimal);
  if (needed <= memoryBytes) return [];
  const cache = wish.kvBytes === undefined ? 'a minimal KV cache' : 'the KV cache asked for';
  const source = memorySource === undefined ? '' : ` (${memorySource})`;
  return [
    {
      code: 'memory',
      message: `about ${mebibytes(needed)} MiB are needed (weights ${mebibytes(weights)} MiB, the rest ${cache}), ${mebibytes(memoryBytes)} MiB are there${source}`,
    },
  ];
}

/** What a KV cache must hold to be of any use. */
const minimalTokens = 256;

/**
 * Weights in memory, in bytes: on a CPU half-precision ones are computed with as float32. `wish`: the encoding asked for,
 * if any.
 */
export function residentBytes(
  { encoding, weightBytes }: Pick<CheckpointFacts, 'encoding' | 'weightBytes'>,
  wish?: string,
  device: RunWish['device'] = 'cpu',
): number {
  const half = encoding === 'bfloat16' || encoding === 'float16';
  const loaded = wish !== undefined && Object.hasOwn(loadedBytes, wish) ? loadedBytes[wish] : undefined;
  if (loaded !== undefined && plainEncodings.includes(encoding)) {
    return Math.ceil((weightBytes / (half ? 2 : 4)) * loaded);
  }
  return half && (device === 'cpu' || wish === 'float32') ? 2 * weightBytes : weightBytes;
}

/** Keys and values of one token in all layers, float32. */
export function kvBytesPerToken(
  facts: Pick<CheckpointFacts, 'layers' | 'kvHeads' | 'hidden' | 'heads' | 'headDim'>,
): number {
  return facts.layers * 2 * facts.kvHeads * (facts.headDim ?? facts.hidden / facts.heads) * 4;
}

function mebibytes(bytes: number): number {
  return Math.ceil(bytes / 2 ** 20);
}
