/**
 * The blocks of all sequences: asking (`find`, `needed`) is apart from acting (`start`, `reserve`, `commit`, `fork`,
 * `release`), and an act that needs blocks takes all of them or changes nothing. Enters: token chains and lengths;
 * leaves: block tables and the row copies that the next step must make first, in order. Ids and counts, no tensors.
 */
import type { BlockPool } from './block-pool.ts';
import { PrefixCache } from './prefix-cache.ts';
import type { TokenChain } from './token-chain.ts';

/** What one sequence holds. */
export interface BlockTable {
  /** Block i holds positions i * blockTokens and on. */
  readonly blocks: number[];
  /** Positions whose keys and values are in the blocks. */
  length: number;
  /** Leading blocks that are in the prefix cache. */
  cached: number;
}

/** What a prompt finds in the cache. */
export interface PrefixMatch {
  /** Whole blocks to share. */
  readonly blocks: readonly number[];
  /** The block to copy `rows` leading rows of; rows 0 when there is none. */
  readonly partial: { readonly block: number; readonly rows: number };
  /** Positions that need not run. */
  readonly tokens: number;
}

export interface RowCopy {
  readonly from: number;
  readonly to: number;
  readonly rows: number;
}

export const noMatch: PrefixMatch = { blocks: [], partial: { block: -1, rows: 0 }, tokens: 0 };

export class KvCache {
  readonly blockTokens: number;
  readonly pool: BlockPool;
  /** Undefined when prefix caching is off. */
  readonly prefixes: PrefixCache | undefined;

  constructor(pool: BlockPool, options: { blockTokens: number; prefixCaching: boolean }) {
    this.pool = pool;
    this.blockTokens = options.blockTokens;
    this.prefixes = options.prefixCaching ? new PrefixCache(pool.size, options.blockTokens) : undefined;
  }

  get used(): number {
    return this.pool.size - this.pool.free;
  }

  blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.blockTokens);
  }

  /** The longest cached prefix of the chain. Its last token is never found: somebody must run it to have logits. */
  find(chain: TokenChain): PrefixMatch {
    const cache = this.prefixes;
    let parent = cache?.root(chain.root);
    if (cache === undefined || parent === undefined) return noMatch;
    const limit = chain.length - 1;
    const blocks: number[] = [];
    while ((blocks.length + 1) * this.blockTokens <= limit) {
      const block = cache.find(chain, blocks.length, parent);
      if (block === undefined) break;
      blocks.push(block);
      parent = block;
    }
    const whole = blocks.length * this.blockTokens;
    const partial = cache.closest(chain, blocks.length, parent, limit - whole);
    return { blocks, partial, tokens: whole + partial.rows };
  }

  /** Free blocks that `start` will use up, shared ones that are free now included. */
  needed(match: PrefixMatch, tokens: number): number {
    const revived = match.blocks.filter((block) => this.pool.references(block) === 0).length;
    return this.blocksFor(tokens) - match.blocks.length + revived;
  }

  /** A table with room for `tokens`, its first `match.tokens` positions filled once the copies are made. */
  start(match: PrefixMatch, tokens: number): { table: BlockTable; copies: RowCopy[] } | undefined {
    for (const block of match.blocks) this.pool.retain(block);
    const fresh = this.#take(this.blocksFor(tokens) - match.blocks.length);
    if (fresh === undefined) {
      for (const block of match.blocks.toReversed()) this.pool.release(block, true);
      return undefined;
    }
    const table = { blocks: [...match.blocks, ...fresh], length: match.tokens, cached: match.blocks.length };
    const { block: from, rows } = match.partial;
    const to = table.blocks[match.blocks.length]!;
    // The block to copy from may have been free and have become the very block to copy to: its rows are in place then.
    return { table, copies: rows > 0 && from !== to ? [{ from, to, rows }] : [] };
  }

  /** Makes positions up to `tokens` writable: new blocks, and a copy of the last one when it is shared. */
  reserve(table: BlockTable, tokens: number): RowCopy[] | undefined {
    const rows = table.length % this.blockTokens;
    const written = (table.length - rows) / this.blockTokens;
    const last = table.blocks[written];
    const shared = rows > 0 && last !== undefined && this.pool.references(last) > 1;
    const fresh = this.#take(this.blocksFor(tokens) - table.blocks.length + (shared ? 1 : 0));
    if (fresh === undefined) return undefined;
    const copies: RowCopy[] = [];
    if (shared) {
      const to = fresh.pop()!;
      copies.push({ from: last, to, rows });
      table.blocks[written] = to;
      this.pool.release(last, false);
    }
    table.blocks.push(...fresh);
    return copies;
  }

  /** After a step: positions below `length` are filled, and blocks that became full can be found by others. */
  commit(table: BlockTable, chain: TokenChain, length: number): void {
    table.length = length;
    if (this.prefixes === undefined) return;
    for (const full = Math.floor(length / this.blockTokens); table.cached < full; table.cached++) {
      const index = table.cached;
      const own = table.blocks[index]!;
      const holder = this.prefixes.insert(chain, index, table.blocks[index - 1], own);
      if (holder === undefined) return;
      if (holder === own) continue;
      // Somebody filled a block with the same prefix first. Holding that one keeps a cached block's parent cached.
      this.pool.retain(holder);
      this.pool.release(own, false);
      table.blocks[index] = holder;
    }
  }

  /** A second table of the same rows. Blocks reserved but not begun stay with the first. */
  fork(table: BlockTable): BlockTable {
    const blocks = table.blocks.slice(0, this.blocksFor(table.length));
    for (const block of blocks) this.pool.retain(block);
    return { ...table, blocks };
  }

  /** From the end, so that of a cached prefix the longest part is lost last. */
  release(table: BlockTable): void {
    for (const block of table.blocks.toReversed())
      this.pool.release(block, this.prefixes?.has(block) ?? false);
    table.blocks.length = 0;
    table.length = 0;
    table.cached = 0;
  }

  #take(count: number): number[] | undefined {
    const blocks = this.pool.take(Math.max(0, count));
    for (const block of blocks ?? []) this.prefixes?.forget(block);
    return blocks;
  }
}
