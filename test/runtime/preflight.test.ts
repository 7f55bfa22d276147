import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CheckpointFacts, kvBytesPerToken, preflight, type RunWish } from '../../runtime/preflight.ts';

const smol: CheckpointFacts = {
  hidden: 576,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  intermediate: 1536,
  layers: 30,
  vocabulary: 49152,
  encoding: 'bfloat16',
  weightBytes: 269_000_000,
};

const table: readonly (readonly [string, Partial<CheckpointFacts>, RunWish, readonly string[]])[] = [
  ['one rank runs anything sound', {}, { ranks: 1 }, []],
  ['ranks that do not divide the KV heads are fine', {}, { ranks: 2 }, []],
  ['more ranks than KV heads are fine', {}, { ranks: 4 }, []],
  ['as many ranks as pieces of the MLP are fine', {}, { ranks: 96 }, []],
  ['more ranks than pieces of the MLP are refused', {}, { ranks: 97 }, ['ranks']],
  ['KV heads must divide heads', { kvHeads: 4 }, { ranks: 1 }, ['heads']],
  ['half precision can be widened', {}, { ranks: 1, encoding: 'float32' }, []],
  ['its own encoding is given', {}, { ranks: 1, encoding: 'bfloat16' }, []],
  ['an encoding that would lose is refused', {}, { ranks: 1, encoding: 'float16' }, ['encoding']],
  ['quantized weights stay so', { encoding: 'gptq' }, { ranks: 1, encoding: 'float32' }, ['encoding']],
  ['twice the bf16 bytes fit', {}, { ranks: 1, memoryBytes: 600_000_000 }, []],
  ['less does not', {}, { ranks: 1, memoryBytes: 500_000_000 }, ['memory']],
  ['a GPU keeps half precision as it is', {}, { ranks: 1, memoryBytes: 300_000_000, device: 'gpu' }, []],
  [
    'a GPU that is to widen it needs twice as much',
    {},
    { ranks: 1, memoryBytes: 500_000_000, device: 'gpu', encoding: 'float32' },
    ['memory'],
  ],
  [
    'quantized while it is loaded it is smaller',
    {},
    { ranks: 1, memoryBytes: 180_000_000, encoding: 'int8' },
    [],
  ],
  ['but not that small', {}, { ranks: 1, memoryBytes: 150_000_000, encoding: 'int8' }, ['memory']],
  ['quantized as it is stored', { encoding: 'awq' }, { ranks: 1, memoryBytes: 300_000_000 }, []],
  [
    'a KV cache that is asked for must fit',
    {},
    { ranks: 1, memoryBytes: 600_000_000, kvBytes: 2e8 },
    ['memory'],
  ],
  ['a KV cache of fewer bytes takes less', {}, { ranks: 1, memoryBytes: 545_000_000, kvElementBytes: 1 }, []],
  ['a KV cache of float32 takes more', {}, { ranks: 1, memoryBytes: 545_000_000 }, ['memory']],
  [
    'several problems are all told',
    { kvHeads: 4 },
    { ranks: 97, encoding: 'float16' },
    ['heads', 'ranks', 'encoding'],
  ],
];

for (const [sentence, facts, wish, expected] of table) {
  test(sentence, () => {
    const problems = preflight({ ...smol, ...facts }, wish);
    assert.deepEqual(
      problems.map(({ code }) => code),
      expected,
    );
    for (const { message } of problems) assert.match(message, /^[^\n]*\d[^\n]*$|^encoding [^\n]+$/);
  });
}

test('a hidden size that heads do not divide needs a head_dim', () => {
  const { headDim: _, ...rest } = smol;
  assert.deepEqual(preflight(rest, { ranks: 1 }), []);
  assert.equal(preflight({ ...rest, hidden: 577 }, { ranks: 1 })[0]?.code, 'heads');
});

test('a token of SmolLM2-135M takes 46,080 bytes of float32 keys and values', () => {
  assert.equal(kvBytesPerToken(smol), 30 * 2 * 3 * 64 * 4);
});
