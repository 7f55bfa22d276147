/**
 * Rows of floats to rows of bytes for products in int8: what makes a row, its rotation (runtime/graph/hadamard.ts has
 * the plain form), its largest element, and the bytes around 128. Each row by itself, so that what it gives does not
 * depend on the rows beside it.
 *
 * Rows lie one after the other. `width` is any number; vectors of four are used as far as they go.
 */
import { exp4, madd, maxLanes, sumLanes } from './lib/math';

/** Blocks of more elements cost more passes than the spreading of outliers is worth. */
const largestBlock: i32 = 512;

/** Rotates and quantizes `rows` rows at x, which are overwritten, to bytes and one step's size a row. */
export function quantizeRows(x: usize, rows: i32, width: i32, values: usize, steps: usize): void {
  for (let row = 0; row < rows; row++) {
    store<f32>(steps, quantize(x, width, values, rotate(x, width)));
    x += <usize>width << 2;
    values += <usize>width;
    steps += 4;
  }
}

/** The same for the RMS norm of x + residual; the sums take the place of x, the norms that of the residual. */
export function quantizeAddNorm(
  x: usize,
  residual: usize,
  weight: usize,
  epsilon: f32,
  rows: i32,
  width: i32,
  values: usize,
  steps: usize,
): void {
  for (let row = 0; row < rows; row++) {
    addNorm(x, residual, weight, epsilon, width);
    store<f32>(steps, quantize(residual, width, values, rotate(residual, width)));
    x += <usize>width << 2;
    residual += <usize>width << 2;
    values += <usize>width;
    steps += 4;
  }
}

/**
 * The same for silu(gate) * up, which takes the place of the gate. A row of `products` is [gate, up], 2 * width
 * numbers, to be multiplied by the row's scale first.
 */
export function quantizeGated(
  products: usize,
  scales: usize,
  rows: i32,
  width: i32,
  values: usize,
  steps: usize,
): void {
  for (let row = 0; row < rows; row++) {
    gate(products, products + (<usize>width << 2), load<f32>(scales), width);
    store<f32>(steps, quantize(products, width, values, rotate(products, width)));
    products += <usize>width << 3;
    scales += 4;
    values += <usize>width;
    steps += 4;
  }
}

function addNorm(x: usize, residual: usize, weight: usize, epsilon: f32, width: i32): void {
  const end = x + (<usize>width << 2);
  const vectors = x + (<usize>(width & ~3) << 2);
  const toResidual = residual - x;
  let squares = f32x4.splat(0.0);
  let at = x;
  for (; at < vectors; at += 16) {
    const sum = f32x4.add(v128.load(at), v128.load(at + toResidual));
    v128.store(at, sum);
    squares = madd(sum, sum, squares);
  }
  let total = sumLanes(squares);
  for (; at < end; at += 4) {
    const sum = load<f32>(at) + load<f32>(at + toResidual);
    store<f32>(at, sum);
    total += sum * sum;
  }
  const scale: f32 = 1.0 / sqrt<f32>(total / <f32>width + epsilon);
  const scales = f32x4.splat(scale);
  const toWeight = weight - x;
  for (at = x; at < vectors; at += 16) {
    v128.store(at + toResidual, f32x4.mul(f32x4.mul(v128.load(at), scales), v128.load(at + toWeight)));
  }
  for (; at < end; at += 4) store<f32>(at + toResidual, load<f32>(at) * scale * load<f32>(at + toWeight));
}

// @ts-ignore: decorator
@inline
function gated(gate: v128, up: v128, scales: v128): v128 {
  const x = f32x4.mul(gate, scales);
  // Beyond 87 the quotient is 0 as far as floats go.
  const e = exp4(f32x4.relaxed_min(f32x4.splat(87.0), f32x4.neg(x)));
  return f32x4.div(f32x4.mul(x, f32x4.mul(up, scales)), f32x4.add(e, f32x4.splat(1.0)));
}

function gate(gates: usize, ups: usize, scale: f32, width: i32): void {
  const scales = f32x4.splat(scale);
  const end = gates + (<usize>width << 2);
  const toUp = ups - gates;
  let at = gates;
  for (; at + 16 <= end; at += 16) v128.store(at, gated(v128.load(at), v128.load(at + toUp), scales));
  for (; at < end; at += 4) {
    const one = gated(f32x4.splat(load<f32>(at)), f32x4.splat(load<f32>(at + toUp)), scales);
    store<f32>(at, f32x4.extract_lane(one, 0));
  }
}

/** Rotates a row in place, block by block. Returns the largest magnitude. */
function rotate(row: usize, width: i32): f32 {
  let largest: f32 = 0.0;
  for (let left = width; left > 0; ) {
    let size = largestBlock;
    while (size > left) size >>= 1;
    largest = max(largest, size >= 16 ? rotateBlock(row, size) : rotateSmall(row, size));
    row += <usize>size << 2;
    left -= size;
  }
  return largest;
}

/** The sums and differences of neighbours within a vector. */
// @ts-ignore: decorator
@inline
function within(v: v128): v128 {
  const odd = i32x4(0, i32.MIN_VALUE, 0, i32.MIN_VALUE);
  const upper = i32x4(0, 0, i32.MIN_VALUE, i32.MIN_VALUE);
  v = f32x4.add(v128.xor(v, odd), i8x16.shuffle(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  return f32x4.add(
    v128.xor(v, upper),
    i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7),
  );
}

/** Two levels at once over four vectors that lie `stride` bytes apart. */
// @ts-ignore: decorator
@inline
function across(at: usize, stride: usize): void {
  const v0 = v128.load(at);
  const v1 = v128.load(at + stride);
  const v2 = v128.load(at + 2 * stride);
  const v3 = v128.load(at + 3 * stride);
  const a = f32x4.add(v0, v1);
  const b = f32x4.sub(v0, v1);
  const c = f32x4.add(v2, v3);
  const d = f32x4.sub(v2, v3);
  v128.store(at, f32x4.add(a, c));
  v128.store(at + stride, f32x4.add(b, d));
  v128.store(at + 2 * stride, f32x4.sub(a, c));
  v128.store(at + 3 * stride, f32x4.sub(b, d));
}

/** A block of 16 and more elements. */
function rotateBlock(block: usize, size: i32): f32 {
  const end = block + (<usize>size << 2);
  for (let at = block; at < end; at += 64) {
    const v0 = within(v128.load(at));
    const v1 = within(v128.load(at + 16));
    const v2 = within(v128.load(at + 32));
    const v3 = within(v128.load(at + 48));
    const a = f32x4.add(v0, v1);
    const b = f32x4.sub(v0, v1);
    const c = f32x4.add(v2, v3);
    const d = f32x4.sub(v2, v3);
    v128.store(at, f32x4.add(a, c));
    v128.store(at + 16, f32x4.add(b, d));
    v128.store(at + 32, f32x4.sub(a, c));
    v128.store(at + 48, f32x4.sub(b, d));
  }
  // Bytes between the two halves of what comes next.
  let stride: usize = 64;
  for (; block + 4 * stride <= end; stride <<= 2) {
    for (let group = block; group < end; group += 4 * stride) {
      for (let at = group; at < group + stride; at += 16) across(at, stride);
    }
  }
  const factor = f32x4.splat(1.0 / sqrt<f32>(<f32>size));
  let largest = f32x4.splat(0.0);
  if (block + 2 * stride <= end) {
    for (let at = block; at < block + stride; at += 16) {
      const v0 = v128.load(at);
      const v1 = v128.load(at + stride);
      const sum = f32x4.mul(f32x4.add(v0, v1), factor);
      const difference = f32x4.mul(f32x4.sub(v0, v1), factor);
      v128.store(at, sum);
      v128.store(at + stride, difference);
      largest = f32x4.relaxed_max(largest, f32x4.relaxed_max(f32x4.abs(sum), f32x4.abs(difference)));
    }
  } else {
    for (let at = block; at < end; at += 16) {
      const v = f32x4.mul(v128.load(at), factor);
      v128.store(at, v);
      largest = f32x4.relaxed_max(largest, f32x4.abs(v));
    }
  }
  return maxLanes(largest);
}

/** A block of 1, 2, 4 or 8 elements. */
function rotateSmall(block: usize, size: i32): f32 {
  for (let half = 1; half < size; half <<= 1) {
    for (let i = 0; i < size; i++) {
      if (i & half) continue;
      const at = block + (<usize>i << 2);
      const other = at + (<usize>half << 2);
      const a = load<f32>(at);
      const b = load<f32>(other);
      store<f32>(at, a + b);
      store<f32>(other, a - b);
    }
  }
  const factor: f32 = 1.0 / sqrt<f32>(<f32>size);
  let largest: f32 = 0.0;
  for (let i = 0; i < size; i++) {
    const at = block + (<usize>i << 2);
    const v = load<f32>(at) * factor;
    store<f32>(at, v);
    largest = max(largest, abs<f32>(v));
  }
  return largest;
}

/** Returns the size of a step. A row of zeros has one too. */
function quantize(row: usize, width: i32, values: usize, largest: f32): f32 {
  const range: f32 = max<f32>(largest, 1e-20);
  const inverse: f32 = <f32>127.0 / range;
  const inverses = f32x4.splat(inverse);
  const end = row + (<usize>width << 2);
  for (; row + 64 <= end; row += 64) {
    const low = i16x8.narrow_i32x4_s(whole(row, inverses), whole(row + 16, inverses));
    const high = i16x8.narrow_i32x4_s(whole(row + 32, inverses), whole(row + 48, inverses));
    // Adding 128 turns the highest bit.
    v128.store(values, v128.xor(i8x16.narrow_i16x8_s(low, high), i8x16.splat(-128)));
    values += 16;
  }
  for (; row < end; row += 4) {
    store<u8>(values++, <u8>(<i32>nearest<f32>(load<f32>(row) * inverse) + 128));
  }
  return range / <f32>127.0;
}

// @ts-ignore: decorator
@inline
function whole(at: usize, inverses: v128): v128 {
  return i32x4.relaxed_trunc_f32x4_s(f32x4.nearest(f32x4.mul(v128.load(at), inverses)));
}
