import assert from 'node:assert/strict';
import { test } from 'node:test';
import { availableBytes, chooseBlockCount } from '../../../runtime/engine/kv-size.ts';

const base = {
  blockBytes: 1000,
  blockTokens: 16,
  maxLength: 160,
  maxBatchSize: 4,
  available: 1e9,
  mayShorten: false,
};

test('the pool holds every sequence at full length and no more', () => {
  assert.deepEqual(chooseBlockCount(base), { blockCount: 40, maxLength: 160 });
});

test('with less memory there are fewer blocks, of the bytes given or a share of those available', () => {
  assert.equal(chooseBlockCount({ ...base, kvBytes: 25_999 }).blockCount, 25);
  assert.equal(chooseBlockCount({ ...base, available: 20_000 }).blockCount, 14);
});

test('a length that nobody asked for shrinks to what fits', () => {
  assert.deepEqual(chooseBlockCount({ ...base, kvBytes: 7000, mayShorten: true }), {
    blockCount: 7,
    maxLength: 112,
  });
});

test('a length that was asked for and does not fit is refused with the one that would', () => {
  assert.throws(() => chooseBlockCount({ ...base, kvBytes: 7000 }), /--max-length may be at most 112/);
  assert.throws(() => chooseBlockCount({ ...base, kvBytes: 0, mayShorten: true }), /there are 0 MiB$/);
});

test('the memory available is a sane number', () => {
  assert.ok(availableBytes() > 2 ** 20 && availableBytes() < 2 ** 50);
});
