/**
 * The rotation that activations and weights of int8 products share: x H times the transpose of W H is x times the
 * transpose of W, and in the rotated rows no channel stands out. Both sides of the product must rotate alike; the kernel
 * runtime/engine/kernels/wasm/row-int8.ts is the other place that does. Idea: QuaRot (arXiv 2404.00456).
 *
 * A row is cut into blocks, each as large a power of two as fits and at most 512; each block is multiplied by the
 * Hadamard matrix of its size (Sylvester's) over the square root of the size, which is its own inverse.
 */

const largestBlock = 512;

/** Rotates the `width` elements from `start` on, in place. */
export function rotateRow(values: Float32Array, start: number, width: number): void {
  for (let left = width; left > 0; ) {
    const size = Math.min(largestBlock, 2 ** Math.floor(Math.log2(left)));
    rotateBlock(values, start, size);
    start += size;
    left -= size;
  }
}

function rotateBlock(values: Float32Array, start: number, size: number): void {
  const end = start + size;
  for (let half = 1; half < size; half *= 2) {
    for (let group = start; group < end; group += 2 * half) {
      for (let at = group; at < group + half; at++) {
        const [one, other] = [values[at]!, values[at + half]!];
        values[at] = one + other;
        values[at + half] = one - other;
      }
    }
  }
  const factor = 1 / Math.sqrt(size);
  for (let at = start; at < end; at++) values[at]! *= factor;
}
