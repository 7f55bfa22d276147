/**
 * The k most likely ids of a row, found in one pass: a heap whose root is the least of those kept, so that nearly every
 * id costs one comparison. More likely means a greater logit, or the lower id of equal ones.
 */
import type { LogitsRow } from '../logits.ts';

export class TopList {
  readonly #ids: Int32Array;
  readonly #logits: Float32Array;
  #size = 0;

  constructor(most: number) {
    this.#ids = new Int32Array(most);
    this.#logits = new Float32Array(most);
  }

  /** Finds the first `count` of the row's ids, or as many as are no less than `floor`. */
  fill(row: LogitsRow, count: number, floor = Number.NEGATIVE_INFINITY): void {
    this.#size = 0;
    let id = 0;
    for (; id < row.size && this.#size < count; id++) {
      const logit = row.at(id);
      if (logit >= floor && logit > Number.NEGATIVE_INFINITY) this.#push(id, logit);
    }
    if (count === 0) return;
    // An equal logit of a higher id is less likely than what is kept.
    for (id = row.nextAbove(id, this.#least); id < row.size; id = row.nextAbove(id + 1, this.#least)) {
      this.#replaceRoot(id, row.at(id));
    }
  }

  get #least(): number {
    return this.#logits[0]!;
  }

  /** The kept ids, most likely first. */
  sorted(): { id: number; logit: number }[] {
    return Array.from({ length: this.#size }, (_, i) => ({
      id: this.#ids[i]!,
      logit: this.#logits[i]!,
    })).sort((a, b) => b.logit - a.logit || a.id - b.id);
  }

  /** Writes the kept ids, in ascending order. */
  copyIds(target: Int32Array): number {
    target.set(this.#ids.subarray(0, this.#size));
    target.subarray(0, this.#size).sort();
    return this.#size;
  }

  #push(id: number, logit: number): void {
    let child = this.#size++;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (!this.#less(id, logit, parent)) break;
      this.#move(parent, child);
      child = parent;
    }
    this.#ids[child] = id;
    this.#logits[child] = logit;
  }

  #replaceRoot(id: number, logit: number): void {
    let parent = 0;
    for (;;) {
      let child = 2 * parent + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && this.#less(this.#ids[child + 1]!, this.#logits[child + 1]!, child))
        child++;
      if (this.#less(id, logit, child)) break;
      this.#move(child, parent);
      parent = child;
    }
    this.#ids[parent] = id;
    this.#logits[parent] = logit;
  }

  #less(id: number, logit: number, index: number): boolean {
    const other = this.#logits[index]!;
    return logit < other || (logit === other && id > this.#ids[index]!);
  }

  #move(from: number, to: number): void {
    this.#ids[to] = this.#ids[from]!;
    this.#logits[to] = this.#logits[from]!;
  }
}
