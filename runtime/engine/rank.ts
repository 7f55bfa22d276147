/**
 * One rank at work: a step's message enters, every layer runs on this rank's shard, and on all ranks together rows of
 * logits come out in tiles. Must not know how ranks are started or what a request is.
 */
import type { CustomOpDomain } from '../ort/custom-op.ts';
import type { Runner } from '../ort/session.ts';
import type { Collective } from './collective/collective.ts';
import type { CompiledGraph } from './compile.ts';
import type { PagedAttention } from './kernels/paged-attention.ts';
import type { StepState } from './ops.ts';
import type { RopeAngles } from './rope.ts';
import { RowBuffer } from './row-buffer.ts';
import { readMessage } from './step-message.ts';

/** Logits are made this many rows at a time. */
export const logitTileRows = 32;

/** From this many rows on, products are faster with weights in the form for many rows. */
export const manyRowsFrom = 6;

export interface RankOptions {
  readonly collective: Collective;
  /** tokens int32 [tokens] in, hidden [tokens, hiddenSize] out. */
  readonly body: CompiledGraph;
  /** hidden [rows, hiddenSize] in, logits [rows, this rank's share of the vocabulary] out. */
  readonly head: CompiledGraph;
  /** As `body`, for steps of `manyRowsFrom` rows or more; null: `body` serves all. */
  readonly manyRowsBody: CompiledGraph | null;
  /** What the sessions' custom ops are registered with. */
  readonly customOps: CustomOpDomain;
  readonly attention: PagedAttention;
  readonly rope: RopeAngles;
  readonly state: StepState;
  readonly hiddenSize: number;
  readonly vocabulary: number;
  /** The ids whose logits this rank makes. */
  readonly share: { readonly first: number; readonly count: number };
  readonly maxStepTokens: number;
  /** [logitTileRows, vocabulary] float32, shared by all ranks. */
  readonly logits: Float32Array;
}

export class Rank implements Disposable {
  readonly #options: RankOptions;
  readonly #tokens: RowBuffer<Int32Array>;
  readonly #hidden: RowBuffer<Float32Array>;
  readonly #headInput: RowBuffer<Float32Array>;
  readonly #headOutput: RowBuffer<Float32Array>;
  readonly #angles: Float32Array;
  readonly #body: Runner;
  readonly #head: Runner;
  readonly #manyRowsBody: Runner;

  constructor(options: RankOptions) {
    const { body, head, manyRowsBody, rope, hiddenSize, vocabulary, share, maxStepTokens, logits } = options;
    this.#options = options;
    this.#tokens = new RowBuffer(new Int32Array(maxStepTokens), 'int32');
    this.#hidden = new RowBuffer(new Float32Array(maxStepTokens * hiddenSize), 'float32', hiddenSize);
    this.#headInput = new RowBuffer(new Float32Array(logitTileRows * hiddenSize), 'float32', hiddenSize);
    // A rank that makes all logits makes them in place.
    const own = share.count === vocabulary ? logits : new Float32Array(logitTileRows * share.count);
    this.#headOutput = new RowBuffer(own, 'float32', share.count);
    this.#angles = new Float32Array(maxStepTokens * rope.rowFloats);
    const prepare = ({ session }: CompiledGraph): Runner => session.prepare(['tokens'], ['hidden']);
    this.#body = prepare(body);
    this.#manyRowsBody = manyRowsBody === null ? this.#body : prepare(manyRowsBody);
    this.#head = head.session.prepare(['hidden'], ['logits']);
  }

  /**
   * Runs a step. `onTile` is called after each tile on every rank: rows [first, first + count) of those that asked for
   * logits now lie in the shared logits.
   */
  run(words: Int32Array, onTile?: (first: number, count: number) => void): void {
    const { attention, rope, state, collective, hiddenSize } = this.#options;
    const { tokens, copies, logitRows, plan } = readMessage(words);
    for (const { from, to, rows } of copies) attention.copyBlock(from, to, rows);
    const count = tokens.length;
    if (count === 0) {
      // Nothing below waits for the others, and rank 0 must not overwrite the message before all have read it.
      collective.barrier();
      return;
    }
    this.#tokens.memory.set(tokens);
    rope.write(plan, this.#angles);
    attention.begin(plan, this.#angles.subarray(0, count * rope.rowFloats));
    state.tokens = count;
    const runner = count < manyRowsFrom ? this.#body : this.#manyRowsBody;
    runner.run([this.#tokens.value(count)], [this.#hidden.value(count)]);
    const hidden = this.#hidden.memory;
    for (let first = 0; first < logitRows.length; first += logitTileRows) {
      const rows = Math.min(logitTileRows, logitRows.length - first);
      for (let i = 0; i < rows; i++) {
        const from = logitRows[first + i]! * hiddenSize;
        this.#headInput.memory.set(hidden.subarray(from, from + hiddenSize), i * hiddenSize);
      }
      // Rank 0 may still be reading the tile before.
      if (first > 0) collective.barrier();
      this.#head.run([this.#headInput.value(rows)], [this.#headOutput.value(rows)]);
      this.#shareLogits(rows);
      collective.barrier();
      onTile?.(first, rows);
    }
  }

  #shareLogits(rows: number): void {
    const { share, vocabulary, logits } = this.#options;
    if (share.count === vocabulary) return;
    const own = this.#headOutput.memory;
    for (let i = 0; i < rows; i++) {
      logits.set(own.subarray(i * share.count, (i + 1) * share.count), i * vocabulary + share.first);
    }
  }

  close(): void {
    for (const buffer of [this.#tokens, this.#hidden, this.#headInput, this.#headOutput]) buffer.close();
    this.#options.body.close();
    this.#options.head.close();
    this.#options.manyRowsBody?.close();
    this.#options.customOps.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
