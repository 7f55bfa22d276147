/**
 * What the attention kernel computes, written plainly: no pages, no tiles, double precision sums. Tests compare the
 * kernel with it. Enters: every sequence's keys and values so far, as rows. Leaves: rows of outputs.
 */

/** Bytes of an element of keys and values as pages keep them. */
export const elementBytes = { float32: 4, bfloat16: 2, int8: 1 } as const;
export type KvDType = keyof typeof elementBytes;

export interface AttentionShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /**
   * Query heads of the model to a KV head, and which of them the first query head here is: a rank may hold a part of the
   * first and of the last KV head's. Default: heads / kvHeads, and 0.
   */
  readonly group?: number;
  readonly firstInGroup?: number;
  /** Leading dimensions of each head that are rotated, in pairs (i, i + rotaryDim / 2); even, 0 for none. */
  readonly rotaryDim: number;
  /** Multiplies q. */
  readonly scale: number;
  /** Row i attends to at most this many positions, itself included; 0: all. */
  readonly window: number;
  /** Scores become softcap * tanh(score / softcap); 0: as they are. */
  readonly softcap: number;
}

/** The query heads [start, end) that attend to KV head `kv`. */
export function headsOfKv(
  shape: AttentionShape,
  kv: number,
): { readonly start: number; readonly end: number } {
  const { heads, kvHeads, group = heads / kvHeads, firstInGroup = 0 } = shape;
  const start = Math.max(0, kv * group - firstInGroup);
  return { start, end: Math.min(heads, (kv + 1) * group - firstInGroup) };
}

/** Rotates one head in place by `angles`, cos[rotaryDim / 2] then sin[rotaryDim / 2]; rounded as float32 rounds. */
export function rotateReference(head: Float32Array, rotaryDim: number, angles: ArrayLike<number>): void {
  const half = rotaryDim / 2;
  for (let i = 0; i < half; i++) {
    const a = head[i]!;
    const b = head[i + half]!;
    const cos = angles[i]!;
    const sin = angles[i + half]!;
    head[i] = Math.fround(a * cos) - Math.fround(b * sin);
    head[i + half] = Math.fround(b * cos) + Math.fround(a * sin);
  }
}

/** What a page gives back of one head's k or v: rounded to bfloat16, or to 255 steps of its largest value. */
export function storeReference(head: Float32Array, dtype: 'float32' | 'bfloat16' | 'int8'): void {
  if (dtype === 'bfloat16') {
    const bits = new Uint32Array(head.buffer, head.byteOffset, head.length);
    for (const [i, word] of bits.entries()) bits[i] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
  } else if (dtype === 'int8') {
    const scale = Math.fround(Math.max(...head.map(Math.abs)) / 127);
    const inverse = scale > 0 ? Math.fround(1 / scale) : 0;
    for (const [i, value] of head.entries()) {
      const steps = Math.fround(value * inverse);
      const low = Math.floor(steps);
      const even = low % 2 === 0 ? low : low + 1;
      head[i] = (steps - low === 0.5 ? even : Math.round(steps)) * scale;
    }
  }
}

/**
 * One slice. `q` is [rows, heads, headDim] already rotated; `k` and `v` are [position + rows, kvHeads, headDim], `k`
 * rotated. Answers [rows, heads, headDim].
 */
export function attendReference(
  shape: AttentionShape,
  rows: number,
  position: number,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
): Float32Array {
  const { heads, kvHeads, headDim, scale, window, softcap } = shape;
  const { group = heads / kvHeads, firstInGroup = 0 } = shape;
  const out = new Float32Array(rows * heads * headDim);
  for (let i = 0; i < rows; i++) {
    const end = position + i + 1;
    const start = window > 0 ? Math.max(0, end - window) : 0;
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor((h + firstInGroup) / group);
      const scores: number[] = [];
      for (let t = start; t < end; t++) {
        let dot = 0;
        for (let d = 0; d < headDim; d++) {
          dot += q[(i * heads + h) * headDim + d]! * k[(t * kvHeads + kv) * headDim + d]!;
        }
        dot *= scale;
        scores.push(softcap > 0 ? softcap * Math.tanh(dot / softcap) : dot);
      }
      const highest = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - highest));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      for (let d = 0; d < headDim; d++) {
        let sum = 0;
        for (let t = start; t < end; t++) sum += weights[t - start]! * v[(t * kvHeads + kv) * headDim + d]!;
        out[(i * heads + h) * headDim + d] = sum / total;
      }
    }
  }
  return out;
}
