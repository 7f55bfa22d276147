/**
 * Which part of a model each rank holds. Sizes enter, ranges leave. Pure.
 *
 * Heads are cut by whole KV heads, or, where those would leave one rank with much more than the others, by query heads: a KV
 * head whose query heads are on two ranks is then on both. Ranks meet after attention and after the MLP, so each of the two
 * is cut as evenly as it can be; neither makes up for the other. Ranges of consecutive ranks follow each other.
 */
import { SluiceError } from '../errors.ts';

/** From `start` up to `end`, which is not part of it. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

export const rangeSize = (range: Range): number => range.end - range.start;

export interface Shard {
  readonly rank: number;
  readonly ranks: number;
  readonly heads: Range;
  /** All that `heads` attend to. */
  readonly kvHeads: Range;
  /** Columns of the MLP. */
  readonly intermediate: Range;
  /** Rows of the output embedding. */
  readonly vocabulary: Range;
}

export interface ShardFacts {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly intermediate: number;
  readonly vocabulary: number;
  /** What is summed over all KV heads of all ranks must have each once. Default: nothing is. */
  readonly sumsOverKvHeads?: boolean;
}

export interface ShardUnits {
  /** Columns of the MLP that stay together where there are enough of them: the quantization block. */
  readonly intermediate: number;
  /** Columns that stay together in any case; `intermediate` is it times a power of two. */
  readonly smallest: number;
  /** KV heads that stay together, so that the output projection is cut on quantization blocks. */
  readonly kvHeads: number;
}

/** Throws SluiceError `checkpoint_unsupported` when there are more ranks than units of the MLP. */
export function planShards(facts: ShardFacts, ranks: number, units: ShardUnits): Shard[] {
  let unit = units.intermediate;
  while (unit > units.smallest && Math.ceil(facts.intermediate / unit) < ranks) unit /= 2;
  const mlpUnits = Math.ceil(facts.intermediate / unit);
  if (ranks > mlpUnits) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${ranks} ranks: the model's MLP of ${facts.intermediate} columns can be cut into ${mlpUnits} pieces of ${unit}, so at most ${mlpUnits} ranks`,
    );
  }
  const mlpCounts = Array.from({ length: ranks }, (_, rank) => evenShare(mlpUnits, rank, ranks));
  const intermediate = cut(mlpCounts, unit, facts.intermediate);
  return planHeads(facts, ranks, units).map((heads, rank) => ({
    rank,
    ranks,
    ...heads,
    intermediate: intermediate[rank]!,
    vocabulary: {
      start: vocabularyStart(facts.vocabulary, rank, ranks),
      end: vocabularyStart(facts.vocabulary, rank + 1, ranks),
    },
  }));
}

/** How much less the rank with most must have for KV heads to be on two ranks, whose caches hold them twice. */
const worthSharing = 0.9;

type HeadRanges = Pick<Shard, 'heads' | 'kvHeads'>;

function planHeads(facts: ShardFacts, ranks: number, units: ShardUnits): HeadRanges[] {
  const group = facts.heads / facts.kvHeads;
  const kvUnits = Math.ceil(facts.kvHeads / units.kvHeads);
  // Ranks without attention come last.
  const counts = Array.from({ length: ranks }, (_, rank) =>
    kvUnits >= ranks ? evenShare(kvUnits, rank, ranks) : Number(rank < kvUnits),
  );
  const whole = cut(counts, units.kvHeads, facts.kvHeads).map((kvHeads) => ({
    kvHeads,
    heads: { start: kvHeads.start * group, end: kvHeads.end * group },
  }));
  if (facts.sumsOverKvHeads || units.kvHeads > 1 || facts.headDim % units.smallest !== 0) return whole;
  const shared = Array.from({ length: ranks }, (_, rank): HeadRanges => {
    const start = Math.floor((facts.heads * rank) / ranks);
    const end = Math.floor((facts.heads * (rank + 1)) / ranks);
    return {
      heads: { start, end },
      kvHeads: { start: Math.floor(start / group), end: Math.ceil(end / group) },
    };
  });
  const most = (plan: readonly HeadRanges[]): number =>
    Math.max(...plan.map(({ heads }) => rangeSize(heads)));
  return shared.every(({ heads }) => rangeSize(heads) > 0) && most(shared) <= worthSharing * most(whole)
    ? shared
    : whole;
}

const evenShare = (units: number, rank: number, ranks: number): number =>
  Math.floor((units * (rank + 1)) / ranks) - Math.floor((units * rank) / ranks);

/** Outputs that lie together in prepared weights: cut between them, ranks can share a table's bytes. */
const outputsTogether = 16;

function vocabularyStart(vocabulary: number, rank: number, ranks: number): number {
  let unit = outputsTogether;
  // Of so few, one more would be much.
  while (unit > 1 && vocabulary / unit < 8 * ranks) unit /= 2;
  return rank === ranks ? vocabulary : Math.floor((vocabulary * rank) / ranks / unit) * unit;
}

/** Counts of units as consecutive ranges; the last unit may be cut short by the total. */
function cut(counts: readonly number[], unit: number, total: number): Range[] {
  let units = 0;
  return counts.map((count) => {
    const start = Math.min(total, units * unit);
    units += count;
    return { start, end: Math.min(total, units * unit) };
  });
}
