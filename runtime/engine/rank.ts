/**
 * One rank at work: a step's message enters, every layer runs on this rank's shard, and on all ranks together rows of
 * logits come out in tiles. Must not know how ranks are started or what a request is.
 */
import type { CustomOpDomain } from '../ort/custom-op.ts';
import type { Runner } from '../ort/session.ts';
import type { Collective } from './collective/collective.ts';
import type { CompiledGraph } from './compile.ts';
import type { LogitsTile } from './kernels/logits-tile.ts';
import type { PagedAttention } from './kernels/paged-attention.ts';
import type { StepState } from './ops.ts';
import type { RopeAngles } from './rope.ts';
import { RowBuffer } from './row-buffer.ts';
import { type LogitRow, readMessage } from './step-message.ts';

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
  /** As `body` and `head`, for runs of `manyRowsFrom` rows or more; null: those serve all. */
  readonly manyRows: { readonly body: CompiledGraph; readonly head: CompiledGraph } | null;
  /** What the sessions' custom ops are registered with. */
  readonly customOps: CustomOpDomain;
  readonly attention: PagedAttention;
  readonly rope: RopeAngles;
  readonly state: StepState;
  readonly hiddenSize: number;
  /** How many ids' logits this rank makes. */
  readonly share: number;
  readonly maxStepTokens: number;
  readonly logits: LogitsTile;
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
  readonly #manyRowsHead: Runner;

  get logits(): LogitsTile {
    return this.#options.logits;
  }

  constructor(options: RankOptions) {
    const { body, head, manyRows, rope, hiddenSize, share, maxStepTokens, logits } = options;
    this.#options = options;
    this.#tokens = new RowBuffer(new Int32Array(maxStepTokens), 'int32');
    this.#hidden = new RowBuffer(new Float32Array(maxStepTokens * hiddenSize), 'float32', hiddenSize);
    this.#headInput = new RowBuffer(new Float32Array(logitTileRows * hiddenSize), 'float32', hiddenSize);
    this.#headOutput = new RowBuffer(logits.output, 'float32', share);
    this.#angles = new Float32Array(maxStepTokens * rope.rowFloats);
    this.#body = body.session.prepare(['tokens'], ['hidden']);
    this.#head = head.session.prepare(['hidden'], ['logits']);
    this.#manyRowsBody = manyRows?.body.session.prepare(['tokens'], ['hidden']) ?? this.#body;
    this.#manyRowsHead = manyRows?.head.session.prepare(['hidden'], ['logits']) ?? this.#head;
  }

  /**
   * Runs a step. `onTile` is called after each tile on every rank: these rows, from the `first` of those that asked for
   * logits on, now lie in the tile.
   */
  run(words: Int32Array, onTile?: (first: number, rows: readonly LogitRow[]) => void): void {
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
      const rows = logitRows.slice(first, first + logitTileRows);
      for (const [i, { row }] of rows.entries()) {
        this.#headInput.memory.set(hidden.subarray(row * hiddenSize, (row + 1) * hiddenSize), i * hiddenSize);
      }
      // Rank 0 may still be reading the tile before.
      if (first > 0) collective.barrier();
      state.tokens = rows.length;
      const head = rows.length < manyRowsFrom ? this.#head : this.#manyRowsHead;
      head.run([this.#headInput.value(rows.length)], [this.#headOutput.value(rows.length)]);
      this.#reduce(rows);
      onTile?.(first, rows);
    }
  }

  /** This rank's part of what the rows are for. Ranks need each other's greatest before they can weigh. */
  #reduce(rows: readonly LogitRow[]): void {
    const { logits, collective } = this.#options;
    for (const [i, { logSumExp }] of rows.entries()) logits.reduce(i, logSumExp);
    collective.barrier();
    if (rows.every(({ weighing }) => weighing === undefined)) return;
    for (const [i, { weighing }] of rows.entries()) if (weighing) logits.weigh(i, weighing);
    collective.barrier();
  }

  close(): void {
    for (const buffer of [this.#tokens, this.#hidden, this.#headInput, this.#headOutput]) buffer.close();
    this.#options.body.close();
    this.#options.head.close();
    this.#options.manyRows?.body.close();
    this.#options.manyRows?.head.close();
    this.#options.customOps.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
