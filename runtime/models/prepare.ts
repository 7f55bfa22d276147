/**
 * Makes what one rank runs: its two graphs as ONNX models and, for every weight, where its bytes are. A model and its
 * checkpoint enter. Weights that lie in the checkpoint as they are needed stay there; the others are written to one
 * file for each rank, and one for what ranks share, in the cache folder, once for all processes, or kept in memory where
 * there is none.
 * Must not know sessions.
 *
 * What to do with the result: map each file, give located weights to the session in place (`sharedInitializers`) and
 * those in memory to be copied (`copiedInitializers`); afterwards drop the mapped pages, since ORT has packed what it
 * uses often. Measured: float weights are then resident once.
 */
import { createHash } from 'node:crypto';
import type { DType } from '../dtype.ts';
import { dtypeBytes } from '../dtype.ts';
import { fuseRowInt8 } from '../graph/fuse-row-int8.ts';
import { fuseRows } from '../graph/fuse-rows.ts';
import type { Graph, Initializer } from '../graph/graph.ts';
import { type OnnxModel, toOnnx } from '../graph/onnx.ts';
import { chainRows } from '../graph/row-chain.ts';
import { type Checkpoint, isQuantized } from '../weights/checkpoint.ts';
import type { Model, ModelSpec } from './model.ts';
import { forgetRead } from './quantized-cut.ts';
import { RankGraph } from './rank-graph.ts';
import { forgetRowInt8 } from './row-int8-weight.ts';
import { planShards, type Shard, type ShardUnits } from './shard.ts';
import {
  openWeightCache,
  type WeightCacheRequest,
  type WeightPlace,
  writeWeightCache,
} from './weight-cache.ts';

export interface PreparedWeight {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** In a file, aligned for the type; else `bytes` makes them. */
  readonly location?: WeightPlace;
  /** Read from one end to the other at each step. */
  readonly streamed?: boolean;
  /** In memory, made at each call. */
  readonly bytes?: () => Uint8Array;
}

export interface PreparedGraph {
  readonly onnx: Uint8Array;
  /** Every initializer that the model declares as external. */
  readonly weights: readonly PreparedWeight[];
}

export interface PreparedRank {
  readonly shard: Shard;
  /** `tokens` int32 [tokens] to `hidden` float32 [tokens, hidden]. */
  readonly body: PreparedGraph;
  /** `hidden` float32 [rows, hidden] to `logits` float32 [rows, shard.vocabulary]. */
  readonly head: PreparedGraph;
  /**
   * Both with their products in the form for many rows, and the bytes of the weights in that form; null when it is not
   * wanted.
   */
  readonly manyRows: {
    readonly body: PreparedGraph;
    readonly head: PreparedGraph;
    readonly bytes: number;
  } | null;
}

export interface PrepareOptions {
  readonly rank: number;
  readonly ranks: number;
  /** Folder for prepared weights; null: none may be written. */
  readonly cacheDir: string | null;
  /** Told once, in one line, when the cache folder cannot be used. */
  readonly warn: (message: string) => void;
  /** Bytes of weights prepared so far, of those that must be. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Default: int8. */
  readonly quantizedCompute?: QuantizedCompute;
  /** Whether products in int8, norms and gates are for the engine's kernels in machine code. Default: no. */
  readonly machineCode?: boolean;
  /** With `machineCode`: leave its nodes apart, so that a trace tells their times. Default: no. */
  readonly unchained?: boolean;
  /** Also make graphs for many rows, with this limit of weights (row-int8-weight.ts). */
  readonly rowInt8PairLimit?: number | undefined;
}

/** How products with quantized weights are computed: with activations quantized per block, or in float32. */
export type QuantizedCompute = 'int8' | 'float32';

/** Rows of multiples of this have machine code. */
export const machineCodeColumns = 16;

/** Row ops of the engine. */
const chained: ReadonlySet<string> = new Set([
  'BlockProduct',
  'PagedAttention',
  'AllReduce',
  'AllReduceNorm',
  'AddRmsNorm',
  'GatedSilu',
]);

function forMachineCode(graph: Graph, unchained: boolean): Graph {
  const fused = fuseRows(graph, (columns) => columns % machineCodeColumns === 0);
  return unchained ? fused : chainRows(fused, chained);
}

/** Weights up to this size are copied from memory: a place in a file would cost more. */
const smallBytes = 64 * 1024;

/** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`. */
export function prepareRank(model: Model, checkpoint: Checkpoint, options: PrepareOptions): PreparedRank {
  const { rank, ranks } = options;
  const shard = planShards(model.spec, ranks, shardUnits(model.spec, checkpoint))[rank]!;
  const quantizedCompute = options.quantizedCompute ?? 'int8';
  const quantized = isQuantized(checkpoint);
  const graph = (name: 'body' | 'head', pairLimit?: number): OnnxModel => {
    const rankGraph = new RankGraph(name, {
      spec: model.spec,
      shard,
      checkpoint,
      quantizedCompute,
      blockProducts: options.machineCode ?? false,
      // The head of a quantized model is often stored plain: as float32 it would take more memory, and more time a
      // token, than many layers.
      ...(name === 'head' && quantized && quantizedCompute === 'int8' ? { plainBits: 8 as const } : {}),
      ...(pairLimit === undefined ? {} : { rowInt8PairLimit: pairLimit }),
    });
    if (name === 'body') model.buildBody(rankGraph);
    else model.buildHead(rankGraph);
    const built = rankGraph.builder.build();
    if (pairLimit !== undefined) return toOnnx(fuseRowInt8(built));
    return toOnnx(options.machineCode === true ? forMachineCode(built, options.unchained === true) : built);
  };
  const stored = [graph('body'), graph('head')] as const;
  const { rowInt8PairLimit: pairLimit } = options;
  const many =
    pairLimit === undefined ? null : ([graph('body', pairLimit), graph('head', pairLimit)] as const);
  const external = [...stored, ...(many ?? [])].flatMap((each) => each.external);
  const placed = placeWeights(external, checkpoint, options);
  const prepared = ({ bytes, external }: OnnxModel): PreparedGraph => ({
    onnx: bytes,
    weights: external.map((initializer) => placed.get(initializer)!),
  });
  const bytes = (many ?? [])
    .flatMap((each) => each.external)
    .filter(({ type }) => type.dtype === 'int8')
    .reduce((sum, initializer) => sum + initializerBytes(initializer), 0);
  return {
    shard,
    body: prepared(stored[0]),
    head: prepared(stored[1]),
    manyRows: many && { body: prepared(many[0]), head: prepared(many[1]), bytes },
  };
}

/** The smallest block that the kernels for quantized weights take; plain weights are cut so too. */
const smallestUnit = 16;

/** What is better not cut, quantization blocks of the checkpoint, and what may not be. */
export function shardUnits(
  spec: Pick<ModelSpec, 'heads' | 'kvHeads' | 'headDim'>,
  checkpoint: Pick<Checkpoint, 'tensors'>,
): ShardUnits {
  let block = smallestUnit;
  let quantized = false;
  for (const tensor of checkpoint.tensors.values()) {
    if (tensor.kind !== 'quantized') continue;
    quantized = true;
    block = Math.max(block, tensor.blockSize);
  }
  const columnsOfKvHead = (spec.heads / spec.kvHeads) * spec.headDim;
  let kvHeads = 1;
  while (quantized && kvHeads < spec.kvHeads && (kvHeads * columnsOfKvHead) % smallestUnit !== 0) kvHeads++;
  return { intermediate: block, smallest: smallestUnit, kvHeads };
}

function initializerBytes({ type }: Initializer): number {
  return (type.shape as readonly number[]).reduce(
    (product, length) => product * length,
    dtypeBytes[type.dtype],
  );
}

function placeWeights(
  initializers: readonly Initializer[],
  checkpoint: Checkpoint,
  options: PrepareOptions,
): ReadonlyMap<Initializer, PreparedWeight> {
  const small = (initializer: Initializer): boolean =>
    initializer.source.costly !== true && initializerBytes(initializer) <= smallBytes;
  // A name that both graphs have stands for the same bytes: a table that is looked up in and multiplied with.
  const named = new Map(initializers.map((initializer) => [initializer.name, initializer]));
  const wholeOf = ({ source: { part } }: Initializer): Initializer | undefined =>
    part === undefined ? undefined : named.get(part.of);
  const toCache = [...named.values()].filter(
    (initializer) => !initializer.source.location && !wholeOf(initializer) && !small(initializer),
  );
  const cached = cacheWeights(toCache, checkpoint, options);
  const placeOf = (initializer: Initializer): WeightPlace | undefined => {
    const whole = wholeOf(initializer);
    if (whole === undefined) return initializer.source.location ?? cached?.get(initializer.name);
    const place = placeOf(whole);
    if (place === undefined) return undefined;
    const offset = place.offset + initializer.source.part!.offset;
    return { file: place.file, offset, bytes: initializerBytes(initializer) };
  };
  return new Map(
    initializers.map((initializer) => {
      const { name, type, source } = initializer;
      const { streamed = false } = source;
      const facts = { name, dtype: type.dtype, shape: type.shape, streamed };
      const location = small(initializer) ? undefined : placeOf(initializer);
      return [
        initializer,
        location === undefined ? { ...facts, bytes: () => source.read() } : { ...facts, location },
      ];
    }),
  );
}

/** Places in cache files by name, or undefined when there are none. */
function cacheWeights(
  initializers: readonly Initializer[],
  checkpoint: Checkpoint,
  { cacheDir, warn, onProgress, ranks }: PrepareOptions,
): ReadonlyMap<string, WeightPlace> | undefined {
  if (initializers.length === 0) return new Map();
  // Without an identity a file could not be told from another checkpoint's.
  if (checkpoint.identity === undefined) return undefined;
  if (cacheDir === null) {
    warn('there is no cache folder: prepared weights are kept in memory');
    return undefined;
  }
  const own: Initializer[] = [];
  const shared: Initializer[] = [];
  for (const initializer of initializers) {
    (ranks > 1 && initializer.source.shared === true ? shared : own).push(initializer);
  }
  const total = initializers.reduce((sum, initializer) => sum + initializerBytes(initializer), 0);
  const places = new Map<string, WeightPlace>();
  let before = 0;
  try {
    for (const part of [shared, own]) {
      if (part.length === 0) continue;
      const request = requestFor(part, cacheDir, checkpoint.identity);
      const placed =
        openWeightCache(request) ??
        writeWeightCache(request, warn, (done) => onProgress?.(Math.min(total, before + done), total));
      if (placed === undefined) return undefined;
      for (const [name, place] of placed) places.set(name, place);
      before += request.weights.reduce((sum, { bytes }) => sum + bytes, 0);
    }
    return places;
  } finally {
    forgetRead();
    forgetRowInt8();
  }
}

function requestFor(
  initializers: readonly Initializer[],
  folder: string,
  identity: string,
): WeightCacheRequest {
  const weights = initializers.map((initializer) => ({
    name: initializer.name,
    bytes: initializerBytes(initializer),
    chunks: () => initializer.source.chunks?.() ?? [initializer.source.read()],
  }));
  const facts = [cacheVersion, identity, weights.map(({ name, bytes }) => [name, bytes])];
  return { folder, key: createHash('sha256').update(JSON.stringify(facts)).digest('hex'), weights };
}

/** Part of every key: to be changed when the bytes that a name stands for change. */
const cacheVersion = 2;
