/**
 * The smallest set of candidates that holds a given share of the mass, found by quickselect on mass: linear on average
 * and without a sort.
 */
import { roundWeight } from '../logits.ts';

/** Works in memory that is made once for a vocabulary. */
export class Nucleus {
  readonly #order: Int32Array;

  constructor(vocabulary: number) {
    this.#order = new Int32Array(vocabulary);
  }

  /**
   * Of the candidates lighter than `bound`: the last of the smallest set, taken by weight (of equal ones the lower index
   * first), whose rounded weights reach `mass`. Those of greater weight, or equal weight and no greater index, are the set.
   */
  last(weights: Float32Array, count: number, mass: number, bound: number): number {
    const order = this.#order;
    let high = 0;
    for (let i = 0; i < count; i++) if (weights[i]! < bound) order[high++] = i;
    let low = 0;
    let missing = mass;
    while (high - low > 1) {
      const middle = this.#partition(weights, low, high);
      let before = 0;
      for (let i = low; i < middle; i++) before += roundWeight(weights[order[i]!]!);
      const own = roundWeight(weights[order[middle]!]!);
      if (before >= missing) {
        high = middle;
      } else if (before + own >= missing || middle + 1 === high) {
        return order[middle]!;
      } else {
        missing -= before + own;
        low = middle + 1;
      }
    }
    return order[low]!;
  }

  /** Orders [low, high) around a pivot, heavier ones before it; returns where the pivot ends. */
  #partition(weights: Float32Array, low: number, high: number): number {
    const order = this.#order;
    swap(order, this.#median(weights, low, high), high - 1);
    const pivot = order[high - 1]!;
    let end = low;
    for (let i = low; i < high - 1; i++) if (precedes(weights, order[i]!, pivot)) swap(order, i, end++);
    swap(order, end, high - 1);
    return end;
  }

  #median(weights: Float32Array, low: number, high: number): number {
    const order = this.#order;
    let [a, b, c] = [low, (low + high) >>> 1, high - 1];
    if (precedes(weights, order[b]!, order[a]!)) [a, b] = [b, a];
    if (precedes(weights, order[c]!, order[b]!)) [b, c] = [c, b];
    return precedes(weights, order[b]!, order[a]!) ? a : b;
  }
}

function precedes(weights: Float32Array, a: number, b: number): boolean {
  return weights[a]! > weights[b]! || (weights[a]! === weights[b]! && a < b);
}

function swap(order: Int32Array, a: number, b: number): void {
  const kept = order[a]!;
  order[a] = order[b]!;
  order[b] = kept;
}
