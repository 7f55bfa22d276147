import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SluiceError } from '../../../runtime/errors.ts';
import { planShards, type Range, rangeSize } from '../../../runtime/models/shard.ts';

const smol = { hidden: 576, heads: 9, kvHeads: 3, headDim: 64, intermediate: 1536, vocabulary: 49152 };
const units = { intermediate: 32, smallest: 32, kvHeads: 1 };

/** Ranges follow each other from 0 to the end. */
function assertTiles(ranges: readonly Range[], total: number): void {
  let end = 0;
  for (const range of ranges) {
    assert.equal(range.start, end);
    assert.ok(range.end >= range.start);
    end = range.end;
  }
  assert.equal(end, total);
}

test('whatever the sizes, the shards hold everything once, in whole heads and units', () => {
  const sizes = fc.record({
    group: fc.integer({ min: 1, max: 8 }),
    kvHeads: fc.integer({ min: 1, max: 40 }),
    headDim: fc.constantFrom(8, 24, 64, 128),
    intermediate: fc.integer({ min: 1, max: 4000 }),
    vocabulary: fc.integer({ min: 64, max: 5000 }),
    unit: fc.constantFrom(1, 16, 32, 128),
    kvUnit: fc.integer({ min: 1, max: 4 }),
    ranks: fc.integer({ min: 1, max: 24 }),
  });
  fc.assert(
    fc.property(sizes, ({ group, unit, kvUnit, ranks, ...rest }) => {
      const facts = { ...rest, hidden: 512, heads: group * rest.kvHeads };
      fc.pre(ranks <= Math.ceil(facts.intermediate / unit));
      const shards = planShards(facts, ranks, {
        intermediate: unit,
        smallest: unit,
        kvHeads: kvUnit,
      });
      assertTiles(
        shards.map(({ heads }) => heads),
        facts.heads,
      );
      assertTiles(
        shards.map(({ intermediate }) => intermediate),
        facts.intermediate,
      );
      assertTiles(
        shards.map(({ vocabulary }) => vocabulary),
        facts.vocabulary,
      );
      for (const { heads, kvHeads, intermediate } of shards) {
        // Every KV head that a query head attends to, and no other.
        if (rangeSize(heads) === 0) assert.equal(rangeSize(kvHeads), 0);
        else {
          assert.equal(kvHeads.start, Math.floor(heads.start / group));
          assert.equal(kvHeads.end, Math.ceil(heads.end / group));
        }
        if (kvUnit > 1) {
          assert.equal(rangeSize(heads), group * rangeSize(kvHeads));
          assert.ok(kvHeads.start % kvUnit === 0 || kvHeads.start === facts.kvHeads);
        }
        assert.equal(intermediate.start % unit, 0);
        assert.ok(rangeSize(intermediate) > 0);
      }
    }),
  );
});

test('three KV heads on two ranks: query heads are cut evenly, and the KV head between them is on both', () => {
  const shards = planShards(smol, 2, units);
  assert.deepEqual(
    shards.map(({ heads, kvHeads }) => [heads, kvHeads]),
    [
      [
        { start: 0, end: 4 },
        { start: 0, end: 2 },
      ],
      [
        { start: 4, end: 9 },
        { start: 1, end: 3 },
      ],
    ],
  );
  assert.deepEqual(
    shards.map(({ intermediate }) => rangeSize(intermediate)),
    [768, 768],
  );
});

test('what is summed over KV heads keeps each on one rank', () => {
  const shards = planShards({ ...smol, sumsOverKvHeads: true }, 2, units);
  assert.deepEqual(
    shards.map(({ kvHeads }) => rangeSize(kvHeads)),
    [1, 2],
  );
});

test('KV heads that divide nearly evenly are on one rank each', () => {
  const facts = { ...smol, heads: 32, kvHeads: 8 };
  assert.deepEqual(
    planShards(facts, 3, units).map(({ kvHeads }) => rangeSize(kvHeads)),
    [2, 3, 3],
  );
});

test('a rank beyond the KV heads has no attention where sharing them would not help the others', () => {
  const shards = planShards(smol, 4, units);
  assert.deepEqual(
    shards.map(({ heads }) => rangeSize(heads)),
    [3, 3, 3, 0],
  );
});

test('more ranks than pieces of the MLP are refused with the numbers', () => {
  assert.equal(planShards(smol, 48, units).length, 48);
  assert.throws(
    () => planShards(smol, 49, units),
    (error) =>
      error instanceof SluiceError &&
      error.code === 'checkpoint_unsupported' &&
      /49 ranks: .*1536 columns .*48 pieces of 32/.test(error.message),
  );
});

test('units are halved before ranks are refused', () => {
  const facts = { ...smol, intermediate: 128 };
  const shards = planShards(facts, 3, { intermediate: 128, smallest: 16, kvHeads: 1 });
  assert.deepEqual(
    shards.map(({ intermediate }) => intermediate.start % 32),
    [0, 0, 0],
  );
  assert.equal(planShards(facts, 8, { intermediate: 128, smallest: 16, kvHeads: 1 }).length, 8);
  assert.throws(
    () => planShards(facts, 9, { intermediate: 128, smallest: 16, kvHeads: 1 }),
    /8 pieces of 16/,
  );
});
