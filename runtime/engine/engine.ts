/**
 * The engine as its caller, the loop in llm.ts, sees it: a packed batch of token slices goes in, rows of logits come
 * out. Block ids and positions are decided by kv/ and scheduler/; the engine owns the tensors behind them.
 */

import type { LogitsRow, Weighing } from '../logits.ts';
import type { RopeSpec } from '../models/rope.ts';
import type { KvDType } from './kernels/attention-reference.ts';

/** One sequence's share of a step. */
export interface StepSlice {
  /** Token ids to run, at positions `position .. position + tokens.length - 1` of the sequence. */
  readonly tokens: ArrayLike<number>;
  readonly position: number;
  /** The sequence's block table: ids of the blocks that hold positions 0 .. position + tokens.length - 1. */
  readonly blocks: ArrayLike<number>;
  /** Which of the slice's rows need logits. */
  readonly logits: 'none' | 'last' | 'all';
  /** Whether `logSumExp` will be asked of these rows, and how the last of them will be weighed, if it will. */
  readonly logSumExp?: boolean;
  readonly weighing?: Weighing | undefined;
  /** Which rotary table these tokens are turned by (models/rope.ts); default 0. */
  readonly ropeVariant?: number;
}

/** Rows copied between blocks before the step runs, in every layer (copy-on-write). */
export interface BlockCopy {
  readonly from: number;
  readonly to: number;
  /** The first rows of the block that are copied. */
  readonly rows: number;
}

export interface StepBatch {
  readonly slices: readonly StepSlice[];
  readonly copies: readonly BlockCopy[];
}

/**
 * Called once for each row that asked for logits, in the order of the batch.
 * `logits` is the engine's own memory: valid during the call only. What the slice foretold of its use has been computed by
 * all ranks together; the rest is computed when it is asked for.
 */
export type OnRow = (slice: number, row: number, logits: LogitsRow) => void;

export interface EngineInfo {
  readonly architecture: string;
  /** Rows of the logits; may exceed the tokenizer's vocabulary. */
  readonly vocabulary: number;
  /** Longest sequence in tokens, prompt and answer together. */
  readonly maxLength: number;
  readonly blockTokens: number;
  readonly blockCount: number;
  /** Most tokens in one step, over all slices. */
  readonly maxStepTokens: number;
  /** Most slices in one step. */
  readonly maxBatchSize: number;
  readonly ranks: number;
  readonly kvBytes: number;
  /** How keys and values are kept. */
  readonly kvDType: KvDType;
  /** Of the weights as the checkpoint stores them. */
  readonly weightBytes: number;
  /** Of the int8 copy of the weights for steps of many rows; 0 without one. */
  readonly prefillWeightBytes: number;
}

export interface Engine {
  readonly info: EngineInfo;
  /** Which rotary table a sequence uses (models/rope.ts); absent: one for all. */
  readonly rope?: Pick<RopeSpec, 'variant' | 'recomputes'>;
  /** Runs one step to its end on the calling thread. Throws SluiceError `engine_failed`; the engine is then unusable. */
  step(batch: StepBatch, onRow: OnRow): void;
  close(): void;
}

export interface LoadProgress {
  readonly phase: 'download' | 'weights' | 'compile' | 'warmup';
  readonly done: number;
  readonly total: number;
}
