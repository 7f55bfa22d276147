/**
 * Sums of the ranks' partial results in shared memory, always in rank order, so every rank gets the same bits.
 */

/**
 * to[i] = part 0 [i] + part 1 [i] + ..., for i in [0, count); part r lies at `parts + r * stride` bytes.
 */
export function sumParts(parts: usize, stride: usize, ranks: i32, to: usize, count: i32): void {
  const whole = <usize>(count & ~3) << 2;
  const bytes = <usize>count << 2;
  let i: usize = 0;
  for (; i < whole; i += 16) {
    let from = parts + i;
    let sum = v128.load(from);
    for (let r = 1; r < ranks; r++) {
      from += stride;
      sum = f32x4.add(sum, v128.load(from));
    }
    v128.store(to + i, sum);
  }
  for (; i < bytes; i += 4) {
    let from = parts + i;
    let sum = load<f32>(from);
    for (let r = 1; r < ranks; r++) {
      from += stride;
      sum += load<f32>(from);
    }
    store<f32>(to + i, sum);
  }
}

/** Reads the word until it differs from `old`, at most `limit` times. Returns the reads it took, -1 when in vain. */
export function spin(word: usize, old: i32, limit: i32): i32 {
  for (let i = 0; i < limit; i++) {
    if (atomic.load<i32>(word) != old) return i;
  }
  return -1;
}
