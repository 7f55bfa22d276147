/**
 * What sampling asks of a piece of a row of logits: `count` floats at `at`. Weights are those of runtime/logits.ts, to the
 * bit, so nothing here may use relaxed instructions. Results that are not returned go to `result`.
 */

const chunk: i32 = 256;
const buckets: i32 = 1152;

// @ts-ignore: decorator
@inline
const log2e: f32 = 1.44269504088896341;

/** A value below every number, and below -Infinity's own weight class: nothing was found. */
// @ts-ignore: decorator
@inline
const nothing: f32 = -Infinity;

// @ts-ignore: decorator
@inline
function weights(logits: v128, max: v128, scale: v128): v128 {
  const x = f32x4.max(f32x4.mul(f32x4.sub(logits, max), scale), f32x4.splat(-126.0));
  const integer = f32x4.splat(12582912.0);
  const whole = f32x4.sub(f32x4.add(x, integer), integer);
  const rest = f32x4.sub(x, whole);
  let sum = f32x4.splat(1.5353362e-4);
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(1.3398874e-3));
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(9.6184373e-3));
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(5.5503324e-2));
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(2.40226479e-1));
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(6.931472e-1));
  sum = f32x4.add(f32x4.mul(sum, rest), f32x4.splat(1.0));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(whole), i32x4.splat(127)), 23);
  return f32x4.mul(sum, power);
}

/** Weights of those that are at least `floor`, 0 for the others and for what is no number. */
// @ts-ignore: decorator
@inline
function weightsFrom(logits: v128, max: v128, scale: v128, floor: v128): v128 {
  return v128.and(weights(logits, max, scale), f32x4.ge(logits, floor));
}

// @ts-ignore: decorator
@inline
function round2(x: v128): v128 {
  const rounding = f64x2.splat(393216.0);
  return f64x2.sub(f64x2.add(x, rounding), rounding);
}

// @ts-ignore: decorator
@inline
function upper(x: v128): v128 {
  return i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
}

/** The last 1 to 3 floats of a piece, the rest of the vector no numbers. */
// @ts-ignore: decorator
@inline
function loadLast(at: usize, count: i32): v128 {
  let last = f32x4.splat(NaN);
  last = f32x4.replace_lane(last, 0, load<f32>(at));
  if (count > 1) last = f32x4.replace_lane(last, 1, load<f32>(at, 4));
  if (count > 2) last = f32x4.replace_lane(last, 2, load<f32>(at, 8));
  return last;
}

// @ts-ignore: decorator
@inline
function loadUpTo4(at: usize, count: i32): v128 {
  return count >= 4 ? v128.load(at) : loadLast(at, count);
}

/** float32 the greatest, int32 its first index, -1 where nothing is above -Infinity. */
export function greatest(at: usize, count: i32, result: usize): void {
  let a = f32x4.splat(nothing);
  let b = a;
  let c = a;
  let d = a;
  let i = 0;
  for (; i <= count - 16; i += 16) {
    const from = at + (<usize>i << 2);
    a = f32x4.pmax(a, v128.load(from));
    b = f32x4.pmax(b, v128.load(from, 16));
    c = f32x4.pmax(c, v128.load(from, 32));
    d = f32x4.pmax(d, v128.load(from, 48));
  }
  for (; i < count; i += 4) a = f32x4.pmax(a, loadUpTo4(at + (<usize>i << 2), count - i));
  a = f32x4.pmax(f32x4.pmax(a, b), f32x4.pmax(c, d));
  const most = max(
    max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)),
    max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)),
  );
  store<f32>(result, most);
  store<i32>(result, most == nothing ? -1 : find(at, 0, count, f32x4.splat(most)), 4);
}

/** The first index from `start` on that holds `least` or more, or `count`. */
// @ts-ignore: decorator
@inline
function find(at: usize, start: i32, count: i32, least: v128): i32 {
  for (let i = start; i < count; i += 4) {
    const mask = i32x4.bitmask(f32x4.ge(loadUpTo4(at + (<usize>i << 2), count - i), least));
    if (mask != 0) return i + ctz(mask);
  }
  return count;
}

/** The first index from `start` on that exceeds `least`, or `count`. */
export function nextAbove(at: usize, start: i32, count: i32, least: f32): i32 {
  const bound = f32x4.splat(least);
  let i = start;
  for (; i <= count - 16; i += 16) {
    const from = at + (<usize>i << 2);
    const a = v128.or(f32x4.gt(v128.load(from), bound), f32x4.gt(v128.load(from, 16), bound));
    const b = v128.or(f32x4.gt(v128.load(from, 32), bound), f32x4.gt(v128.load(from, 48), bound));
    if (v128.any_true(v128.or(a, b))) break;
  }
  for (; i < count; i += 4) {
    const mask = i32x4.bitmask(f32x4.gt(loadUpTo4(at + (<usize>i << 2), count - i), bound));
    if (mask != 0) return i + ctz(mask);
  }
  return count;
}

/** The sum of e^(logit - max), float64. */
export function sumExponentials(at: usize, count: i32, max: f32): f64 {
  const max4 = f32x4.splat(max);
  const scale = f32x4.splat(log2e);
  const floor = f32x4.splat(nothing);
  let sum = f64x2.splat(0.0);
  for (let i = 0; i < count; i += 4) {
    const w = weightsFrom(loadUpTo4(at + (<usize>i << 2), count - i), max4, scale, floor);
    sum = f64x2.add(sum, f64x2.add(f64x2.promote_low_f32x4(w), f64x2.promote_low_f32x4(upper(w))));
  }
  return f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
}

/** float64 [chunks of 256]: the sums of their weights. Returns the sum of all. */
export function weigh(at: usize, count: i32, max: f32, scale: f32, floor: f32, result: usize): f64 {
  const max4 = f32x4.splat(max);
  const scale4 = f32x4.splat(scale);
  const floor4 = f32x4.splat(floor);
  let total: f64 = 0.0;
  for (let first = 0; first < count; first += chunk) {
    const end = min(first + chunk, count);
    let a = f64x2.splat(0.0);
    let b = a;
    for (let i = first; i < end; i += 4) {
      const w = weightsFrom(loadUpTo4(at + (<usize>i << 2), end - i), max4, scale4, floor4);
      a = f64x2.add(a, round2(f64x2.promote_low_f32x4(w)));
      b = f64x2.add(b, round2(f64x2.promote_low_f32x4(upper(w))));
    }
    const sum = f64x2.add(a, b);
    const mass = f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
    store<f64>(result + (<usize>(first / chunk) << 3), mass);
    total += mass;
  }
  return total;
}

// @ts-ignore: decorator
@inline
function addTo(result: usize, bucket: i32, weight: f64): void {
  const slot = result + (<usize>bucket << 3);
  store<f64>(slot, load<f64>(slot) + weight);
}

/** float64 [1152]: the sum of the weights of each bucket. Returns the sum of all. */
export function fillBuckets(at: usize, count: i32, max: f32, scale: f32, floor: f32, result: usize): f64 {
  memory.fill(result, 0, <usize>buckets << 3);
  const max4 = f32x4.splat(max);
  const scale4 = f32x4.splat(scale);
  const floor4 = f32x4.splat(floor);
  const one = i32x4.splat(0x3f800000);
  const last = i32x4.splat(buckets - 1);
  let sum = f64x2.splat(0.0);
  for (let i = 0; i < count; i += 4) {
    const w = weightsFrom(loadUpTo4(at + (<usize>i << 2), count - i), max4, scale4, floor4);
    const bucket = i32x4.min_s(i32x4.shr_s(i32x4.sub(one, w), 18), last);
    const a = round2(f64x2.promote_low_f32x4(w));
    const b = round2(f64x2.promote_low_f32x4(upper(w)));
    const both = f64x2.add(a, b);
    // Most of a row weighs nothing at low temperatures.
    if (!v128.any_true(both)) continue;
    sum = f64x2.add(sum, both);
    addTo(result, i32x4.extract_lane(bucket, 0), f64x2.extract_lane(a, 0));
    addTo(result, i32x4.extract_lane(bucket, 1), f64x2.extract_lane(a, 1));
    addTo(result, i32x4.extract_lane(bucket, 2), f64x2.extract_lane(b, 0));
    addTo(result, i32x4.extract_lane(bucket, 3), f64x2.extract_lane(b, 1));
  }
  return f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
}

/** The index in [start, end) in whose weight `mass` falls; the last that weighs anything where it falls beyond, or -1. */
export function pick(
  at: usize,
  start: i32,
  end: i32,
  max: f32,
  scale: f32,
  floor: f32,
  mass: f64,
): i32 {
  const max4 = f32x4.splat(max);
  const scale4 = f32x4.splat(scale);
  const floor4 = f32x4.splat(floor);
  let left = mass;
  let last = -1;
  for (let i = start; i < end; i++) {
    const w = weightsFrom(f32x4.splat(load<f32>(at + (<usize>i << 2))), max4, scale4, floor4);
    const weight = f64x2.extract_lane(round2(f64x2.promote_low_f32x4(w)), 0);
    if (weight > 0.0) last = i;
    left -= weight;
    if (left < 0.0) return i;
  }
  return last;
}

/**
 * int32 `ids` and float32 `found`: those of weight `least` or more, ascending, `first` added to each index. `threshold` is
 * below the logit of any of them. Returns how many there are.
 */
export function collect(
  at: usize,
  count: i32,
  first: i32,
  max: f32,
  scale: f32,
  floor: f32,
  threshold: f32,
  least: f32,
  ids: usize,
  found: usize,
): i32 {
  const max4 = f32x4.splat(max);
  const scale4 = f32x4.splat(scale);
  const floor4 = f32x4.splat(floor);
  const least4 = f32x4.splat(least);
  const threshold4 = f32x4.splat(threshold);
  let size: usize = 0;
  for (let i = 0; i < count; i += 4) {
    const logits = loadUpTo4(at + (<usize>i << 2), count - i);
    if (!v128.any_true(f32x4.ge(logits, threshold4))) continue;
    const passed = f32x4.ge(logits, floor4);
    const w = v128.and(weights(logits, max4, scale4), passed);
    const mask = i32x4.bitmask(v128.and(f32x4.ge(w, least4), passed));
    for (let rest = mask; rest != 0; rest &= rest - 1) {
      const lane = ctz(rest);
      store<i32>(ids + size, first + i + lane);
      store<f32>(
        found + size,
        lane == 0
          ? f32x4.extract_lane(w, 0)
          : lane == 1
            ? f32x4.extract_lane(w, 1)
            : lane == 2
              ? f32x4.extract_lane(w, 2)
              : f32x4.extract_lane(w, 3),
      );
      size += 4;
    }
  }
  return <i32>(size >> 2);
}
