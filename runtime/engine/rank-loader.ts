/**
 * Makes one rank of a model: opens the checkpoint, builds the rank's graphs, compiles them with the rank's share of
 * the weights. Runs on the rank's own thread, whose functions the custom ops are.
 */
import type { Device } from '../driver/device.ts';
import type { ModelSpec } from '../models/model.ts';
import { prepareRank, type QuantizedCompute } from '../models/prepare.ts';
import { parseModel } from '../models/registry.ts';
import { rangeSize, type Shard } from '../models/shard.ts';
import { CustomOpDomain } from '../ort/custom-op.ts';
import { nativeAddresses } from '../ort/library.ts';
import { placeCode } from '../ort/native-code.ts';
import type { Checkpoint } from '../weights/checkpoint.ts';
import { type OpenOptions, openCheckpoint } from '../weights/open.ts';
import { blockProductOp } from './block-product-op.ts';
import type { Collective } from './collective/collective.ts';
import { CompiledGraph } from './compile.ts';
import type { LoadProgress } from './engine.ts';
import { AttentionNodes } from './kernels/attention-nodes.ts';
import type { AttentionShape, KvDType } from './kernels/attention-reference.ts';
import { LogitsTile, type SharedTile } from './kernels/logits-tile.ts';
import { PagedAttention, pageBytes } from './kernels/paged-attention.ts';
import type { InstructionSet } from './kernels/x64/processor.ts';
import { rowGatherCode } from './kernels/x64/row-gather.ts';
import { opDomain } from './op-domain.ts';
import { pagedAttentionOp, StepState } from './ops.ts';
import { Rank } from './rank.ts';
import { reduceOps } from './reduce-ops.ts';
import { RopeAngles } from './rope.ts';
import { rowChainOp } from './row-chain-op.ts';
import { rowInt8Ops } from './row-int8-ops.ts';
import { rowOps } from './row-ops.ts';
import { planCapacity, type StepLimits } from './step-message.ts';
import { tableRowsOp } from './table-rows-op.ts';

/**
 * Where a checkpoint is, in a form that any thread can open: a folder, or a module that exports
 * `openCheckpoint(argument)` (weights that are made, not read).
 */
export type CheckpointSource =
  | ({ readonly path: string } & OpenOptions)
  | { readonly module: string; readonly argument: unknown };

/** A thread opens a source once. */
const opened = new WeakMap<CheckpointSource, Checkpoint>();

export async function openSource(source: CheckpointSource): Promise<Checkpoint> {
  if ('path' in source) {
    // The engine never looks at words: reading them takes as long as the rest of opening, and they would stay in memory.
    const checkpoint = opened.get(source) ?? openCheckpoint(source.path, { ...source, vocabulary: false });
    opened.set(source, checkpoint);
    return checkpoint;
  }
  const { openCheckpoint: make } = (await import(source.module)) as {
    openCheckpoint(argument: unknown): Checkpoint;
  };
  return make(source.argument);
}

/** What all ranks are told; plain data and shared memory. */
export interface RankLoad {
  readonly checkpoint: CheckpointSource;
  readonly ranks: number;
  readonly devices: readonly Device[];
  readonly limits: StepLimits;
  readonly kvDType: KvDType;
  readonly cacheDir: string | null;
  readonly quantizedCompute: QuantizedCompute;
  /** What products with quantized weights are made of; null: ONNX Runtime's kernels. */
  readonly instructions: InstructionSet | null;
  /** Whether keys and values of float32 and bfloat16 are multiplied in bfloat16. */
  readonly attendsInBfloat16: boolean;
  /** The limit of weights for steps of many rows (models/row-int8-weight.ts); null: there are none. */
  readonly rowInt8PairLimit: number | null;
  readonly profilePrefix: string | null;
  readonly logits: SharedTile;
}

export interface RankSizes {
  /** Bytes of one KV block on this rank, in all layers. */
  readonly blockBytes: number;
  /** Bytes of the weights in their form for many rows. */
  readonly manyRowBytes: number;
}

export interface LoadedRank extends RankSizes {
  /** Makes the KV pool; the rank is then ready for steps. */
  start(blockCount: number): Rank;
}

export interface LoadReport {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** Throws SluiceError: the checkpoint's faults, or ONNX Runtime's. */
export async function loadRank(
  load: RankLoad,
  rank: number,
  collective: Collective,
  { onProgress, onWarning }: LoadReport = {},
): Promise<LoadedRank> {
  const { ranks, limits, kvDType } = load;
  const checkpoint = await openSource(load.checkpoint);
  const model = parseModel(checkpoint);
  const prepared = prepareRank(model, checkpoint, {
    rank,
    ranks,
    cacheDir: load.cacheDir,
    quantizedCompute: load.quantizedCompute,
    machineCode: load.instructions !== null,
    unchained: load.profilePrefix !== null,
    rowInt8PairLimit: load.rowInt8PairLimit ?? undefined,
    warn: onWarning ?? (() => {}),
    onProgress: (done, total) => onProgress?.({ phase: 'weights', done, total }),
  });
  const layers = attentionShapes(model.spec, prepared.shard);
  const state = new StepState();
  const { instructions } = load;
  const attentionNodes =
    instructions === null
      ? undefined
      : new AttentionNodes({
          layers,
          blockTokens: limits.blockTokens,
          dtype: kvDType,
          instructions,
          ...(load.attendsInBfloat16 ? { bfloat16Keys: limits.maxLength } : {}),
        });
  const chainable = [
    pagedAttentionOp(layers, state, attentionNodes),
    ...reduceOps(collective, instructions),
    ...(instructions === null ? [] : [blockProductOp(instructions), ...rowOps(instructions)]),
  ];
  const ownOps = [
    ...chainable,
    ...rowInt8Ops(state),
    tableRowsOp(state),
    ...(instructions === null ? [] : [rowChainOp(chainable, state, limits.maxStepTokens)]),
  ];
  const ops = new CustomOpDomain(opDomain, ownOps, {
    rows: state.rows,
    code: instructions === null ? undefined : placeCode(rowGatherCode(nativeAddresses)),
  });
  const options = { customOps: [ops], threads: load.devices[rank]!.threads };
  const { manyRows } = prepared;
  const graphs = {
    body: prepared.body,
    head: prepared.head,
    manyRowsBody: manyRows?.body,
    manyRowsHead: manyRows?.head,
  };
  const total = manyRows === null ? 2 : 4;
  let done = 0;
  const compile = (name: keyof typeof graphs): CompiledGraph => {
    onProgress?.({ phase: 'compile', done: done++, total });
    const { profilePrefix: prefix } = load;
    return new CompiledGraph(graphs[name]!, {
      ...options,
      ...(prefix === null ? {} : { profilePrefix: `${prefix}-rank${rank}-${name}` }),
    });
  };
  const body = compile('body');
  const head = compile('head');
  const forManyRows =
    manyRows === null ? null : { body: compile('manyRowsBody'), head: compile('manyRowsHead') };
  onProgress?.({ phase: 'compile', done, total });
  const { vocabulary } = prepared.shard;
  return {
    blockBytes: layers.reduce((sum, shape) => sum + pageBytes(shape, limits.blockTokens, kvDType), 0),
    manyRowBytes: manyRows?.bytes ?? 0,
    start(blockCount) {
      state.attention = new PagedAttention({
        layers,
        blockTokens: limits.blockTokens,
        blockCount,
        dtype: kvDType,
        maxStepTokens: limits.maxStepTokens,
        planWords: planCapacity(limits),
        ...(attentionNodes === undefined ? {} : { nodes: attentionNodes }),
      });
      return new Rank({
        collective,
        body,
        head,
        manyRows: forManyRows,
        customOps: ops,
        attention: state.attention,
        rope: new RopeAngles(model.spec.rope),
        state,
        hiddenSize: model.spec.hidden,
        share: rangeSize(vocabulary),
        maxStepTokens: limits.maxStepTokens,
        logits: new LogitsTile(load.logits, rank),
      });
    },
  };
}

/** The attention of each layer as far as this rank holds its heads. */
function attentionShapes(spec: ModelSpec, shard: Shard): AttentionShape[] {
  return Array.from({ length: spec.layers }, (_, layer) => ({
    heads: rangeSize(shard.heads),
    kvHeads: rangeSize(shard.kvHeads),
    group: spec.heads / spec.kvHeads,
    firstInGroup: shard.heads.start % (spec.heads / spec.kvHeads),
    headDim: spec.headDim,
    rotaryDim: spec.rope.rotaryDim,
    scale: spec.attentionScale,
    window: spec.windows[layer] ?? 0,
    softcap: spec.attentionSoftcap ?? 0,
  }));
}
