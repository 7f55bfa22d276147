/**
 * Random numbers that depend on where they are used and on nothing else: Philox4x32-10 (Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3"), a block cipher run on a counter. So a token's draw is the same whatever ran beside it,
 * before it, or twice.
 */

/** Uniform in [0, 1), 53 bits. `seed` is any integer, `choice` and `position` are below 2^32. */
export function uniform(seed: number, choice: number, position: number): number {
  const [a, b] = philox([position, choice, 0, 0], [seed >>> 0, Math.floor(seed / 0x100000000) >>> 0]);
  return ((a >>> 5) * 0x4000000 + (b >>> 6)) / 0x20000000000000;
}

type Counter = readonly [number, number, number, number];

export function philox(counter: Counter, key: readonly [number, number]): Counter {
  let [a, b, c, d] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const low0 = Math.imul(0xd2511f53, a);
    const low1 = Math.imul(0xcd9e8d57, c);
    const high0 = multiplyHigh(0xd2511f53, a);
    const high1 = multiplyHigh(0xcd9e8d57, c);
    [a, b, c, d] = [(high1 ^ b ^ k0) >>> 0, low1 >>> 0, (high0 ^ d ^ k1) >>> 0, low0 >>> 0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** The upper 32 bits of a 64-bit product. */
function multiplyHigh(x: number, y: number): number {
  const x0 = x & 0xffff;
  const x1 = x >>> 16;
  const y0 = y & 0xffff;
  const y1 = y >>> 16;
  const middle = x1 * y0 + ((x0 * y0) >>> 16);
  const carry = x0 * y1 + (middle & 0xffff);
  return (x1 * y1 + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0;
}
