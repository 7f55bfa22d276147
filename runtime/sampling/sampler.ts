/**
 * Chooses one token of a row of logits. Enters: the row, which stays as it is, and the choice's state; leaves
 * an id and, when asked for, log-probabilities of the model's own distribution, before bias, penalties, temperature and
 * truncation. Must not know sequences, blocks or text. All memory of a vocabulary's size is made once.
 */

import { SluiceError } from '../errors.ts';
import {
  type Candidates,
  floatWeight,
  type LogitsRow,
  leastLogit,
  roundWeight,
  type Weighing,
} from '../logits.ts';
import type { ChoiceState } from './choice-state.ts';
import type { TokenLogprob } from './logprob.ts';
import { Nucleus } from './nucleus.ts';
import { uniform } from './random.ts';
import { TopList } from './top-list.ts';

export interface Sampled {
  readonly id: number;
  readonly logprob?: TokenLogprob;
}

export class Sampler {
  readonly #vocabulary: number;
  /** Of the current row, where not all of it are candidates; ids ascending. */
  readonly #candidates: Candidates;
  readonly #top: TopList;
  readonly #nucleus: Nucleus;

  constructor(vocabulary: number) {
    this.#vocabulary = vocabulary;
    this.#candidates = {
      ids: new Int32Array(vocabulary),
      weights: new Float32Array(vocabulary),
      count: 0,
      bound: 0,
      heavier: 0,
    };
    this.#top = new TopList(vocabulary);
    this.#nucleus = new Nucleus(vocabulary);
  }

  /** How `sample` will weigh the next row of this choice; undefined when it will not, or not the row as it is. */
  weighing(state: ChoiceState): Weighing | undefined {
    return state.parameters.temperature === 0 || state.adjusts || this.#takesTop(state)
      ? undefined
      : state.weighing;
  }

  sample(logits: LogitsRow, state: ChoiceState): Sampled {
    const { logprobs, temperature } = state.parameters;
    const row = state.adjusts ? adjusted(logits, state) : logits;
    const best = row.greatest();
    if (best < 0) throw notNumbers();
    const id = temperature === 0 ? best : this.#draw(row, row.at(best), state);
    return logprobs === undefined ? { id } : { id, logprob: this.logprob(logits, id, logprobs) };
  }

  /** The log-probability of `id` in a row, and the `count` most likely. */
  logprob(logits: LogitsRow, id: number, count: number): TokenLogprob {
    const total = logits.logSumExp();
    this.#top.fill(logits, count);
    const top = this.#top.sorted().map((entry) => ({ id: entry.id, logprob: entry.logit - total }));
    return { id, logprob: logits.at(id) - total, top };
  }

  /** Temperature, then min-p, top-k and top-p, each on what the one before it left. */
  #draw(row: LogitsRow, max: number, state: ChoiceState): number {
    const { parameters, weighing, seed, choice, position } = state;
    const { topP, topK } = parameters;
    const candidates = this.#candidates;
    const share = uniform(seed, choice, position);
    if (this.#takesTop(state)) {
      const total = this.#weighTop(row, max, topK, weighing);
      if (!(total > 0)) throw notNumbers();
      candidates.bound = Number.POSITIVE_INFINITY;
      return pick(candidates, share * (topP < 1 ? this.#truncate(topP * total) : total));
    }
    const total = row.weigh(weighing);
    if (!(total > 0)) throw notNumbers();
    if (topP === 1) return row.pick(share * total);
    const mass = topP * total;
    row.heaviest(mass, candidates);
    return pick(candidates, share * this.#truncate(mass - candidates.heavier));
  }

  #takesTop({ parameters: { topK } }: ChoiceState): boolean {
    return topK > 0 && topK < this.#vocabulary;
  }

  /** Makes the `count` most likely the candidates; returns their mass. */
  #weighTop(row: LogitsRow, max: number, count: number, weighing: Weighing): number {
    const { ids, weights } = this.#candidates;
    this.#top.fill(row, count, leastLogit(max, weighing));
    this.#candidates.count = this.#top.copyIds(ids);
    let total = 0;
    for (let i = 0; i < this.#candidates.count; i++) {
      weights[i] = floatWeight(Math.fround(row.at(ids[i]!) - max), weighing.scale);
      total += roundWeight(weights[i]!);
    }
    return total;
  }

  /** Keeps those from the candidates' bound on and so many of the heaviest others that these reach `mass`; returns all mass. */
  #truncate(mass: number): number {
    const { ids, weights, count, bound } = this.#candidates;
    const last = this.#nucleus.last(weights, count, mass, bound);
    const least = weights[last]!;
    let kept = 0;
    let total = 0;
    for (let i = 0; i < count; i++) {
      const weight = weights[i]!;
      if (weight < least || (weight === least && i > last)) continue;
      ids[kept] = ids[i]!;
      weights[kept++] = weight;
      total += roundWeight(weight);
    }
    this.#candidates.count = kept;
    return total;
  }
}

function adjusted(logits: LogitsRow, state: ChoiceState): LogitsRow {
  const { values, row } = logits.copy();
  state.adjust(values);
  return row;
}

/** The candidate in whose part `mass` falls when their weights lie side by side; the last where it falls beyond. */
function pick({ ids, weights, count }: Candidates, mass: number): number {
  let left = mass;
  let last = 0;
  for (let i = 0; i < count; i++) {
    const weight = roundWeight(weights[i]!);
    left -= weight;
    if (left < 0) return ids[i]!;
    if (weight > 0) last = i;
  }
  return ids[last]!;
}
function notNumbers(): SluiceError {
  return new SluiceError('engine_failed', 'the model gave no finite logit for the next token');
}
