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
        shards.map(({ kvHeads }) => kvHeads),
        facts.kvHeads,
      );
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
        assert.equal(rangeSize(heads), group * rangeSize(kvHeads));
        assert.ok(kvHeads.start % kvUnit === 0 || kvHeads.start === facts.kvHeads);
        assert.equal(intermediate.start % unit, 0);
        assert.ok(rangeSize(intermediate) > 0);
      }
    }),
  );
});

test('three KV heads on two ranks: the MLP makes up the difference', () => {
  const shards = planShards(smol, 2, units);
  assert.deepEqual(
    shards.map(({ kvHeads }) => rangeSize(kvHeads)),
    [1, 2],
  );
  const work = shards.map(
    ({ kvHeads, intermediate }) => rangeSize(kvHeads) * 8 * 64 + 3 * rangeSize(intermediate),
  );
  assert.ok(Math.abs(work[0]! - work[1]!) <= 3 * 32, `work ${work}`);
});

test('a rank beyond the KV heads has no attention and more of the MLP', () => {
  const shards = planShards(smol, 4, units);
  assert.deepEqual(
    shards.map(({ heads }) => rangeSize(heads)),
    [3, 3, 3, 0],
  );
  assert.ok(rangeSize(shards[3]!.intermediate) > rangeSize(shards[0]!.intermediate));
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
