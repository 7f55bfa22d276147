/**
 * What an architecture is to the engine. A checkpoint's configuration enters; facts about the model leave, and a
 * function that builds one rank's graphs. Must not know sessions, caches or schedules.
 *
 * From checkpoint to running ranks:
 *   const model = parseModel(checkpoint);                         // registry.ts
 *   const shards = planShards(model.spec, ranks, units);          // shard.ts; done inside prepareRank too
 *   const prepared = prepareRank(model, checkpoint, { rank, ranks, cacheDir, warn });   // prepare.ts, on each rank
 *
 * A rank has two graphs. `body`: input `tokens` int32 [tokens]; output `hidden` float32 [tokens, hidden], after the
 * final norm and equal on all ranks. `head`: input `hidden` float32 [rows, hidden]; output `logits` float32
 * [rows, shard.vocabulary], the rank's slice of the vocabulary. The body has nodes of the domain `sluice`, described
 * in graph/ops/custom.ts.
 */
import type { Activation } from '../graph/ops/elementwise.ts';
import type { Checkpoint } from '../weights/checkpoint.ts';
import type { RankGraph } from './rank-graph.ts';
import type { RopeSpec } from './rope.ts';

export interface ModelSpec {
  /** As config.json's `architectures` names it. */
  readonly architecture: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Columns of the MLP. */
  readonly intermediate: number;
  readonly activation: Activation;
  /** Rows of the embedding and of the logits. */
  readonly vocabulary: number;
  /** Longest sequence that the model was made for, in tokens. */
  readonly maxLength: number;
  readonly rope: RopeSpec;
  /** Whether something is summed over the KV heads of all ranks: each is then on one. Default: no. */
  readonly sumsOverKvHeads?: boolean;
  /** What scores q.k are multiplied by. */
  readonly attentionScale: number;
  /** Scores become cap * tanh(score / cap), before the mask; null: they stay. */
  readonly attentionSoftcap: number | null;
  /** By layer: how many positions, itself included, a token sees; null: all. */
  readonly windows: readonly (number | null)[];
  /** Tokens that end a sequence. */
  readonly eosTokenIds: readonly number[];
  readonly tiedEmbeddings: boolean;
}

export interface Model {
  readonly spec: ModelSpec;
  /** Adds the layers between token ids and the final hidden state to a rank's body. */
  buildBody(graph: RankGraph): void;
  /** Adds what turns hidden rows into logits to a rank's head. */
  buildHead(graph: RankGraph): void;
}

/** One row of the registry. */
export interface Architecture {
  /** As config.json's `architectures` names it. */
  readonly name: string;
  /** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`. */
  parse(checkpoint: Pick<Checkpoint, 'path' | 'config' | 'generationConfig' | 'tensors'>): Model;
}
