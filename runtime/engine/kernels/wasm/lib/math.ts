/**
 * Vector arithmetic shared by the kernels: fused multiply-add, exponential and hyperbolic tangent of four floats.
 */

// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  return f32x4.relaxed_madd(a, b, c);
}

/** exp(x) within 2 units in the last place; exactly 0 below -87. `x` must be at most 88. */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const low = f32x4.splat(-87.0);
  // Single instructions, unlike max and trunc_sat; in this order NaN stays NaN.
  const clamped = f32x4.relaxed_max(low, x);
  const n = f32x4.nearest(f32x4.mul(clamped, f32x4.splat(1.44269504088896341)));
  let r = f32x4.relaxed_nmadd(n, f32x4.splat(0.693359375), clamped);
  r = f32x4.relaxed_nmadd(n, f32x4.splat(-2.12194440e-4), r);
  let p = f32x4.splat(1.9875691500e-4);
  p = madd(p, r, f32x4.splat(1.3981999507e-3));
  p = madd(p, r, f32x4.splat(8.3334519073e-3));
  p = madd(p, r, f32x4.splat(4.1665795894e-2));
  p = madd(p, r, f32x4.splat(1.6666665459e-1));
  p = madd(p, r, f32x4.splat(5.0000001201e-1));
  p = madd(p, f32x4.mul(r, r), f32x4.add(r, f32x4.splat(1.0)));
  const power = i32x4.shl(i32x4.add(i32x4.relaxed_trunc_f32x4_s(n), i32x4.splat(127)), 23);
  return v128.andnot(f32x4.mul(p, power), f32x4.lt(x, low));
}

/** tanh(x) for any finite x. */
// @ts-ignore: decorator
@inline
export function tanh4(x: v128): v128 {
  const one = f32x4.splat(1.0);
  const e = exp4(f32x4.min(f32x4.mul(x, f32x4.splat(2.0)), f32x4.splat(80.0)));
  return f32x4.sub(one, f32x4.div(f32x4.splat(2.0), f32x4.add(e, one)));
}

// @ts-ignore: decorator
@inline
export function sumLanes(x: v128): f32 {
  const a = f32x4.add(x, i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return f32x4.extract_lane(a, 0) + f32x4.extract_lane(a, 1);
}

// @ts-ignore: decorator
@inline
export function maxLanes(x: v128): f32 {
  const a = f32x4.max(x, i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  return max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1));
}
