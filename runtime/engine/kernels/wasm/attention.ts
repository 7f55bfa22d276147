/**
 * Paged attention for a packed batch of slices on one layer: rotates q and k, stores k and v into pages, and
 * attends causally over each slice's pages. Memory layouts in lib/pages.ts; the reference is ../attention-reference.ts.
 *
 * `plan`, int32: slices, then for each slice: first packed row, rows, position of the first row, where in the plan, in
 * words, its block table starts (block ids), and a word that is not for the kernel.
 * `shape`, 32 bits each: 0 query heads, 1 KV heads, 2 headDim, 3 rotaryDim, 4 blockTokens, 5 window (0: none),
 * 6 scale (f32), 7 softcap (f32, 0: none), 8 / 9 / 10 floats from one packed row to the next in q / k / v,
 * 11 the same in out, 12 query heads of the model to a KV head, 13 which of them the first query head is.
 *
 * The arithmetic of a row does not depend on which other rows are in the batch: chunks of keys start at multiples of
 * 64 positions, and the tiling over rows only shares loads.
 */
import { exp4, madd, maxLanes, sumLanes, tanh4 } from './lib/math';
import { headBytes, load4, scalesOffset, toBfloat16, valuesOffset, vStride } from './lib/pages';

/** Keys per chunk, and bytes of a row of scores. */
const CHUNK: i32 = 64;
const SCORE_ROW: usize = 256;
/** Query rows that walk over a chunk together; the room at `work` is for as many (scratchBytes of paged-attention.ts). */
const TILE: i32 = 32;
const MASKED: f32 = -1e30;

/** Rotates the pairs (i, i + half) of one head by cos[half], sin[half]. */
function rotate(x: usize, table: usize, half: i32): void {
  let i = 0;
  const sines = <usize>half << 2;
  for (; i + 4 <= half; i += 4) {
    const a = x + (<usize>i << 2);
    const b = a + sines;
    const t = table + (<usize>i << 2);
    const c = v128.load(t);
    const s = v128.load(t + sines);
    const x0 = v128.load(a);
    const x1 = v128.load(b);
    v128.store(a, f32x4.sub(f32x4.mul(x0, c), f32x4.mul(x1, s)));
    v128.store(b, f32x4.add(f32x4.mul(x1, c), f32x4.mul(x0, s)));
  }
  for (; i < half; i++) {
    const a = x + (<usize>i << 2);
    const t = table + (<usize>i << 2);
    const c = load<f32>(t);
    const s = load<f32>(t + sines);
    const x0 = load<f32>(a);
    const x1 = load<f32>(a + sines);
    store<f32>(a, x0 * c - x1 * s);
    store<f32>(a + sines, x1 * c + x0 * s);
  }
}

function scaleOf(x: usize, count: i32): f32 {
  let largest: f32 = 0;
  for (let i = 0; i < count; i++) largest = max(largest, abs(load<f32>(x + (<usize>i << 2))));
  return largest / 127;
}

/** Stores one token's k and v of one head at `slot` of a page's head. */
function write<T>(page: usize, slot: i32, k: usize, v: usize, headDim: i32, blockTokens: i32): void {
  const step = <usize>blockTokens * sizeof<T>();
  let to = page + <usize>slot * sizeof<T>();
  let row = page + valuesOffset<T>(headDim, blockTokens) + <usize>(slot * vStride(headDim)) * sizeof<T>();
  if (sizeof<T>() == 4) {
    for (let d = 0; d < headDim; d++) {
      store<f32>(to, load<f32>(k + (<usize>d << 2)));
      to += step;
    }
    memory.copy(row, v, <usize>headDim << 2);
  } else if (sizeof<T>() == 2) {
    for (let d = 0; d < headDim; d++) {
      store<u16>(to, toBfloat16(load<f32>(k + (<usize>d << 2))));
      store<u16>(row, toBfloat16(load<f32>(v + (<usize>d << 2))));
      to += step;
      row += 2;
    }
  } else {
    const scales = page + scalesOffset<T>(headDim, blockTokens) + (<usize>slot << 2);
    const ks = scaleOf(k, headDim);
    const vs = scaleOf(v, headDim);
    store<f32>(scales, ks);
    store<f32>(scales + (<usize>blockTokens << 2), vs);
    const ki: f32 = ks > 0 ? 1 / ks : 0;
    const vi: f32 = vs > 0 ? 1 / vs : 0;
    for (let d = 0; d < headDim; d++) {
      store<i8>(to, <i8>nearest(load<f32>(k + (<usize>d << 2)) * ki));
      store<i8>(row, <i8>nearest(load<f32>(v + (<usize>d << 2)) * vi));
      to += step;
      row += 1;
    }
  }
}

/** Scores of `R` rows against 8 keys: q is [headDim][4] floats, k is [headDim] rows `step` bytes apart. */
// @ts-ignore: decorator
@inline
function scores8<T>(R: i32, q: usize, k: usize, step: usize, headDim: i32, to: usize): void {
  let a0 = f32x4.splat(0), b0 = a0, a1 = a0, b1 = a0, a2 = a0, b2 = a0, a3 = a0, b3 = a0;
  const end = q + (<usize>headDim << 4);
  while (q < end) {
    const x = load4<T>(k);
    const y = load4<T>(k + 4 * sizeof<T>());
    let s = v128.load_splat<u32>(q);
    a0 = madd(s, x, a0);
    b0 = madd(s, y, b0);
    if (R > 1) {
      s = v128.load_splat<u32>(q, 4);
      a1 = madd(s, x, a1);
      b1 = madd(s, y, b1);
    }
    if (R > 2) {
      s = v128.load_splat<u32>(q, 8);
      a2 = madd(s, x, a2);
      b2 = madd(s, y, b2);
    }
    if (R > 3) {
      s = v128.load_splat<u32>(q, 12);
      a3 = madd(s, x, a3);
      b3 = madd(s, y, b3);
    }
    q += 16;
    k += step;
  }
  v128.store(to, a0);
  v128.store(to, b0, 16);
  if (R > 1) {
    v128.store(to, a1, 256);
    v128.store(to, b1, 272);
  }
  if (R > 2) {
    v128.store(to, a2, 512);
    v128.store(to, b2, 528);
  }
  if (R > 3) {
    v128.store(to, a3, 768);
    v128.store(to, b3, 784);
  }
}

/** Adds the weighted values of `count` keys to 8 columns of `R` output rows. */
// @ts-ignore: decorator
@inline
function values8<T>(R: i32, p: usize, v: usize, step: usize, count: i32, out: usize, row: usize): void {
  const o1 = out + row, o2 = o1 + row, o3 = o2 + row;
  let a0 = v128.load(out), b0 = v128.load(out, 16);
  let a1 = a0, b1 = a0, a2 = a0, b2 = a0, a3 = a0, b3 = a0;
  if (R > 1) {
    a1 = v128.load(o1);
    b1 = v128.load(o1, 16);
  }
  if (R > 2) {
    a2 = v128.load(o2);
    b2 = v128.load(o2, 16);
  }
  if (R > 3) {
    a3 = v128.load(o3);
    b3 = v128.load(o3, 16);
  }
  const end = p + (<usize>count << 2);
  while (p < end) {
    const x = load4<T>(v);
    const y = load4<T>(v + 4 * sizeof<T>());
    let s = v128.load_splat<u32>(p);
    a0 = madd(s, x, a0);
    b0 = madd(s, y, b0);
    if (R > 1) {
      s = v128.load_splat<u32>(p, 256);
      a1 = madd(s, x, a1);
      b1 = madd(s, y, b1);
    }
    if (R > 2) {
      s = v128.load_splat<u32>(p, 512);
      a2 = madd(s, x, a2);
      b2 = madd(s, y, b2);
    }
    if (R > 3) {
      s = v128.load_splat<u32>(p, 768);
      a3 = madd(s, x, a3);
      b3 = madd(s, y, b3);
    }
    p += 4;
    v += step;
  }
  v128.store(out, a0);
  v128.store(out, b0, 16);
  if (R > 1) {
    v128.store(o1, a1);
    v128.store(o1, b1, 16);
  }
  if (R > 2) {
    v128.store(o2, a2);
    v128.store(o2, b2, 16);
  }
  if (R > 3) {
    v128.store(o3, a3);
    v128.store(o3, b3, 16);
  }
}

/** Scores of R rows against keys [0, count) of a page, in eights; rows of scores are SCORE_ROW bytes apart. */
function scores<T>(rows: i32, q: usize, k: usize, step: usize, headDim: i32, count: i32, to: usize): void {
  const width: usize = 8 * sizeof<T>();
  const end = to + (<usize>count << 2);
  for (; to < end; to += 32, k += width) {
    if (rows == 4) scores8<T>(4, q, k, step, headDim, to);
    else if (rows == 3) scores8<T>(3, q, k, step, headDim, to);
    else if (rows == 2) scores8<T>(2, q, k, step, headDim, to);
    else scores8<T>(1, q, k, step, headDim, to);
  }
}

function values<T>(rows: i32, p: usize, v: usize, stride: i32, count: i32, out: usize): void {
  const row = <usize>stride << 2;
  const step = <usize>stride * sizeof<T>();
  const end = out + row;
  for (; out < end; out += 32, v += 8 * sizeof<T>()) {
    if (rows == 4) values8<T>(4, p, v, step, count, out, row);
    else if (rows == 3) values8<T>(3, p, v, step, count, out, row);
    else if (rows == 2) values8<T>(2, p, v, step, count, out, row);
    else values8<T>(1, p, v, step, count, out, row);
  }
}

/** Multiplies a row of `count` floats by per-key scales. */
function scaleRow(x: usize, scales: usize, count: i32): void {
  const end = x + (<usize>count << 2);
  for (; x < end; x += 16, scales += 16) v128.store(x, f32x4.mul(v128.load(x), v128.load(scales)));
}

/**
 * Turns a row of scores into weights and updates the row's running maximum and sum (at `state`, two floats).
 * Keys [from, to) of the chunk are visible; `count` (a multiple of 4) are written. Rescales the output row.
 */
function soften(s: usize, from: i32, to: i32, count: i32, softcap: f32, state: usize, out: usize, stride: i32): void {
  const end = s + (<usize>count << 2);
  if (from >= to) {
    for (let p = s; p < end; p += 16) v128.store(p, f32x4.splat(0));
    return;
  }
  if (softcap > 0) {
    const inverse = f32x4.splat(1 / softcap);
    const cap = f32x4.splat(softcap);
    for (let p = s; p < end; p += 16) v128.store(p, f32x4.mul(cap, tanh4(f32x4.mul(v128.load(p), inverse))));
  }
  for (let i = 0; i < from; i++) store<f32>(s + (<usize>i << 2), MASKED);
  for (let i = to; i < count; i++) store<f32>(s + (<usize>i << 2), MASKED);
  let largest = v128.load(s);
  for (let p = s + 16; p < end; p += 16) largest = f32x4.max(largest, v128.load(p));
  const before = load<f32>(state);
  const highest = max(before, maxLanes(largest));
  const shift = f32x4.splat(highest);
  let total = f32x4.splat(0);
  for (let p = s; p < end; p += 16) {
    const e = exp4(f32x4.sub(v128.load(p), shift));
    v128.store(p, e);
    total = f32x4.add(total, e);
  }
  let sum = load<f32>(state, 4);
  if (highest > before) {
    const factor = exp4(f32x4.splat(before - highest));
    sum *= f32x4.extract_lane(factor, 0);
    const last = out + (<usize>stride << 2);
    for (let p = out; p < last; p += 16) v128.store(p, f32x4.mul(v128.load(p), factor));
  }
  store<f32>(state, highest);
  store<f32>(state, sum + sumLanes(total), 4);
}

/** Attention of one slice on one KV head. `q` is the head group's first query head in the slice's first row. */
function slice<T>(
  rows: i32, position: i32, table: usize, layer: usize, page: usize, head: usize, group: i32, headDim: i32,
  blockTokens: i32, window: i32, softcap: f32, q: usize, qRow: usize, out: usize, outRow: usize, work: usize,
): void {
  const stride = vStride(headDim);
  const queries = work;
  const outputs = queries + <usize>(TILE * stride) * 4;
  const state = outputs + <usize>(TILE * stride) * 4;
  const score = state + <usize>TILE * 16;
  const outputRow = <usize>stride << 2;
  const keyStep = <usize>blockTokens * sizeof<T>();
  const valueOffset = valuesOffset<T>(headDim, blockTokens);
  const scaleOffset = scalesOffset<T>(headDim, blockTokens);
  const span = min(blockTokens, CHUNK);
  const all = rows * group;
  for (let first = 0; first < all; first += TILE) {
    const tile = min(TILE, all - first);
    // Queries in groups of four, transposed; running state and outputs cleared.
    memory.fill(outputs, 0, <usize>(tile * stride) << 2);
    for (let r = 0; r < tile; r++) {
      const i = (first + r) / group;
      const from = q + <usize>i * qRow + (<usize>((first + r - i * group) * headDim) << 2);
      let to = queries + <usize>(r >> 2) * (<usize>stride << 4) + (<usize>(r & 3) << 2);
      for (let d = 0; d < headDim; d++, to += 16) store<f32>(to, load<f32>(from + (<usize>d << 2)));
      store<f32>(state + (<usize>r << 3), MASKED);
      store<f32>(state + (<usize>r << 3), 0, 4);
    }
    const context = position + (first + tile - 1) / group + 1;
    const oldest = window > 0 ? max(0, position + first / group + 1 - window) : 0;
    for (let chunk = oldest & ~(CHUNK - 1); chunk < context; chunk += CHUNK) {
      for (let base = 0; base < tile; base += 4) {
        const R = min(4, tile - base);
        const lastEnd = position + (first + base + R - 1) / group + 1;
        const firstStart = window > 0 ? max(0, position + (first + base) / group + 1 - window) : 0;
        // Keys of the chunk that some row of the four sees.
        const to = min(CHUNK, lastEnd - chunk);
        const from = max(0, firstStart - chunk);
        if (from >= to) continue;
        const count = (to + 3) & ~3;
        for (let at = 0; at < to; at += span) {
          const key = chunk + at;
          const slot = key & (blockTokens - 1);
          const block = load<i32>(table + (<usize>(key / blockTokens) << 2));
          const base4 = layer + <usize>block * page + head;
          const n = (min(span, to - at) + 7) & ~7;
          const s = score + (<usize>at << 2);
          scores<T>(R, queries + <usize>(base >> 2) * (<usize>stride << 4), base4 + <usize>slot * sizeof<T>(), keyStep, headDim, n, s);
          if (sizeof<T>() == 1) {
            const scales = base4 + scaleOffset + (<usize>slot << 2);
            for (let r = 0; r < R; r++) scaleRow(s + <usize>r * SCORE_ROW, scales, n);
          }
        }
        for (let r = 0; r < R; r++) {
          const end = position + (first + base + r) / group + 1;
          const start = window > 0 ? max(0, end - window) : 0;
          soften(
            score + <usize>r * SCORE_ROW, max(0, start - chunk), min(CHUNK, end - chunk), count, softcap,
            state + (<usize>(base + r) << 3), outputs + <usize>(base + r) * outputRow, stride,
          );
        }
        // Only keys that some row sees: what lies behind them in the page may be another sequence's leftovers.
        for (let at = 0; at < to; at += span) {
          if (at + span <= from) continue;
          const key = chunk + at;
          const slot = key & (blockTokens - 1);
          const block = load<i32>(table + (<usize>(key / blockTokens) << 2));
          const base4 = layer + <usize>block * page + head;
          const n = min(span, to - at);
          const s = score + (<usize>at << 2);
          if (sizeof<T>() == 1) {
            const scales = base4 + scaleOffset + (<usize>(blockTokens + slot) << 2);
            for (let r = 0; r < R; r++) scaleRow(s + <usize>r * SCORE_ROW, scales, (n + 3) & ~3);
          }
          values<T>(
            R, s, base4 + valueOffset + <usize>(slot * stride) * sizeof<T>(), stride, n,
            outputs + <usize>base * outputRow,
          );
        }
      }
    }
    for (let r = 0; r < tile; r++) {
      const i = (first + r) / group;
      const to = out + <usize>i * outRow + (<usize>((first + r - i * group) * headDim) << 2);
      const from = outputs + <usize>r * outputRow;
      const inverse: f32 = 1 / load<f32>(state + (<usize>r << 3), 4);
      for (let d = 0; d < headDim; d++) {
        store<f32>(to + (<usize>d << 2), load<f32>(from + (<usize>d << 2)) * inverse);
      }
    }
  }
}

/** The first half of `attend`: queries are rotated and scaled, keys and values stored. */
function prepare<T>(plan: usize, shape: usize, layer: usize, q: usize, k: usize, v: usize, rope: usize): void {
  const heads = load<i32>(shape), kvHeads = load<i32>(shape, 4), headDim = load<i32>(shape, 8);
  const rotary = load<i32>(shape, 12), blockTokens = load<i32>(shape, 16);
  const scale = load<f32>(shape, 24);
  const qRow = <usize>load<i32>(shape, 32) << 2, kRow = <usize>load<i32>(shape, 36) << 2;
  const vRow = <usize>load<i32>(shape, 40) << 2;
  const head = headBytes<T>(headDim, blockTokens);
  const page = head * <usize>kvHeads;
  const headRow = <usize>headDim << 2;
  const slices = load<i32>(plan);
  for (let n = 0; n < slices; n++) {
    const entry = plan + 4 + <usize>(n * 20);
    const row = <usize>load<i32>(entry), rows = load<i32>(entry, 4);
    const position = load<i32>(entry, 8);
    const table = plan + (<usize>load<i32>(entry, 12) << 2);
    const sliceQ = q + row * qRow;
    for (let i = 0; i < rows; i++) {
      const angles = rope + (row + <usize>i) * (<usize>rotary << 2);
      let x = sliceQ + <usize>i * qRow;
      for (let h = 0; h < heads; h++, x += headRow) {
        if (rotary > 0) rotate(x, angles, rotary >> 1);
        let d = 0;
        for (; d + 4 <= headDim; d += 4) {
          const at = x + (<usize>d << 2);
          v128.store(at, f32x4.mul(v128.load(at), f32x4.splat(scale)));
        }
        for (; d < headDim; d++) {
          const at = x + (<usize>d << 2);
          store<f32>(at, load<f32>(at) * scale);
        }
      }
      const key = position + i;
      let to = layer + <usize>load<i32>(table + (<usize>(key / blockTokens) << 2)) * page;
      x = k + (row + <usize>i) * kRow;
      let y = v + (row + <usize>i) * vRow;
      for (let h = 0; h < kvHeads; h++, x += headRow, y += headRow, to += head) {
        if (rotary > 0) rotate(x, angles, rotary >> 1);
        write<T>(to, key & (blockTokens - 1), x, y, headDim, blockTokens);
      }
    }
  }
}

function attend<T>(
  plan: usize, shape: usize, layer: usize, q: usize, k: usize, v: usize, rope: usize, out: usize, work: usize,
): void {
  prepare<T>(plan, shape, layer, q, k, v, rope);
  const heads = load<i32>(shape), kvHeads = load<i32>(shape, 4), headDim = load<i32>(shape, 8);
  const blockTokens = load<i32>(shape, 16), window = load<i32>(shape, 20);
  const softcap = load<f32>(shape, 28);
  const qRow = <usize>load<i32>(shape, 32) << 2, outRow = <usize>load<i32>(shape, 44) << 2;
  const group = load<i32>(shape, 48), firstInGroup = load<i32>(shape, 52);
  const head = headBytes<T>(headDim, blockTokens);
  const page = head * <usize>kvHeads;
  const headRow = <usize>headDim << 2;
  const slices = load<i32>(plan);
  for (let n = 0; n < slices; n++) {
    const entry = plan + 4 + <usize>(n * 20);
    const row = <usize>load<i32>(entry), rows = load<i32>(entry, 4);
    const position = load<i32>(entry, 8);
    const table = plan + (<usize>load<i32>(entry, 12) << 2);
    for (let h = 0; h < kvHeads; h++) {
      const first = max(0, h * group - firstInGroup);
      const count = min(heads, (h + 1) * group - firstInGroup) - first;
      const offset = <usize>first * headRow;
      slice<T>(
        rows, position, table, layer, page, <usize>h * head, count, headDim, blockTokens, window, softcap,
        q + row * qRow + offset, qRow, out + row * outRow + offset, outRow, work,
      );
    }
  }
}

export function attendFloat32(
  plan: usize, shape: usize, layer: usize, q: usize, k: usize, v: usize, rope: usize, out: usize, work: usize,
): void {
  attend<f32>(plan, shape, layer, q, k, v, rope, out, work);
}

export function attendBfloat16(
  plan: usize, shape: usize, layer: usize, q: usize, k: usize, v: usize, rope: usize, out: usize, work: usize,
): void {
  attend<u16>(plan, shape, layer, q, k, v, rope, out, work);
}

export function attendInt8(
  plan: usize, shape: usize, layer: usize, q: usize, k: usize, v: usize, rope: usize, out: usize, work: usize,
): void {
  attend<i8>(plan, shape, layer, q, k, v, rope, out, work);
}

/** Copies the first `rows` tokens of block `from` to block `to` in one layer. */
function copyTokens<T>(layer: usize, from: i32, to: i32, rows: i32, kvHeads: i32, headDim: i32, blockTokens: i32): void {
  const head = headBytes<T>(headDim, blockTokens);
  let source = layer + <usize>(from * kvHeads) * head;
  let target = layer + <usize>(to * kvHeads) * head;
  const step = <usize>blockTokens * sizeof<T>();
  const bytes = <usize>rows * sizeof<T>();
  const offset = valuesOffset<T>(headDim, blockTokens);
  for (let h = 0; h < kvHeads; h++, source += head, target += head) {
    for (let d = 0; d < headDim; d++) memory.copy(target + <usize>d * step, source + <usize>d * step, bytes);
    memory.copy(target + offset, source + offset, <usize>vStride(headDim) * bytes);
    if (sizeof<T>() == 1) {
      const scales = scalesOffset<T>(headDim, blockTokens);
      const second = scales + (<usize>blockTokens << 2);
      memory.copy(target + scales, source + scales, <usize>rows << 2);
      memory.copy(target + second, source + second, <usize>rows << 2);
    }
  }
}

/** As `copyTokens`, of int8 in fours. */
function copyFours(layer: usize, from: i32, to: i32, rows: i32, kvHeads: i32, headDim: i32, blockTokens: i32): void {
  const head = headBytes<i8>(headDim, blockTokens);
  let source = layer + <usize>(from * kvHeads) * head;
  let target = layer + <usize>(to * kvHeads) * head;
  const offset = valuesOffset<i8>(headDim, blockTokens);
  const scales = scalesOffset<i8>(headDim, blockTokens);
  const second = scales + (<usize>blockTokens << 2);
  const whole = rows & ~3;
  for (let h = 0; h < kvHeads; h++, source += head, target += head) {
    for (let four = 0; four < headDim >> 2; four++) {
      const at = <usize>(four * blockTokens) << 2;
      memory.copy(target + at, source + at, <usize>rows << 2);
    }
    memory.copy(target + offset, source + offset, <usize>(whole * headDim));
    for (let row = whole; row < rows; row++) {
      const at = offset + <usize>(whole * headDim + (row & 3));
      for (let d = 0; d < headDim; d++) {
        const byte = at + (<usize>d << 2);
        store<i8>(target + byte, load<i8>(source + byte));
      }
    }
    memory.copy(target + scales, source + scales, <usize>rows << 2);
    memory.copy(target + second, source + second, <usize>rows << 2);
  }
}

export function copyBlock(
  elementBytes: i32, fours: i32, layer: usize, from: i32, to: i32, rows: i32, kvHeads: i32, headDim: i32,
  blockTokens: i32,
): void {
  if (elementBytes == 4) copyTokens<f32>(layer, from, to, rows, kvHeads, headDim, blockTokens);
  else if (elementBytes == 2) copyTokens<u16>(layer, from, to, rows, kvHeads, headDim, blockTokens);
  else if (fours) copyFours(layer, from, to, rows, kvHeads, headDim, blockTokens);
  else copyTokens<i8>(layer, from, to, rows, kvHeads, headDim, blockTokens);
}
