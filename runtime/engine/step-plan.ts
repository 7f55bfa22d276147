/**
 * A step's slices as the kernels read them, int32 words: the number of slices; for each slice its first packed row,
 * rows, position of the first row, and where in the plan its block table starts; then the block tables.
 */
import type { StepSlice } from './engine.ts';

export const sliceWords = 4;

/** Words of the longest plan. */
export function planCapacity(maxBatchSize: number, maxLength: number, blockTokens: number): number {
  return 1 + maxBatchSize * (sliceWords + Math.ceil(maxLength / blockTokens));
}

/** Writes the plan at the start of `words` and returns how many it took. */
export function writePlan(slices: readonly StepSlice[], blockTokens: number, words: Int32Array): number {
  words[0] = slices.length;
  let row = 0;
  let entry = 1;
  let end = 1 + slices.length * sliceWords;
  for (const slice of slices) {
    words[entry] = row;
    words[entry + 1] = slice.tokens.length;
    words[entry + 2] = slice.position;
    words[entry + 3] = end;
    const blocks = Math.ceil((slice.position + slice.tokens.length) / blockTokens);
    for (let block = 0; block < blocks; block++) words[end + block] = slice.blocks[block]!;
    row += slice.tokens.length;
    entry += sliceWords;
    end += blocks;
  }
  return end;
}
