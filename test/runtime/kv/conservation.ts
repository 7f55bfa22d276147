/** What must hold between any two steps, for whoever uses a KvCache. */
import assert from 'node:assert';
import type { BlockTable, KvCache } from '../../../runtime/kv/kv-cache.ts';

export function checkConservation(kv: KvCache, tables: readonly BlockTable[]): void {
  const { pool, prefixes } = kv;
  const references = new Int32Array(pool.size);
  for (const table of tables) {
    for (const block of table.blocks) references[block]!++;
    assert(table.blocks.length >= kv.blocksFor(table.length), 'a table is shorter than its tokens');
  }
  for (let block = 0; block < pool.size; block++) {
    assert.equal(pool.references(block), references[block], `references of block ${block}`);
  }
  const free = [...pool.freeBlocks()];
  assert.equal(free.length, pool.free, 'length of the free list');
  assert.equal(new Set(free).size, free.length, 'a block is twice in the free list');
  for (const block of free) assert.equal(pool.references(block), 0, `free block ${block} is in use`);
  assert.equal(free.length + references.filter((count) => count > 0).length, pool.size, 'blocks lost');
  if (prefixes === undefined) return;
  const place = new Map(free.map((block, index) => [block, index]));
  for (let block = 0; block < pool.size; block++) {
    if (!prefixes.has(block)) continue;
    const parent = prefixes.parentOf(block);
    if (parent < 0) continue;
    assert(prefixes.has(parent), `cached block ${block} has lost its parent ${parent}`);
    const placed = place.get(parent);
    if (placed === undefined) continue;
    assert(place.get(block)! < placed, `block ${block} would outlive its parent ${parent}`);
  }
  for (const table of tables) {
    const partial =
      table.length % kv.blockTokens === 0 ? undefined : table.blocks[kv.blocksFor(table.length) - 1];
    assert(partial === undefined || !prefixes.has(partial), `the block being filled, ${partial}, is cached`);
  }
}
