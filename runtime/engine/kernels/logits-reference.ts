/** The plain form of a row of logits: what logits-tile.ts and its kernel are compared with. Must not know shards. */
import {
  bucketBound,
  bucketCount,
  bucketOf,
  type Candidates,
  floatWeight,
  type LogitsRow,
  leastLogit,
  roundWeight,
  type Weighing,
} from '../../logits.ts';

export class ReferenceRow implements LogitsRow {
  readonly values: Float32Array;
  #weights: number[] = [];
  #floats: number[] = [];

  constructor(values: Float32Array) {
    this.values = values;
  }

  get size(): number {
    return this.values.length;
  }

  at(id: number): number {
    return this.values[id]!;
  }

  greatest(): number {
    let best = -1;
    let max = Number.NEGATIVE_INFINITY;
    this.values.forEach((logit, id) => {
      if (logit > max) [best, max] = [id, logit];
    });
    return best;
  }

  nextAbove(start: number, least: number): number {
    let id = start;
    while (id < this.size && !(this.values[id]! > least)) id++;
    return id;
  }

  logSumExp(): number {
    const best = this.greatest();
    if (best < 0) return Number.NEGATIVE_INFINITY;
    const max = this.values[best]!;
    return max + Math.log(this.values.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
  }

  weigh(weighing: Weighing): number {
    const max = this.values[this.greatest()] ?? Number.NaN;
    const least = leastLogit(max, weighing);
    this.#floats = Array.from(this.values, (logit) =>
      logit >= least ? floatWeight(Math.fround(logit - max), weighing.scale) : 0,
    );
    this.#weights = this.#floats.map(roundWeight);
    return this.#weights.reduce((sum, weight) => sum + weight, 0);
  }

  pick(mass: number): number {
    let left = mass;
    for (const [id, weight] of this.#weights.entries()) {
      left -= weight;
      if (left < 0) return id;
    }
    return this.#weights.findLastIndex((weight) => weight > 0);
  }

  heaviest(mass: number, into: Candidates): void {
    const masses = new Array<number>(bucketCount).fill(0);
    const buckets = this.#floats.map(bucketOf);
    for (const [id, bucket] of buckets.entries()) masses[bucket]! += this.#weights[id]!;
    let last = 0;
    into.heavier = 0;
    while (last < bucketCount - 1 && into.heavier + masses[last]! < mass) into.heavier += masses[last++]!;
    into.bound = last === 0 ? Number.POSITIVE_INFINITY : bucketBound(last - 1);
    into.count = 0;
    for (const [id, bucket] of buckets.entries()) {
      if (bucket > last || this.#weights[id] === 0) continue;
      into.ids[into.count] = id;
      into.weights[into.count++] = this.#floats[id]!;
    }
  }

  copy(): { values: Float32Array; row: ReferenceRow } {
    const row = new ReferenceRow(this.values.slice());
    return { values: row.values, row };
  }
}
