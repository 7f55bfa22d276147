/**
 * An engine whose logits are a hash of the whole visible history, read back through the block tables: it really keeps
 * one token per block row, so a wrong table, a missed copy or a stale block gives other tokens. It refuses a sequence whose
 * rows were turned by different rotary tables, and a batch
 * in which a row is written by one slice and read or written by another.
 */
import assert from 'node:assert';
import type { Engine, EngineInfo, OnRow, StepBatch, StepSlice } from '../../runtime/engine/engine.ts';
import { ReferenceRow } from '../../runtime/engine/kernels/logits-reference.ts';

export interface ReferenceEngineOptions {
  readonly blockCount: number;
  readonly blockTokens?: number;
  readonly vocabulary?: number;
  readonly maxLength?: number;
  readonly maxStepTokens?: number;
  readonly maxBatchSize?: number;
  /** Longer sequences use rotary table 1, for all their rows; absent: there is one table. */
  readonly ropeLimit?: number;
}

/** Added to a token for each variant of the rotary table that its row was written with. */
const variantStep = 2 ** 20;

export class ReferenceEngine implements Engine {
  readonly info: EngineInfo;
  readonly rope?: NonNullable<Engine['rope']>;
  steps = 0;
  /** Tokens run and largest batch so far: what a policy saves or fills. */
  tokens = 0;
  largestBatch = 0;
  readonly #rows: Int32Array;
  readonly #logits: ReferenceRow;

  constructor(options: ReferenceEngineOptions) {
    const { blockCount, blockTokens = 4, vocabulary = 64, maxLength = 256 } = options;
    this.info = {
      architecture: 'reference',
      vocabulary,
      maxLength,
      blockTokens,
      blockCount,
      maxStepTokens: options.maxStepTokens ?? 64,
      maxBatchSize: options.maxBatchSize ?? 8,
      ranks: 1,
      kvBytes: 0,
      kvDType: 'float32',
      weightBytes: 0,
      prefillWeightBytes: 0,
    };
    const { ropeLimit } = options;
    if (ropeLimit !== undefined) {
      this.rope = { variant: (length) => (length > ropeLimit ? 1 : 0), recomputes: true };
    }
    this.#rows = new Int32Array(blockCount * blockTokens).fill(-1);
    this.#logits = new ReferenceRow(new Float32Array(vocabulary));
  }

  step(batch: StepBatch, onRow: OnRow): void {
    const { blockTokens, maxStepTokens, maxBatchSize } = this.info;
    const total = batch.slices.reduce((sum, slice) => sum + slice.tokens.length, 0);
    assert(batch.slices.length <= maxBatchSize, `${batch.slices.length} slices`);
    assert(total > 0 && total <= maxStepTokens, `${total} tokens in a step`);
    this.steps++;
    this.tokens += total;
    this.largestBatch = Math.max(this.largestBatch, batch.slices.length);
    for (const { from, to, rows } of batch.copies) {
      const start = from * blockTokens;
      this.#rows.copyWithin(to * blockTokens, start, start + rows);
    }
    this.#checkOwners(batch.slices);
    for (const slice of batch.slices) {
      for (let i = 0; i < slice.tokens.length; i++)
        this.#rows[this.#row(slice, slice.position + i)] =
          slice.tokens[i]! + (slice.ropeVariant ?? 0) * variantStep;
    }
    batch.slices.forEach((slice, index) => {
      const count = slice.tokens.length;
      const first = slice.logits === 'all' ? 0 : slice.logits === 'last' ? count - 1 : count;
      for (let row = first; row < count; row++) {
        referenceLogits(this.#history(slice, slice.position + row), this.#logits.values);
        onRow(index, row, this.#logits);
      }
    });
  }

  close(): void {}

  #row(slice: StepSlice, position: number): number {
    const block = slice.blocks[Math.floor(position / this.info.blockTokens)];
    assert(block !== undefined, `position ${position} has no block`);
    return block * this.info.blockTokens + (position % this.info.blockTokens);
  }

  #history(slice: StepSlice, last: number): number[] {
    const variant = slice.ropeVariant ?? 0;
    if (slice.logits === 'last') assert.equal(variant, this.rope?.variant(last + 1) ?? 0, 'the rotary table');
    return Array.from({ length: last + 1 }, (_, position) => {
      const token = this.#rows[this.#row(slice, position)]! - variant * variantStep;
      assert(token >= 0 && token < variantStep, `row ${position} was written with another rotary table`);
      return token;
    });
  }

  #checkOwners(slices: readonly StepSlice[]): void {
    const writers = new Map<number, number>();
    slices.forEach((slice, index) => {
      for (let i = 0; i < slice.tokens.length; i++) {
        const row = this.#row(slice, slice.position + i);
        assert(!writers.has(row), `row ${row} is written by slices ${writers.get(row)} and ${index}`);
        writers.set(row, index);
      }
    });
    slices.forEach((slice, index) => {
      for (let position = 0; position < slice.position; position++) {
        const writer = writers.get(this.#row(slice, position));
        assert(writer === undefined, `slice ${index} reads position ${position} that slice ${writer} writes`);
      }
    });
  }
}

/** Logits after a history: pseudo-random in [-8, 8), distinct with near certainty. */
export function referenceLogits(history: ArrayLike<number>, logits: Float32Array): void {
  let hash = 0x811c9dc5;
  for (let i = 0; i < history.length; i++)
    hash = Math.imul(hash ^ (history[i]! + i * 0x9e37), 0x01000193) ^ (hash >>> 15);
  for (let id = 0; id < logits.length; id++) {
    let value = Math.imul(hash ^ Math.imul(id + 1, 0x85ebca6b), 0xc2b2ae35);
    value = Math.imul(value ^ (value >>> 13), 0x27d4eb2f);
    logits[id] = ((value ^ (value >>> 15)) >>> 0) / 0x10000000 - 8;
  }
}

/** What a greedy run must give, computed without blocks. */
export function referenceGreedy(prompt: readonly number[], tokens: number, vocabulary = 64): number[] {
  const logits = new Float32Array(vocabulary);
  const history = [...prompt];
  for (let i = 0; i < tokens; i++) {
    referenceLogits(history, logits);
    history.push(logits.indexOf(Math.max(...logits)));
  }
  return history.slice(prompt.length);
}
