/**
 * The tokenizer against Hugging Face's own: the goldens of every checkpoint, and tokenizers of other kinds whose expected
 * ids and texts were written by the Rust library (fixtures/).
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import { SluiceError } from '../../../runtime/errors.ts';
import { loadTokenizer } from '../../../runtime/tokenizer/hugging-face.ts';
import type { Tokenizer } from '../../../runtime/tokenizer/tokenizer.ts';
import { goldenNames, goldens, goldenTokenizer } from '../../support/golden-tokenizer.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const fixtures = path.join(import.meta.dirname, 'fixtures');
const tiny = path.join(root, 'examples/models/tiny');
const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-tokenizer-'));
after(() => rmSync(scratch, { recursive: true }));

interface TextCase {
  readonly text: string;
  readonly ids: number[];
  readonly ids_plain: number[];
  readonly decoded: string;
  readonly decoded_skip: string;
}

const readJson = (file: string) => JSON.parse(readFileSync(file, 'utf8'));

/** A folder that holds only the given files. */
function folderOf(files: Readonly<Record<string, unknown>>): string {
  const folder = mkdtempSync(path.join(scratch, 'model-'));
  for (const [name, content] of Object.entries(files))
    writeFileSync(path.join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  return folder;
}

function checkTexts(tokenizer: Tokenizer, cases: readonly TextCase[]) {
  assert.ok(cases.length > 0);
  for (const each of cases) {
    assert.deepEqual(tokenizer.encode(each.text), each.ids, JSON.stringify(each.text));
    assert.deepEqual(
      tokenizer.encode(each.text, { addSpecialTokens: false }),
      each.ids_plain,
      JSON.stringify(each.text),
    );
    assert.equal(tokenizer.decode(each.ids), each.decoded);
    assert.equal(tokenizer.decode(each.ids, { skipSpecialTokens: true }), each.decoded_skip);
  }
}

describe('ids and texts equal the reference', () => {
  for (const name of goldenNames)
    test(`golden checkpoint ${name}`, () => {
      const golden = readJson(path.join(goldens, name, 'golden.json'));
      const tokenizer = loadTokenizer(goldenTokenizer(name));
      checkTexts(tokenizer, golden.tokenize);
      for (const prompt of golden.prompts)
        assert.deepEqual(tokenizer.encode(prompt.text), prompt.ids, JSON.stringify(prompt.text));
    });
  for (const name of readdirSync(fixtures))
    test(`fixture ${name}`, () => {
      const fixture = readJson(path.join(fixtures, name));
      const tokenizer = loadTokenizer(folderOf({ 'tokenizer.json': fixture.tokenizer }));
      checkTexts(tokenizer, fixture.texts);
      for (const { ids, decoded, decoded_skip } of fixture.ids) {
        assert.equal(tokenizer.decode(ids), decoded);
        assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), decoded_skip);
      }
    });
  test('the embedded model', () => {
    const tokenizer = loadTokenizer(tiny);
    for (const each of readJson(path.join(tiny, 'golden.json')).cases) {
      assert.deepEqual(tokenizer.encode(each.rendered ?? each.prompt), each.prompt_ids);
      assert.equal(tokenizer.decode(each.output_ids, { skipSpecialTokens: true }), each.text);
    }
  });
});

describe('streams', () => {
  const tokenizers = [
    ['byte-level', loadTokenizer(tiny)],
    ...readdirSync(fixtures).map((name) => [
      name,
      loadTokenizer(folderOf({ 'tokenizer.json': readJson(path.join(fixtures, name)).tokenizer })),
    ]),
  ] as [string, Tokenizer][];
  for (const [name, tokenizer] of tokenizers) {
    test(`${name}: what a stream gives, joined, is the decoded text, and no character comes out broken`, () => {
      fc.assert(
        fc.property(
          fc.array(fc.integer({ min: 0, max: tokenizer.vocabularySize + 3 }), { maxLength: 40 }),
          fc.boolean(),
          fc.boolean(),
          (ids, skipSpecialTokens, continues) => {
            const stream = tokenizer.stream({ skipSpecialTokens, continues });
            const parts = ids.map((id) => stream.push(id));
            for (const part of parts) assert.ok(part.isWellFormed());
            assert.equal(
              parts.join('') + stream.flush(),
              tokenizer.decode(ids, { skipSpecialTokens, continues }),
            );
          },
        ),
        { numRuns: 300 },
      );
    });
    test(`${name}: the bytes of a text's tokens are the text's own bytes`, () => {
      fc.assert(
        fc.property(fc.string({ unit: 'grapheme', maxLength: 30 }), (text) => {
          const ids = tokenizer.encode(text, { addSpecialTokens: false });
          const bytes = Buffer.concat(ids.map((id) => tokenizer.bytesOf(id)));
          assert.equal(bytes.toString('utf8'), tokenizer.decode(ids, { continues: true }));
        }),
      );
    });
  }
  test('a character of several tokens comes out with its last token', () => {
    const tokenizer = loadTokenizer(tiny);
    const ids = tokenizer.encode('a🙂b', { addSpecialTokens: false });
    const stream = tokenizer.stream();
    const parts = ids.map((id) => stream.push(id));
    assert.ok(ids.length > 3);
    assert.deepEqual(
      parts.filter((part) => part !== ''),
      ['a', '🙂', 'b'],
    );
    assert.equal(stream.flush(), '');
  });
  test('a character cut short ends as U+FFFD', () => {
    const tokenizer = loadTokenizer(tiny);
    const stream = tokenizer.stream();
    const ids = tokenizer.encode('🙂', { addSpecialTokens: false });
    assert.equal(
      ids
        .slice(0, -1)
        .map((id) => stream.push(id))
        .join(''),
      '',
    );
    assert.equal(stream.flush(), '\uFFFD');
  });
  test('an answer keeps the space before its first word', () => {
    const fixture = readJson(path.join(fixtures, 'prepended-mark-byte-fallback.json'));
    const tokenizer = loadTokenizer(folderOf({ 'tokenizer.json': fixture.tokenizer }));
    const ids = tokenizer.encode('the a', { addSpecialTokens: false });
    assert.equal(tokenizer.decode(ids), 'the a');
    assert.equal(tokenizer.decode(ids, { continues: true }), ' the a');
  });
});

test('tokens are found by text and told special or not', () => {
  const tokenizer = loadTokenizer(tiny);
  assert.equal(tokenizer.idOf('<|im_end|>'), 2);
  assert.equal(tokenizer.tokenOf(2), '<|im_end|>');
  assert.equal(tokenizer.isSpecial(2), true);
  assert.equal(tokenizer.isSpecial(3), false);
  assert.equal(tokenizer.idOf('no such token'), undefined);
  assert.equal(tokenizer.vocabularySize, 2048);
});

test('tokens that only tokenizer_config.json adds are known', () => {
  const folder = folderOf({
    'tokenizer.json': readJson(path.join(tiny, 'tokenizer.json')),
    'tokenizer_config.json': {
      added_tokens_decoder: { 2048: { content: '<|extra|>', special: true, normalized: false } },
    },
  });
  const tokenizer = loadTokenizer(folder);
  assert.deepEqual(tokenizer.encode('<|extra|>!'), [2048, 3]);
  assert.equal(tokenizer.isSpecial(2048), true);
});

test("Llama's tokenizer classes put the begin token themselves", () => {
  const json = readJson(path.join(tiny, 'tokenizer.json'));
  const bos = { bos_token: '<|im_start|>', eos_token: { content: '<|im_end|>' } };
  const encode = (config: object) =>
    loadTokenizer(
      folderOf({ 'tokenizer.json': json, 'tokenizer_config.json': { ...bos, ...config } }),
    ).encode('!');
  assert.deepEqual(encode({ tokenizer_class: 'LlamaTokenizerFast' }), [1, 3]);
  assert.deepEqual(
    encode({ tokenizer_class: 'LlamaTokenizer', add_bos_token: false, add_eos_token: true }),
    [3, 2],
  );
  assert.deepEqual(encode({ tokenizer_class: 'PreTrainedTokenizerFast' }), [3]);
});

describe('broken files end in one line that names the file', () => {
  const whole = readJson(path.join(tiny, 'tokenizer.json'));
  const cases: [string, Record<string, unknown>, RegExp][] = [
    ['no tokenizer.json', {}, /tokenizer\.json: missing/],
    ['only tokenizer.model', { 'tokenizer.model': 'x' }, /tokenizer\.model alone is not enough/],
    ['not JSON', { 'tokenizer.json': '{"model": ' }, /tokenizer\.json: is not JSON/],
    ['a list', { 'tokenizer.json': [] }, /holds no JSON object/],
    ['no model', { 'tokenizer.json': { added_tokens: [] } }, /holds no model with a vocab/],
    [
      'unknown normalizer',
      { 'tokenizer.json': { ...whole, normalizer: { type: 'Rot13' } } },
      /cannot be used: .*Rot13/,
    ],
    [
      'unknown decoder',
      { 'tokenizer.json': { ...whole, decoder: { type: 'CTC' } } },
      /decoder .*CTC.* is not supported/,
    ],
    [
      'tokenizer_config.json not JSON',
      { 'tokenizer.json': whole, 'tokenizer_config.json': '{' },
      /tokenizer_config\.json: is not JSON/,
    ],
  ];
  for (const [name, files, message] of cases)
    test(name, () => {
      assert.throws(
        () => loadTokenizer(folderOf(files)),
        (error) =>
          error instanceof SluiceError &&
          error.exitCode === 2 &&
          message.test(error.message) &&
          !error.message.includes('\n'),
      );
    });
});
