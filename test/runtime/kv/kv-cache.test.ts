import assert from 'node:assert';
import { describe, test } from 'node:test';
import { BlockPool } from '../../../runtime/kv/block-pool.ts';
import { type BlockTable, KvCache } from '../../../runtime/kv/kv-cache.ts';
import { TokenChain } from '../../../runtime/kv/token-chain.ts';
import { checkConservation } from './conservation.ts';

const blockTokens = 4;

function cacheOf(blocks: number, prefixCaching = true): KvCache {
  return new KvCache(new BlockPool(blocks), { blockTokens, prefixCaching });
}

function chainOf(tokens: readonly number[], salt?: string): TokenChain {
  return new TokenChain(tokens, blockTokens, salt);
}

/** Admits a prompt and runs it to its end. */
function run(kv: KvCache, chain: TokenChain): BlockTable {
  const started = kv.start(kv.find(chain), chain.length);
  assert(started !== undefined, 'the pool is too small for the test');
  kv.commit(started.table, chain, chain.length);
  return started.table;
}

const range = (length: number, from = 0) => Array.from({ length }, (_, i) => from + i);

describe('BlockPool', () => {
  test('gives all the blocks asked for or none', () => {
    const pool = new BlockPool(3);
    assert.equal(pool.take(4), undefined);
    assert.equal(pool.free, 3);
    assert.deepEqual(pool.take(3), [0, 1, 2]);
    assert.equal(pool.take(1), undefined);
  });

  test('takes uncached blocks first, then cached ones by the time they were freed', () => {
    const pool = new BlockPool(4);
    pool.take(4);
    pool.release(2, true);
    pool.release(0, true);
    pool.release(3, false);
    pool.release(1, true);
    assert.deepEqual([...pool.freeBlocks()], [3, 2, 0, 1]);
    pool.retain(2);
    assert.deepEqual(pool.take(2), [3, 0]);
  });

  test('a release too many is a bug that shows', () => {
    const pool = new BlockPool(1);
    pool.take(1);
    pool.release(0, false);
    assert.throws(() => pool.release(0, false), /released more often/);
  });
});

describe('TokenChain', () => {
  test('hashes depend on the salt and on every token before the block ends', () => {
    const base = chainOf(range(8));
    assert.equal(base.hash(1), chainOf(range(9)).hash(1));
    assert.notEqual(base.hash(1), chainOf([7, ...range(7, 1)]).hash(1));
    assert.notEqual(base.hash(0), chainOf(range(8), 'tenant').hash(0));
    assert.notEqual(chainOf([1, 2, 3, 4]).hash(0), chainOf([4, 3, 2, 1]).hash(0));
  });

  test('no two of 200,000 blocks that differ in one token collide', () => {
    const hashes = new Set(range(200_000).map((i) => chainOf([i & 511, i >> 9, 0, 0]).hash(0)));
    assert.equal(hashes.size, 200_000);
  });

  test('a fork goes its own way', () => {
    const chain = chainOf(range(5));
    const fork = chain.fork();
    chain.push(100);
    fork.push(200);
    for (let i = 0; i < 100; i++) fork.push(i);
    assert.deepEqual([...chain.slice(0, 6)], [...range(5), 100]);
    assert.equal(fork.length, 106);
    assert.equal(chain.sharedBlocks(fork), 1);
  });

  for (const shared of [0, 1, 3, 4, 5, 7, 8, 9, 20]) {
    test(`chains that share ${shared} tokens share ${Math.floor(shared / 4)} blocks`, () => {
      const other = chainOf([...range(shared), ...range(20, 1000)]);
      assert.equal(chainOf(range(20)).sharedBlocks(other), Math.floor(shared / 4));
    });
  }
});

describe('KvCache', () => {
  test('a prompt that shares one and a half blocks finds six rows and copies two', () => {
    const kv = cacheOf(8);
    const first = run(kv, chainOf(range(8)));
    const chain = chainOf([...range(6), 90, 91, 92]);
    const match = kv.find(chain);
    assert.equal(match.tokens, 6);
    const started = kv.start(match, chain.length)!;
    assert.equal(started.table.blocks[0], first.blocks[0]);
    assert.deepEqual(started.copies, [{ from: first.blocks[1], to: started.table.blocks[1], rows: 2 }]);
    assert.equal(kv.pool.references(first.blocks[1]!), 1);
    checkConservation(kv, [first, started.table]);
  });

  test('the last token of a prompt is never taken from the cache', () => {
    const kv = cacheOf(8);
    kv.release(run(kv, chainOf(range(8))));
    assert.equal(kv.find(chainOf(range(8))).tokens, 7);
    assert.equal(kv.find(chainOf(range(5))).tokens, 4);
    assert.equal(kv.find(chainOf(range(4))).tokens, 3);
    assert.equal(kv.find(chainOf(range(1))).tokens, 0);
  });

  test('of several partly matching blocks the longest is copied', () => {
    const kv = cacheOf(8);
    kv.release(run(kv, chainOf([1, 9, 9, 9])));
    kv.release(run(kv, chainOf([1, 2, 3, 9])));
    kv.release(run(kv, chainOf([1, 2, 9, 9])));
    assert.equal(kv.find(chainOf([1, 2, 3, 4, 5])).partial.rows, 3);
  });

  test('another salt finds nothing, the same salt does', () => {
    const kv = cacheOf(8);
    kv.release(run(kv, chainOf(range(8), 'a')));
    assert.equal(kv.find(chainOf(range(9), 'b')).tokens, 0);
    assert.equal(kv.find(chainOf(range(9))).tokens, 0);
    assert.equal(kv.find(chainOf(range(9), 'a')).tokens, 8);
  });

  test('with prefix caching off nothing is found', () => {
    const kv = cacheOf(8, false);
    kv.release(run(kv, chainOf(range(8))));
    assert.equal(kv.find(chainOf(range(9))).tokens, 0);
  });

  test('equal tokens after different prefixes are different blocks', () => {
    const kv = cacheOf(8);
    kv.release(run(kv, chainOf([1, 1, 1, 1, 5, 6, 7, 8])));
    assert.equal(kv.find(chainOf([2, 2, 2, 2, 5, 6, 7, 8, 9])).tokens, 0);
  });

  test('a colliding hash is a miss, and what it would have hidden stays right', () => {
    const kv = cacheOf(8);
    const forged = chainOf([9, 9, 9, 9, 1]);
    forged.hash = () => 42;
    const honest = chainOf([5, 6, 7, 8, 1]);
    honest.hash = () => 42;
    const first = run(kv, forged);
    assert.equal(kv.find(honest).tokens, 0);
    const second = run(kv, honest);
    assert.equal(second.cached, 0);
    checkConservation(kv, [first, second]);
    assert.equal(kv.find(forged).tokens, 4);
  });

  test('a colliding hash and equal tokens are a miss when the prefix differs', () => {
    const kv = cacheOf(8);
    kv.release(run(kv, chainOf([1, 1, 1, 1, 5, 6, 7, 8])));
    kv.release(run(kv, chainOf([2, 2, 2, 2])));
    const chain = chainOf([2, 2, 2, 2, 5, 6, 7, 8, 9]);
    const { hash } = chain;
    chain.hash = (block) =>
      block === 1 ? chainOf([1, 1, 1, 1, 5, 6, 7, 8]).hash(1) : hash.call(chain, block);
    assert.equal(kv.find(chain).tokens, 4);
  });

  test('what a start needs counts the free blocks that it revives', () => {
    const kv = cacheOf(8);
    const held = run(kv, chainOf(range(4)));
    kv.release(run(kv, chainOf(range(8))));
    const chain = chainOf(range(14));
    const before = kv.pool.free;
    const needed = kv.needed(kv.find(chain), 14);
    assert.equal(needed, 3);
    const { table } = kv.start(kv.find(chain), 14)!;
    assert.equal(before - kv.pool.free, needed);
    checkConservation(kv, [held, table]);
  });

  test('two sequences that fill the same block at the same time end with one', () => {
    const kv = cacheOf(8);
    const chains = [chainOf(range(9)), chainOf([...range(8), 77])];
    const tables = chains.map((chain) => kv.start(kv.find(chain), chain.length)!.table);
    assert.equal(kv.used, 6);
    tables.forEach((table, i) => {
      kv.commit(table, chains[i]!, 9);
    });
    assert.deepEqual(tables[0]!.blocks.slice(0, 2), tables[1]!.blocks.slice(0, 2));
    assert.equal(kv.used, 4);
    checkConservation(kv, tables);
  });

  test('the least recently used prefix is lost first, its end before its beginning', () => {
    const kv = cacheOf(6);
    kv.release(run(kv, chainOf(range(8))));
    kv.release(run(kv, chainOf(range(8, 100))));
    assert.equal(kv.find(chainOf(range(9))).tokens, 8);
    const filler = run(kv, chainOf(range(12, 500)));
    assert.equal(kv.find(chainOf(range(9))).tokens, 4);
    assert.equal(kv.find(chainOf(range(9, 100))).tokens, 8);
    checkConservation(kv, [filler]);
  });

  test('a fork shares all rows; the first to write copies the begun block, the last writes in place', () => {
    const kv = cacheOf(8);
    const chain = chainOf(range(6));
    const table = run(kv, chain);
    const fork = kv.fork(table);
    assert.equal(kv.used, 2);
    const [whole, begun] = table.blocks as [number, number];
    assert.deepEqual(kv.reserve(fork, 7), [{ from: begun, to: fork.blocks[1], rows: 2 }]);
    assert.deepEqual(kv.reserve(table, 7), []);
    assert.deepEqual([table.blocks[0], table.blocks[1], fork.blocks[0]], [whole, begun, whole]);
    checkConservation(kv, [table, fork]);
  });

  test('a fork does not share blocks reserved but not begun', () => {
    const kv = cacheOf(8);
    const table = run(kv, chainOf(range(4)));
    kv.reserve(table, 9);
    const fork = kv.fork(table);
    assert.equal(fork.blocks.length, 1);
    checkConservation(kv, [table, fork]);
  });

  test('what does not fit changes nothing', () => {
    const kv = cacheOf(3);
    const table = run(kv, chainOf(range(8)));
    const fork = kv.fork(table);
    const big = chainOf([...range(8), ...range(8, 50)]);
    assert.equal(kv.start(kv.find(big), big.length), undefined);
    assert.equal(kv.reserve(fork, 17), undefined);
    assert.equal(kv.used, 2);
    checkConservation(kv, [table, fork]);
  });

  test('a block that is its own copy needs none', () => {
    const kv = cacheOf(1);
    kv.release(run(kv, chainOf(range(4))));
    const chain = chainOf([0, 1, 2, 9]);
    const started = kv.start(kv.find(chain), 4)!;
    assert.deepEqual([started.copies, started.table.length], [[], 3]);
    checkConservation(kv, [started.table]);
  });
});
