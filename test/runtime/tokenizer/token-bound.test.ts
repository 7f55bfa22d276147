import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import { loadTokenizer } from '../../../runtime/tokenizer/hugging-face.ts';
import { longestTokenBytes } from '../../../runtime/tokenizer/token-bound.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const folders = ['examples/models/tiny', 'test/goldens/llama-basic'].map((name) => path.join(root, name));
const written: string[] = [];
after(() => {
  for (const folder of written) rmSync(folder, { recursive: true });
});

function tokenizerWith(fields: object): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-bound-'));
  written.push(folder);
  const model = { type: 'BPE', vocab: { a: 0, b: 1, ab: 2, '<pad>': 3 }, merges: ['a b'] };
  const plain = { model, normalizer: null, pre_tokenizer: { type: 'ByteLevel' }, added_tokens: [] };
  writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify({ ...plain, ...fields }));
  return folder;
}

for (const folder of folders) {
  test(`${path.basename(folder)}: no text makes fewer tokens than its length divided by the bound`, () => {
    const tokenizer = loadTokenizer(folder);
    const longest = longestTokenBytes(folder);
    assert.ok(longest !== undefined && longest < 256);
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.string({ unit: 'grapheme' }),
          fc.string({ unit: fc.constantFrom(' ', '-', 'e') }),
        ),
        (text) => {
          const ids = tokenizer.encode(text, { addSpecialTokens: false });
          assert.ok(ids.length * longest >= text.length, `${text.length} in ${ids.length}`);
        },
      ),
    );
  });
}

describe('the bound', () => {
  const cases: [string, object, number | undefined][] = [
    ['is the longest token, added ones included', {}, 5],
    ['allows for composition', { normalizer: { type: 'NFC' } }, 20],
    ['is unknown where the normalizer may drop text', { normalizer: { type: 'Strip' } }, undefined],
    ['is unknown where unknown characters make one token', { pre_tokenizer: null }, undefined],
    [
      'is unknown where a token swallows the white space around it',
      { added_tokens: [{ id: 9, content: '<x>', special: true, rstrip: true }] },
      undefined,
    ],
    [
      'is unknown where white space is removed',
      {
        pre_tokenizer: {
          type: 'Sequence',
          pretokenizers: [{ type: 'WhitespaceSplit' }, { type: 'ByteLevel' }],
        },
      },
      undefined,
    ],
    ['is unknown for other models', { model: { type: 'Unigram', vocab: [['a', 0]] } }, undefined],
  ];
  for (const [name, fields, expected] of cases) {
    test(name, () => assert.equal(longestTokenBytes(tokenizerWith(fields)), expected));
  }
});
