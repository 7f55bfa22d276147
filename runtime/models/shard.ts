/**
 * Which part of a model each rank holds. Sizes enter, ranges leave. Pure.
 *
 * Heads are cut by whole KV heads, unevenly where they do not divide; a rank beyond them holds no attention. The MLP
 * is cut in units so that all ranks have about the same work. Ranges of consecutive ranks follow each other.
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
  /** Query heads; exactly those of `kvHeads`. */
  readonly heads: Range;
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
  const kvUnits = Math.ceil(facts.kvHeads / units.kvHeads);
  let unit = units.intermediate;
  while (unit > units.smallest && Math.ceil(facts.intermediate / unit) < ranks) unit /= 2;
  const mlpUnits = Math.ceil(facts.intermediate / unit);
  if (ranks > mlpUnits) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${ranks} ranks: the model's MLP of ${facts.intermediate} columns can be cut into ${mlpUnits} pieces of ${unit}, so at most ${mlpUnits} ranks`,
    );
  }
  const group = facts.heads / facts.kvHeads;
  // Ranks without attention come last.
  const kvCounts = Array.from({ length: ranks }, (_, rank) =>
    kvUnits >= ranks
      ? Math.floor((kvUnits * (rank + 1)) / ranks) - Math.floor((kvUnits * rank) / ranks)
      : Number(rank < kvUnits),
  );
  const kvHeads = cut(kvCounts, units.kvHeads, facts.kvHeads);
  // Multiplications a token: q and o have `group` times the heads that k and v have.
  const load = kvHeads.map((range) => rangeSize(range) * (2 * group + 2) * facts.headDim);
  const mlpCounts = load.map(() => 1);
  for (let rank = 0; rank < ranks; rank++) load[rank]! += 3 * unit;
  for (let assigned = ranks; assigned < mlpUnits; assigned++) {
    const lightest = load.indexOf(Math.min(...load));
    mlpCounts[lightest]!++;
    load[lightest]! += 3 * unit;
  }
  const intermediate = cut(mlpCounts, unit, facts.intermediate);
  return kvHeads.map((range, rank) => ({
    rank,
    ranks,
    kvHeads: range,
    heads: { start: range.start * group, end: range.end * group },
    intermediate: intermediate[rank]!,
    vocabulary: {
      start: vocabularyStart(facts.vocabulary, rank, ranks),
      end: vocabularyStart(facts.vocabulary, rank + 1, ranks),
    },
  }));
}

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
