/**
 * Makes an engine: a checkpoint's place and the limits enter; ranks are planned and started, the KV pool is sized, and
 * what leaves runs steps. Rank 0 is the calling thread, so call it where steps may take their time.
 */
import { availableParallelism } from 'node:os';
import { type DeviceSelection, planRanks } from '../driver/device.ts';
import { SluiceError } from '../errors.ts';
import type { ModelSpec } from '../models/model.ts';
import { type QuantizedCompute, shardUnits } from '../models/prepare.ts';
import { parseModel } from '../models/registry.ts';
import type { RopeSpec } from '../models/rope.ts';
import { planShards, rangeSize } from '../models/shard.ts';
import { isQuantized } from '../weights/checkpoint.ts';
import { type Collective, SoloCollective } from './collective/collective.ts';
import { shareMemory, ThreadCollective } from './collective/thread-collective.ts';
import type { Engine, EngineInfo, LoadProgress, OnRow, StepBatch } from './engine.ts';
import type { KvDType } from './kernels/attention-reference.ts';
import { type LogitsTile, shareTile } from './kernels/logits-tile.ts';
import { hasAttentionCode } from './kernels/x64/attention-form.ts';
import { attendsInBfloat16, type CpuKernels, chooseInstructionSet } from './kernels/x64/processor.ts';
import { availableBytes, chooseBlockCount } from './kv-size.ts';
import { chooseRowInt8PairLimit, type PrefillWeights } from './many-row-weights.ts';
import { announceOpDomain } from './op-domain.ts';
import { logitTileRows, manyRowsFrom, type Rank } from './rank.ts';
import { type CheckpointSource, loadRank, openSource, type RankLoad, type RankSizes } from './rank-loader.ts';
import { type RankThread, startRank } from './rank-threads.ts';
import { messageCapacity, type StepLimits, writeMessage } from './step-message.ts';

export interface EngineOptions {
  readonly checkpoint: CheckpointSource;
  readonly devices?: DeviceSelection;
  /** Threads that compute, over all ranks. Default: the cores allowed. */
  readonly threads?: number;
  readonly maxBatchSize: number;
  readonly maxStepTokens: number;
  /** Longest sequence. Default: the model's own limit, or less where the KV cache of one would not fit. */
  readonly maxLength?: number | undefined;
  /** A power of two, at least 8. */
  readonly blockTokens: number;
  /** Size of the KV pool in blocks; or, in bytes, `kvBytes`. Default: what the limits need, as far as memory allows. */
  readonly blockCount?: number | undefined;
  readonly kvBytes?: number | undefined;
  /** Default: bfloat16 where attention multiplies in it anyhow, else float32. */
  readonly kvDType?: KvDType | undefined;
  /** Where weights that cannot be used as they are stored are kept between starts. */
  readonly cacheDir?: string | undefined;
  /** Default: int8. */
  readonly quantizedCompute?: QuantizedCompute;
  /** Whose kernels multiply quantized weights in int8. Default: auto, the best that the processor runs. */
  readonly cpuKernels?: CpuKernels;
  /** Whether steps of many rows have int8 weights of their own (many-row-weights.ts). Default: none. */
  readonly prefillWeights?: PrefillWeights;
  /** Where each rank writes a trace of its nodes, for tools: files `<prefix>-rank<rank>-<graph>_<date>.json` when closed. */
  readonly profilePrefix?: string;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly onWarning?: (message: string) => void;
  /**
   * Called once when the engine has failed between steps: a rank's thread has ended. Without it the next step says so.
   */
  readonly onFailure?: (error: SluiceError) => void;
}

/** Throws SluiceError: whatever is wrong with the checkpoint, the devices or the memory. */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { blockTokens, maxBatchSize, maxStepTokens } = options;
  const checkpoint = await openSource(options.checkpoint);
  const { spec } = parseModel(checkpoint);
  const cores = availableParallelism();
  const plan = planRanks(options.devices ?? { kind: 'auto' }, options.threads ?? cores, spec.kvHeads, cores);
  const ranks = plan.devices.length;
  // Refuses a number of ranks that cannot be before any thread starts.
  const shards = planShards(spec, ranks, shardUnits(spec, checkpoint));
  if (options.maxLength !== undefined && options.maxLength > spec.maxLength) {
    throw new SluiceError(
      'config_invalid',
      `--max-length ${options.maxLength}: the model was made for at most ${spec.maxLength} tokens`,
      { param: 'max-length' },
    );
  }
  checkStepTokens(maxStepTokens, spec, ranks);
  const limits: StepLimits = {
    maxBatchSize,
    maxStepTokens,
    maxLength: options.maxLength ?? spec.maxLength,
    blockTokens,
  };
  const shared = shareMemory({
    ranks,
    reduceFloats: maxStepTokens * spec.hidden,
    broadcastWords: messageCapacity(limits),
    spin: plan.spin,
  });
  const quantizedCompute = options.quantizedCompute ?? 'int8';
  const instructions = chooseInstructionSet(options.cpuKernels ?? 'auto') ?? null;
  const { heads, headDim, attentionSoftcap } = spec;
  const shape = { heads, headDim, softcap: attentionSoftcap ?? 0 };
  const inBfloat16 =
    isQuantized(checkpoint) &&
    attendsInBfloat16(quantizedCompute, instructions) &&
    hasAttentionCode({ shape, blockTokens });
  // Rounded when they are multiplied or when they are kept, they are the same numbers.
  const kvDType = options.kvDType ?? (inBfloat16 ? 'bfloat16' : 'float32');
  const load: RankLoad = {
    checkpoint: options.checkpoint,
    ranks,
    devices: plan.devices,
    limits,
    kvDType,
    cacheDir: options.cacheDir ?? null,
    quantizedCompute,
    instructions,
    attendsInBfloat16: inBfloat16,
    rowInt8PairLimit: chooseRowInt8PairLimit(
      options.prefillWeights ?? 'none',
      checkpoint,
      { quantizedCompute, blockProducts: instructions !== null },
      availableBytes(),
    ),
    profilePrefix: options.profilePrefix ?? null,
    logits: shareTile(
      logitTileRows,
      shards.map(({ vocabulary }) => rangeSize(vocabulary)),
    ),
  };
  const collective: Collective = ranks === 1 ? new SoloCollective(0) : new ThreadCollective(shared, 0);
  if (ranks > 1) announceOpDomain();
  let engine: RankedEngine | undefined;
  const threads = Array.from({ length: ranks - 1 }, (_, index) => {
    const rank = index + 1;
    return startRank({ collective: shared, rank, load }, () => {
      const error = engine?.rankEnded(rank);
      if (error !== undefined) options.onFailure?.(error);
    });
  });
  try {
    const loaded = await loadRank(load, 0, collective, options);
    const others = await Promise.all(threads.map((thread) => thread.loaded));
    const total = (of: (sizes: RankSizes) => number): number =>
      [loaded, ...others].reduce((sum, sizes) => sum + of(sizes), 0);
    const blockBytes = total((sizes) => sizes.blockBytes);
    const pool = sizePool(options, limits, blockBytes);
    if (pool.maxLength < limits.maxLength) {
      options.onWarning?.(
        `sequences are limited to ${pool.maxLength} tokens, of the model's ${limits.maxLength}: the KV cache of a longer one does not fit in memory`,
      );
    }
    options.onProgress?.({ phase: 'warmup', done: 0, total: 1 });
    collective.broadcast(Int32Array.of(pool.blockCount));
    const rank = loaded.start(pool.blockCount);
    // All have read the size before a step's message takes its place.
    collective.barrier();
    const info: EngineInfo = {
      architecture: spec.architecture,
      vocabulary: spec.vocabulary,
      maxLength: pool.maxLength,
      blockTokens,
      blockCount: pool.blockCount,
      maxStepTokens,
      maxBatchSize,
      ranks,
      kvBytes: pool.blockCount * blockBytes,
      kvDType,
      weightBytes: checkpoint.weightBytes,
      prefillWeightBytes: total((sizes) => sizes.manyRowBytes),
    };
    engine = new RankedEngine(info, limits, rank, collective, threads, rank.logits, spec.rope);
    engine.warmUp();
    options.onProgress?.({ phase: 'warmup', done: 1, total: 1 });
    return engine;
  } catch (error) {
    collective.close();
    for (const thread of threads) thread.terminate();
    throw error;
  }
}

/** Buffers of a step lie in 32-bit memories, beside KV pages and each other. */
const stepBufferBytes = 2 ** 30;

function checkStepTokens(maxStepTokens: number, spec: ModelSpec, ranks: number): void {
  const reduced = (2 * ranks + 1) * spec.hidden;
  const attended = 2 * (spec.heads + spec.kvHeads) * spec.headDim + spec.rope.rotaryDim;
  const most = Math.floor(stepBufferBytes / (4 * Math.max(reduced, attended)));
  if (maxStepTokens <= most) return;
  throw new SluiceError(
    'config_invalid',
    `--max-batch-input-tokens ${maxStepTokens}: with this model and ${ranks} ranks at most ${most}`,
    { param: 'max-batch-input-tokens' },
  );
}

function sizePool(
  options: EngineOptions,
  { maxLength, maxBatchSize, blockTokens }: StepLimits,
  blockBytes: number,
): { blockCount: number; maxLength: number } {
  if (options.blockCount !== undefined) {
    return {
      blockCount: options.blockCount,
      maxLength: Math.min(maxLength, options.blockCount * blockTokens),
    };
  }
  const available = availableBytes();
  return chooseBlockCount({
    blockBytes,
    blockTokens,
    maxLength,
    maxBatchSize,
    kvBytes: options.kvBytes,
    available,
    mayShorten: options.maxLength === undefined,
  });
}

class RankedEngine implements Engine {
  readonly info: EngineInfo;
  readonly rope: RopeSpec;
  readonly #limits: StepLimits;
  readonly #rank: Rank;
  readonly #collective: Collective;
  readonly #threads: readonly RankThread[];
  readonly #logits: LogitsTile;
  readonly #message: Int32Array;
  /** Of the step in progress: slice and row within it of each row of logits. */
  readonly #rowSlices: Int32Array;
  readonly #rowIndices: Int32Array;
  #state: 'running' | 'failed' | 'closed' = 'running';

  constructor(
    info: EngineInfo,
    limits: StepLimits,
    rank: Rank,
    collective: Collective,
    threads: readonly RankThread[],
    logits: LogitsTile,
    rope: RopeSpec,
  ) {
    this.info = info;
    this.rope = rope;
    this.#limits = limits;
    this.#rank = rank;
    this.#collective = collective;
    this.#threads = threads;
    this.#logits = logits;
    this.#message = new Int32Array(messageCapacity(limits));
    this.#rowSlices = new Int32Array(limits.maxStepTokens);
    this.#rowIndices = new Int32Array(limits.maxStepTokens);
  }

  /** Steps of each kind on the first block, whose content nobody uses yet: code is compiled and weights are touched. */
  warmUp(): void {
    const most = Math.min(manyRowsFrom, this.#limits.blockTokens, this.#limits.maxStepTokens);
    for (const count of [1, most, 1, most]) {
      const slice = { tokens: new Int32Array(count), position: 0, blocks: [0], logits: 'all' } as const;
      this.step({ slices: [slice], copies: [] }, () => {});
    }
  }

  step(batch: StepBatch, onRow: OnRow): void {
    if (this.#state !== 'running') throw new SluiceError('engine_failed', `the engine is ${this.#state}`);
    // A batch that breaks the limits is the caller's bug and harms nobody else.
    const length = writeMessage(batch, this.#limits, this.#message);
    this.#noteRows(batch);
    try {
      const words = this.#message.subarray(0, length);
      this.#collective.broadcast(words);
      this.#rank.run(words, (first, rows) => {
        for (const [i, { logSumExp, weighing }] of rows.entries()) {
          const logits = this.#logits.row(i, logSumExp, weighing);
          onRow(this.#rowSlices[first + i]!, this.#rowIndices[first + i]!, logits);
        }
      });
    } catch (error) {
      const reason = (error as Error).message;
      this.#fail(reason);
      if (error instanceof SluiceError && error.code === 'engine_failed') throw error;
      throw new SluiceError('engine_failed', `a step failed: ${reason}`, { cause: error });
    }
  }

  /** What it means that a rank's thread has ended: nothing after a close or a failure that is known already. */
  rankEnded(rank: number): SluiceError | undefined {
    if (this.#state !== 'running') return undefined;
    const error = new SluiceError('engine_failed', `rank ${rank}: its thread has died`);
    this.#fail(error.message);
    return error;
  }

  #fail(reason: string): void {
    this.#state = 'failed';
    this.#collective.fail(reason);
    // They see the failure and end; this is for one that cannot. What they hold ends with them.
    for (const thread of this.#threads) thread.terminate();
    this.#rank.close();
  }

  #noteRows({ slices }: StepBatch): void {
    let at = 0;
    for (const [index, { tokens, logits }] of slices.entries()) {
      const first = logits === 'all' ? 0 : logits === 'last' ? tokens.length - 1 : tokens.length;
      for (let row = first; row < tokens.length; row++, at++) {
        this.#rowSlices[at] = index;
        this.#rowIndices[at] = row;
      }
    }
  }

  close(): void {
    if (this.#state === 'closed') return;
    if (this.#state === 'running') {
      // The other ranks are waiting for a step and end by themselves.
      this.#collective.close();
      this.#rank.close();
    }
    this.#state = 'closed';
  }
}
