/**
 * What attention's machine code is made for and where it finds things: a layer's form, the words of its argument, the memory
 * that it works in. Sizes enter, places leave.
 */
import { sliceWords } from '../../step-message.ts';
import { type AttentionShape, elementBytes, type KvDType } from '../attention-reference.ts';

export interface AttentionForm {
  readonly shape: AttentionShape;
  readonly blockTokens: number;
  readonly dtype: KvDType;
  /** Products of bfloat16 (attention-bfloat16.ts), of sequences of at most so many keys; absent: as the dtype is. */
  readonly bfloat16Keys?: number;
}

/**
 * Places in the array of 64-bit values whose address is the code's argument; the rest is the code's own. `out` may be `q`: a
 * tile's queries are read before its outputs are written, to the same places.
 */
export const attentionArguments = { plan: 0, layer: 1, q: 2, out: 3, work: 4 } as const;
export const attentionSlots = {
  ...attentionArguments,
  slices: 5,
  entry: 6,
  table: 7,
  head: 8,
  headLayer: 9,
  left: 10,
  query: 11,
  position: 12,
  within: 13,
  outAt: 14,
  outPosition: 15,
  outWithin: 16,
  sliceQ: 17,
  sliceOut: 18,
  /** Query heads of the KV head, and the bytes of the others in a row. */
  group: 19,
  others: 20,
  /** The first key that is not packed, and bytes from one key's packed place to the next's. */
  packed: 21,
  packedStep: 22,
} as const;
export const attentionArgumentWords = 24;

/** Bytes of a head's keys in a page, of its keys and values, after which scales lie, and of all. */
export function headLayout({ shape, blockTokens, dtype }: AttentionForm): {
  readonly keys: number;
  readonly scales: number;
  readonly bytes: number;
} {
  const keys = shape.headDim * blockTokens * elementBytes[dtype];
  return { keys, scales: 2 * keys, bytes: 2 * keys + (dtype === 'int8' ? 8 * blockTokens : 0) };
}

export const tileRows = 12;

/** From one slice's entry in the plan to the next's. */
export const sliceBytes = 4 * sliceWords;

/** Whether there is code for the shape: whole vectors of columns, and of keys in a page. */
export function hasAttentionCode({
  shape,
  blockTokens,
}: {
  readonly shape: Pick<AttentionShape, 'heads' | 'headDim' | 'softcap'>;
  readonly blockTokens: number;
}): boolean {
  return shape.heads > 0 && shape.headDim % 16 === 0 && blockTokens >= 16 && shape.softcap === 0;
}

/** Vectors of keys in a chunk. */
export const chunkVectors = 8;
export const chunkKeysOf = (width: 32 | 64): number => (chunkVectors * width) / 4;

const places = {
  /** [rows, headDim] float32, or as many bytes. */
  queries: (headDim: number) => tileRows * headDim * 4,
  /** [rows, headDim]. */
  outputs: (headDim: number) => tileRows * headDim * 4,
  /** [rows, keys of a chunk]. */
  scores: () => tileRows * chunkKeysOf(64) * 4,
  /** [rows, lanes]: what each lane of the weights sums up to. */
  sums: () => tileRows * 64,
  /** The rest is a number for each row: its end and one before its start, its maximum so far and in the chunk. */
  ends: () => 64,
  starts: () => 64,
  maxima: () => 64,
  chunkMaxima: () => 64,
  /** What sums and outputs so far are multiplied by, as the maximum has grown. */
  factors: () => 64,
  /** For integers alone: the chunk's factors; what a query's step stands for, what its products are centred by. */
  chunkFactors: () => 64,
  querySteps: () => 64,
  queryCentres: () => 64,
  /** [keys of a chunk]: one divided by the step of the key's value. */
  valueInverses: () => chunkKeysOf(64) * 4,
  /** [rows, keys of a chunk] bytes. */
  weights: () => tileRows * chunkKeysOf(64),
} as const;

export type WorkPlaces = Readonly<Record<keyof typeof places, number>>;

export function layOutWork(headDim: number): { readonly work: WorkPlaces; readonly bytes: number } {
  let bytes = 0;
  const work: Record<string, number> = {};
  for (const [name, size] of Object.entries(places)) {
    work[name] = bytes;
    bytes += size(headDim);
  }
  return { work: work as WorkPlaces, bytes };
}

/** Bytes that the code works in, at `work`. */
export function attentionWorkBytes({ shape, bfloat16Keys = 0 }: AttentionForm): number {
  const chunkKeys = chunkKeysOf(64);
  const packed = Math.ceil(bfloat16Keys / chunkKeys) * chunkKeys * shape.headDim * 4;
  return layOutWork(shape.headDim).bytes + packed;
}
