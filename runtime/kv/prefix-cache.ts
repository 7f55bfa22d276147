/**
 * Which full block holds which tokens after which: a tree whose nodes are block ids and whose roots are salts. Found by
 * chained hash, then verified: a hit has the parent asked for and the very tokens, so by induction the whole prefix is
 * the same and a colliding hash can only miss.
 *
 * Invariant, kept by the order in which tables release their blocks: a cached block's parent is cached.
 */
import type { TokenChain } from './token-chain.ts';

/** Above any block: the root of a salt. Roots are negative, blocks are not. */
export type PrefixNode = number;

export class PrefixCache {
  readonly #blockTokens: number;
  /** [block][row]: the tokens of cached blocks. */
  readonly #tokens: Int32Array;
  /** [block]: chained hash; NaN while the block is not cached. */
  readonly #hashes: Float64Array;
  readonly #parents: Int32Array;
  readonly #byHash = new Map<number, number>();
  readonly #children = new Map<PrefixNode, Set<number>>();
  readonly #roots = new Map<string, PrefixNode>();
  readonly #salts = new Map<PrefixNode, string>();
  #lastRoot = 0;

  constructor(blockCount: number, blockTokens: number) {
    this.#blockTokens = blockTokens;
    this.#tokens = new Int32Array(blockCount * blockTokens);
    this.#hashes = new Float64Array(blockCount).fill(Number.NaN);
    this.#parents = new Int32Array(blockCount);
  }

  has(block: number): boolean {
    return !Number.isNaN(this.#hashes[block]!);
  }

  parentOf(block: number): PrefixNode {
    return this.#parents[block]!;
  }

  /** The root of a salt; undefined while nothing of that salt is cached. */
  root(salt: string): PrefixNode | undefined {
    return this.#roots.get(salt);
  }

  /** The cached block that holds block `index` of the chain, its predecessors being `parent`. */
  find(chain: TokenChain, index: number, parent: PrefixNode): number | undefined {
    const block = this.#byHash.get(chain.hash(index));
    if (block === undefined || this.#parents[block] !== parent) return undefined;
    return this.#sharedRows(chain, index, block) === this.#blockTokens ? block : undefined;
  }

  /** The child of `parent` that shares the most leading rows with block `index` of the chain, at most `limit` of them. */
  closest(
    chain: TokenChain,
    index: number,
    parent: PrefixNode,
    limit: number,
  ): { block: number; rows: number } {
    let best = { block: -1, rows: 0 };
    for (const block of this.#children.get(parent) ?? []) {
      const rows = Math.min(this.#sharedRows(chain, index, block), limit);
      if (rows > best.rows) best = { block, rows };
    }
    return best;
  }

  /**
   * Makes `block` the cached holder of block `index` of the chain. Returns the holder: `block`, or the block that holds
   * the same tokens already, or undefined when a hash collision leaves this one uncached.
   */
  insert(
    chain: TokenChain,
    index: number,
    parent: PrefixNode | undefined,
    block: number,
  ): number | undefined {
    const above = parent ?? this.#root(chain.root);
    const hash = chain.hash(index);
    if (this.#byHash.has(hash)) return this.find(chain, index, above);
    this.#byHash.set(hash, block);
    this.#hashes[block] = hash;
    this.#parents[block] = above;
    this.#tokens.set(
      chain.slice(index * this.#blockTokens, (index + 1) * this.#blockTokens),
      block * this.#blockTokens,
    );
    const siblings = this.#children.get(above);
    if (siblings === undefined) this.#children.set(above, new Set([block]));
    else siblings.add(block);
    return block;
  }

  forget(block: number): void {
    if (!this.has(block)) return;
    this.#byHash.delete(this.#hashes[block]!);
    this.#hashes[block] = Number.NaN;
    const parent = this.#parents[block]!;
    const siblings = this.#children.get(parent)!;
    siblings.delete(block);
    if (siblings.size > 0) return;
    this.#children.delete(parent);
    if (parent >= 0) return;
    this.#roots.delete(this.#salts.get(parent)!);
    this.#salts.delete(parent);
  }

  #root(salt: string): PrefixNode {
    const known = this.#roots.get(salt);
    if (known !== undefined) return known;
    const root = --this.#lastRoot;
    this.#roots.set(salt, root);
    this.#salts.set(root, salt);
    return root;
  }

  #sharedRows(chain: TokenChain, index: number, block: number): number {
    const start = index * this.#blockTokens;
    const end = Math.min(this.#blockTokens, chain.length - start);
    const stored = block * this.#blockTokens;
    let row = 0;
    while (row < end && this.#tokens[stored + row] === chain.at(start + row)) row++;
    return row;
  }
}
