/**
 * A row of logits as whoever makes it and whoever samples from it see it, and what a logit weighs. Free for every room.
 *
 * A weight is 2^((logit - the row's greatest) * scale) in float32, rounded to a multiple of 2^-34. Sums of up to 2^18
 * of them are exact in float64, so a row in pieces, each summed by another thread in any order, gives the very sums, and
 * with them the very tokens, that the row gives in one piece.
 */

/** How the logits of a row become weights. All numbers are float32. */
export interface Weighing {
  /** log2(e) over the temperature. */
  readonly scale: number;
  /** Logits further than this below the row's greatest weigh nothing; -Infinity: all weigh. At most 0. */
  readonly below: number;
  /** Whether the heaviest will be asked for: `heaviest` in place of `pick`. */
  readonly nucleus: boolean;
}

/** The heaviest ids of a row, ascending, in memory of whoever asks for them. */
export interface Candidates {
  readonly ids: Int32Array;
  /** Not yet rounded: sums are of their `roundWeight`. */
  readonly weights: Float32Array;
  count: number;
  /** Candidates from this weight on together weigh `heavier`, less than what was asked for; with the rest it is reached. */
  bound: number;
  heavier: number;
}

export interface LogitsRow {
  readonly size: number;
  at(id: number): number;
  /** The first of the greatest; -1 where nothing is above -Infinity. */
  greatest(): number;
  /** The first id from `start` on whose logit exceeds `least`, or `size`. */
  nextAbove(start: number, least: number): number;
  /** ln of the sum of e^logit, within 1e-6. */
  logSumExp(): number;
  /** Weighs every logit and returns the sum. `pick` and `heaviest` are about the last weighing. */
  weigh(weighing: Weighing): number;
  /** The id in whose part `mass` falls when the weights lie side by side by id; `mass` is less than their sum. */
  pick(mass: number): number;
  /** Finds ids that hold the heaviest of together at least `mass`: all of them and a few more. */
  heaviest(mass: number, into: Candidates): void;
  /** The row in one piece, which its reader may change; valid until the next copy of any row. */
  copy(): { readonly values: Float32Array; readonly row: LogitsRow };
}

const { fround } = Math;

/** Adding and subtracting it rounds a float64 to a multiple of 2^-34. */
const rounding = 1.5 * 2 ** 18;
/** Adding and subtracting it rounds a float32 to an integer. */
const integer = 1.5 * 2 ** 23;

/** 2^f for |f| <= 1/2 as 1 + f * polynomial, within 2e-7: Cephes' exp2f (Moshier, netlib.org/cephes). */
const coefficients = [1.5353362e-4, 1.3398874e-3, 9.6184373e-3, 5.5503324e-2, 2.40226479e-1, 6.931472e-1].map(
  fround,
);

/** Of the logit `max + difference`; float32, not yet rounded to 2^-34. The kernel wasm/logits.ts gives the same bits. */
export function floatWeight(difference: number, scale: number): number {
  const x = Math.max(fround(difference * scale), -126);
  const whole = fround(fround(x + integer) - integer);
  const rest = fround(x - whole);
  let sum = 0;
  for (const coefficient of coefficients) sum = fround(fround(sum * rest) + coefficient);
  return fround(fround(fround(sum * rest) + 1) * 2 ** whole);
}

export function roundWeight(weight: number): number {
  return weight + rounding - rounding;
}

/** The least logit that weighs anything. */
export function leastLogit(max: number, { below }: Weighing): number {
  return fround(max + below);
}

/** Weights are told apart by their leading bits when the heaviest are looked for: 32 kinds an octave, 36 octaves. */
export const bucketCount = 1152;

const bits = new DataView(new ArrayBuffer(4));

/** Falls as the weight rises; 0 for weight 1. */
export function bucketOf(weight: number): number {
  bits.setFloat32(0, weight);
  return Math.min(bucketCount - 1, (0x3f800000 - bits.getInt32(0)) >> 18);
}

/** The least weight of a bucket. */
export function bucketBound(bucket: number): number {
  if (bucket >= bucketCount - 1) return 0;
  bits.setInt32(0, 0x3f800000 - ((bucket + 1) << 18) + 1);
  return bits.getFloat32(0);
}
