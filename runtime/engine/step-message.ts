/**
 * A step as rank 0 broadcasts it, int32 words, so that a step costs no serialisation:
 *   tokens, copies, logit rows, words of the plan,
 *   token ids [tokens], copies [copies][from, to, rows], logit rows [logit rows][packed row, uses, scale, below], the plan.
 * A logit row's uses are bits, its scale and bound below the greatest (logits.ts) the bits of float32 numbers.
 * The plan is what the attention kernel reads: slices; for each its first packed row, rows, position of the first row,
 * where in the plan its block table starts, and its rope variant; then the block tables.
 */
import assert from 'node:assert';
import type { Weighing } from '../logits.ts';
import type { BlockCopy, StepBatch, StepSlice } from './engine.ts';

const headWords = 4;
const copyWords = 3;
const logitWords = 4;
export const sliceWords = 5;

export interface StepLimits {
  readonly maxBatchSize: number;
  readonly maxStepTokens: number;
  readonly maxLength: number;
  readonly blockTokens: number;
}

/** Words of the longest plan. */
export function planCapacity({ maxBatchSize, maxLength, blockTokens }: StepLimits): number {
  return 1 + maxBatchSize * (sliceWords + Math.ceil(maxLength / blockTokens));
}

/** Words of the longest message. */
export function messageCapacity(limits: StepLimits): number {
  return (
    headWords +
    (1 + logitWords) * limits.maxStepTokens +
    copyWords * limits.maxBatchSize +
    planCapacity(limits)
  );
}

/** Writes the plan of `slices` at `start` and returns where it ends. */
export function writePlan(
  slices: readonly StepSlice[],
  blockTokens: number,
  words: Int32Array,
  start = 0,
): number {
  words[start] = slices.length;
  let row = 0;
  let entry = start + 1;
  let end = entry + slices.length * sliceWords;
  for (const { tokens, position, blocks, ropeVariant } of slices) {
    words[entry] = row;
    words[entry + 1] = tokens.length;
    words[entry + 2] = position;
    words[entry + 3] = end - start;
    words[entry + 4] = ropeVariant ?? 0;
    const count = Math.ceil((position + tokens.length) / blockTokens);
    assert(blocks.length >= count, `${blocks.length} blocks for ${position + tokens.length} tokens`);
    for (let block = 0; block < count; block++) words[end + block] = blocks[block]!;
    row += tokens.length;
    entry += sliceWords;
    end += count;
  }
  return end;
}

function writeCopies(copies: readonly BlockCopy[], words: Int32Array, start: number): number {
  let at = start;
  for (const { from, to, rows } of copies) {
    words[at] = from;
    words[at + 1] = to;
    words[at + 2] = rows;
    at += copyWords;
  }
  return at;
}

const usesLogSumExp = 1;
const usesWeights = 2;
const usesNucleus = 4;

function writeLogitRows(slices: readonly StepSlice[], words: Int32Array, start: number): number {
  const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
  let at = start;
  let row = 0;
  for (const { tokens, logits, logSumExp, weighing } of slices) {
    const first = logits === 'all' ? 0 : logits === 'last' ? tokens.length - 1 : tokens.length;
    for (let i = first; i < tokens.length; i++) {
      const weighed = i === tokens.length - 1 ? weighing : undefined;
      words[at] = row + i;
      words[at + 1] =
        (logSumExp ? usesLogSumExp : 0) | (weighed ? usesWeights | (weighed.nucleus ? usesNucleus : 0) : 0);
      floats[at + 2] = weighed?.scale ?? 0;
      floats[at + 3] = weighed?.below ?? 0;
      at += logitWords;
    }
    row += tokens.length;
  }
  return at;
}

/** A packed row that needs logits, and what for. */
export interface LogitRow {
  readonly row: number;
  readonly logSumExp: boolean;
  readonly weighing: Weighing | undefined;
}

function readLogitRow(words: Int32Array, floats: Float32Array, at: number): LogitRow {
  const uses = words[at + 1]!;
  const weighing = { scale: floats[at + 2]!, below: floats[at + 3]!, nucleus: (uses & usesNucleus) !== 0 };
  return {
    row: words[at]!,
    logSumExp: (uses & usesLogSumExp) !== 0,
    weighing: (uses & usesWeights) !== 0 ? weighing : undefined,
  };
}

/** Writes the message of a step at the start of `words` and returns its length. The batch must keep the limits. */
export function writeMessage(batch: StepBatch, limits: StepLimits, words: Int32Array): number {
  const { slices, copies } = batch;
  assert(slices.length <= limits.maxBatchSize, `${slices.length} slices in a step`);
  assert(copies.length <= limits.maxBatchSize, `${copies.length} copies in a step`);
  let tokens = 0;
  for (const slice of slices) {
    const { length } = slice.tokens;
    assert(length > 0, 'a slice without tokens');
    assert(slice.position + length <= limits.maxLength, `position ${slice.position + length}`);
    assert(tokens + length <= limits.maxStepTokens, `more than ${limits.maxStepTokens} tokens in a step`);
    for (let i = 0; i < length; i++) words[headWords + tokens + i] = slice.tokens[i]!;
    tokens += length;
  }
  const rowsAt = writeCopies(copies, words, headWords + tokens);
  const planAt = writeLogitRows(slices, words, rowsAt);
  const end = writePlan(slices, limits.blockTokens, words, planAt);
  words[0] = tokens;
  words[1] = copies.length;
  words[2] = (planAt - rowsAt) / logitWords;
  words[3] = end - planAt;
  return end;
}

export interface StepMessage {
  readonly tokens: Int32Array;
  readonly copies: readonly BlockCopy[];
  /** In order. */
  readonly logitRows: readonly LogitRow[];
  readonly plan: Int32Array;
}

/** Views into `words`, valid as long as they are. */
export function readMessage(words: Int32Array): StepMessage {
  const [tokens, copies, rows, plan] = words as unknown as [number, number, number, number];
  const copiesAt = headWords + tokens;
  const rowsAt = copiesAt + copies * copyWords;
  const planAt = rowsAt + rows * logitWords;
  const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
  return {
    tokens: words.subarray(headWords, copiesAt),
    copies: Array.from({ length: copies }, (_, index) => {
      const at = copiesAt + index * copyWords;
      return { from: words[at]!, to: words[at + 1]!, rows: words[at + 2]! };
    }),
    logitRows: Array.from({ length: rows }, (_, index) =>
      readLogitRow(words, floats, rowsAt + index * logitWords),
    ),
    plan: words.subarray(planAt, planAt + plan),
  };
}
