/**
 * A page holds blockTokens tokens of one layer, for every KV head: K as [headDim][blockTokens], V as
 * [blockTokens][vStride] (headDim rounded up to 8), and for int8 one float scale per token for K and one for V.
 * T is the element: f32, u16 (bfloat16), i8. For attention in integers (../../x64/attention-int8.ts) int8 lies in fours of
 * what is summed over: K as [headDim / 4][blockTokens][4], V as [blockTokens / 4][headDim][4].
 */

/** Elements from one token's V to the next. */
// @ts-ignore: decorator
@inline
export function vStride(headDim: i32): i32 {
  return (headDim + 7) & ~7;
}

// @ts-ignore: decorator
@inline
export function headBytes<T>(headDim: i32, blockTokens: i32): usize {
  const elements = <usize>((headDim + vStride(headDim)) * blockTokens) * sizeof<T>();
  return sizeof<T>() == 1 ? elements + <usize>blockTokens * 8 : elements;
}

/** Offset of V behind K within a head. */
// @ts-ignore: decorator
@inline
export function valuesOffset<T>(headDim: i32, blockTokens: i32): usize {
  return <usize>(headDim * blockTokens) * sizeof<T>();
}

/** Offset of the scales within a head: blockTokens for K, then blockTokens for V. */
// @ts-ignore: decorator
@inline
export function scalesOffset<T>(headDim: i32, blockTokens: i32): usize {
  return <usize>((headDim + vStride(headDim)) * blockTokens) * sizeof<T>();
}

/** Four elements as floats. */
// @ts-ignore: decorator
@inline
export function load4<T>(at: usize): v128 {
  if (sizeof<T>() == 4) return v128.load(at);
  if (sizeof<T>() == 2) return i32x4.shl(v128.load16x4_u(at), 16);
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(at))));
}

/** bfloat16 nearest to x, ties to even. */
// @ts-ignore: decorator
@inline
export function toBfloat16(x: f32): u16 {
  const bits = reinterpret<u32>(x);
  return <u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
