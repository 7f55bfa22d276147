/**
 * Which blocks are in use and by how many: reference counts and a free list. Blocks whose rows are worth keeping are
 * freed to the list's end and taken from its front, so the list is also the LRU of cached blocks. Knows ids and counts
 * only; what a block holds is the prefix cache's matter.
 */
import assert from 'node:assert';

export class BlockPool {
  readonly size: number;
  /** Doubly linked through `#size`, the sentinel. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #references: Int32Array;
  #free: number;

  constructor(size: number) {
    this.size = size;
    this.#next = Int32Array.from({ length: size + 1 }, (_, block) => (block + 1) % (size + 1));
    this.#previous = Int32Array.from({ length: size + 1 }, (_, block) => (block + size) % (size + 1));
    this.#references = new Int32Array(size);
    this.#free = size;
  }

  /** Blocks that nobody refers to; some of them may be cached. */
  get free(): number {
    return this.#free;
  }

  references(block: number): number {
    return this.#references[block]!;
  }

  /** Takes the `count` blocks freed longest ago, each with one reference; all of them or none. */
  take(count: number): number[] | undefined {
    if (count > this.#free) return undefined;
    return Array.from({ length: count }, () => {
      const block = this.#next[this.size]!;
      this.retain(block);
      return block;
    });
  }

  /** One reference more; the first takes the block off the free list. */
  retain(block: number): void {
    if (this.#references[block]!++ > 0) return;
    const next = this.#next[block]!;
    const previous = this.#previous[block]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#free--;
  }

  /** One reference less; after the last the block is free: taken last when `cached`, else first. */
  release(block: number, cached: boolean): void {
    assert(this.#references[block]! > 0, `block ${block} is released more often than retained`);
    if (--this.#references[block]! > 0) return;
    const previous = cached ? this.#previous[this.size]! : this.size;
    const next = this.#next[previous]!;
    this.#next[previous] = block;
    this.#previous[next] = block;
    this.#next[block] = next;
    this.#previous[block] = previous;
    this.#free++;
  }

  /** The free list in the order in which blocks will be taken. */
  *freeBlocks(): Iterable<number> {
    for (let block = this.#next[this.size]!; block !== this.size; block = this.#next[block]!) yield block;
  }
}
