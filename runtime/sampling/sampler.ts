/**
 * Chooses one token of a row of logits. Enters: the row, which stays as it is, and the choice's state; leaves
 * an id and, when asked for, log-probabilities of the model's own distribution, before bias, penalties, temperature and
 * truncation. Must not know sequences, blocks or text. All memory of a vocabulary's size is made once.
 */

import { SluiceError } from '../errors.ts';
import type { ChoiceState } from './choice-state.ts';
import { exponential } from './exponential.ts';
import type { TokenLogprob } from './logprob.ts';
import { Nucleus } from './nucleus.ts';
import type { SamplingParameters } from './parameters.ts';
import { uniform } from './random.ts';
import { nextAbove, TopList } from './top-list.ts';

export interface Sampled {
  readonly id: number;
  readonly logprob?: TokenLogprob;
}

export class Sampler {
  /** Candidates of the current row, ids ascending, with weights proportional to their probabilities. */
  readonly #ids: Int32Array;
  readonly #weights: Float64Array;
  readonly #adjusted: Float32Array;
  readonly #top: TopList;
  readonly #nucleus: Nucleus;

  constructor(vocabulary: number) {
    this.#ids = new Int32Array(vocabulary);
    this.#weights = new Float64Array(vocabulary);
    this.#adjusted = new Float32Array(vocabulary);
    this.#top = new TopList(vocabulary);
    this.#nucleus = new Nucleus(vocabulary);
  }

  sample(logits: Float32Array, state: ChoiceState): Sampled {
    const { logprobs, temperature } = state.parameters;
    let row = logits;
    if (state.adjusts) {
      row = this.#adjusted;
      row.set(logits);
      state.adjust(row);
    }
    const id = temperature === 0 ? mostLikely(row) : this.#draw(row, state);
    return logprobs === undefined ? { id } : { id, logprob: this.logprob(logits, id, logprobs) };
  }

  /** The log-probability of `id` in a row, and the `count` most likely. */
  logprob(logits: Float32Array, id: number, count: number): TokenLogprob {
    const total = logSumExp(logits);
    this.#top.fill(logits, count);
    const top = this.#top.sorted().map((entry) => ({ id: entry.id, logprob: entry.logit - total }));
    return { id, logprob: logits[id]! - total, top };
  }

  /** Temperature, then min-p, top-k and top-p, each on what the one before it left. */
  #draw(logits: Float32Array, state: ChoiceState): number {
    const { parameters, seed, choice, position } = state;
    const max = logits[mostLikely(logits)]!;
    let count = this.#candidates(logits, max, parameters);
    let total = 0;
    for (let i = 0; i < count; i++) {
      const weight = exponential((logits[this.#ids[i]!]! - max) / parameters.temperature);
      this.#weights[i] = weight;
      total += weight;
    }
    if (!(total > 0)) throw notNumbers();
    if (parameters.topP < 1 && count > 1) [count, total] = this.#truncate(count, total, parameters.topP);
    let left = uniform(seed, choice, position) * total;
    // Ids ascend, so a logit's rounding moves the borders between tokens a little and never reorders them.
    for (let i = 0; i < count; i++) {
      left -= this.#weights[i]!;
      if (left < 0) return this.#ids[i]!;
    }
    return this.#ids[lastPositive(this.#weights, count)]!;
  }

  #candidates(logits: Float32Array, max: number, parameters: SamplingParameters): number {
    const { topK, minP, temperature } = parameters;
    const floor = minP > 0 ? max + temperature * Math.log(minP) : Number.NEGATIVE_INFINITY;
    if (topK > 0 && topK < logits.length) {
      this.#top.fill(logits, topK, floor);
      return this.#top.copyIds(this.#ids);
    }
    let count = 0;
    for (let id = 0; id < logits.length; id++) if (logits[id]! >= floor) this.#ids[count++] = id;
    return count;
  }

  /** Keeps the candidates that make up `share` of the mass; returns their number and mass. */
  #truncate(count: number, total: number, share: number): [number, number] {
    const last = this.#nucleus.last(this.#weights, count, total, share);
    const least = this.#weights[last]!;
    let kept = 0;
    let mass = 0;
    for (let i = 0; i < count; i++) {
      const weight = this.#weights[i]!;
      if (weight < least || (weight === least && i > last)) continue;
      this.#ids[kept] = this.#ids[i]!;
      this.#weights[kept++] = weight;
      mass += weight;
    }
    return [kept, mass];
  }
}

/** The first of the greatest. */
function mostLikely(logits: Float32Array): number {
  let best = -1;
  let max = Number.NEGATIVE_INFINITY;
  for (let id = nextAbove(logits, 0, max); id < logits.length; id = nextAbove(logits, id + 1, max)) {
    best = id;
    max = logits[id]!;
  }
  if (best < 0) throw notNumbers();
  return best;
}

/** In one pass, rescaling the sum when a new maximum turns up. */
export function logSumExp(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  let sum = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    if (logit > max) {
      sum = sum * exponential(max - logit) + 1;
      max = logit;
    } else if (logit > Number.NEGATIVE_INFINITY) {
      sum += exponential(logit - max);
    }
  }
  return max + Math.log(sum);
}

function lastPositive(weights: Float64Array, count: number): number {
  let last = count - 1;
  while (last > 0 && weights[last] === 0) last--;
  return last;
}

function notNumbers(): SluiceError {
  return new SluiceError('engine_failed', 'the model gave no finite logit for the next token');
}
