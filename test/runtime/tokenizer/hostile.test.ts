/**
 * Tokenizers, templates and configurations that nobody meant well: 10,000 changed inputs of each kind end in a typed error
 * or in success, soon and in little memory.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { parseModel } from '../../../runtime/models/registry.ts';
import { loadChatTemplate } from '../../../runtime/tokenizer/chat-template.ts';
import { tokenizerFromGguf } from '../../../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../../../runtime/tokenizer/hugging-face.ts';
import { withTimeLimit } from '../../../runtime/tokenizer/time-limit.ts';
import { encodeChat, loadWords } from '../../../runtime/tokenizer/words.ts';
import { openCheckpoint } from '../../../runtime/weights/open.ts';
import { goldenNames, goldens } from '../../support/golden-tokenizer.ts';

const runs = 10_000;
const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-hostile-'));
after(() => rmSync(scratch, { recursive: true }));

/** A fixed series of numbers below 1 (mulberry32). */
function series(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const oddities: readonly Json[] = [
  null,
  true,
  false,
  0,
  -1,
  1,
  0.5,
  1e308,
  2 ** 31,
  2 ** 53,
  '',
  'x',
  '\u0000',
  '__proto__',
  '(a+)+$',
  '[',
  [],
  {},
  [[]],
  [null],
  { type: 'BPE' },
  { content: 'x', id: -1 },
  { Regex: '(' },
  { Regex: '(x+x+)+y' },
  'a'.repeat(10_000),
];

/** The same document with some places changed: another value, one removed, one doubled. */
function mutate(document: Json, random: () => number, changes = 1 + Math.floor(random() * 3)): Json {
  const copy = structuredClone(document);
  for (let change = 0; change < changes; change++) {
    let at: Json = copy;
    for (;;) {
      const keys: string[] = at !== null && typeof at === 'object' ? Object.keys(at) : [];
      if (keys.length === 0) break;
      const key = keys[Math.floor(random() * keys.length)]!;
      const container = at as { [key: string]: Json };
      const inner: Json = container[key]!;
      if (inner !== null && typeof inner === 'object' && Object.keys(inner).length > 0 && random() < 0.8) {
        at = inner;
        continue;
      }
      const choice = random();
      if (choice < 0.15 && Array.isArray(container)) container.splice(Number(key), 1);
      else if (choice < 0.15) delete container[key];
      else container[key] = structuredClone(oddities[Math.floor(random() * oddities.length)]!);
      break;
    }
  }
  return copy;
}

/** Runs one input; anything that is thrown and is not a SluiceError fails the test. */
function tame(what: string, work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof SluiceError)) throw new Error(`${what}: ${String(error)}`, { cause: error });
    assert.ok(!error.message.includes('\n') && error.message.length < 2000, error.message);
  }
}

const readJson = (file: string): Json => JSON.parse(readFileSync(file, 'utf8')) as Json;

test('10,000 configurations', () => {
  const random = series(1);
  const names = goldenNames.filter((name) => !name.startsWith('gguf'));
  const documents = names.map((name) => ({
    checkpoint: openCheckpoint(path.join(goldens, name)),
    config: readJson(path.join(goldens, name, 'config.json')),
  }));
  const folder = mkdtempSync(path.join(scratch, 'config-'));
  writeFileSync(
    path.join(folder, 'model.safetensors'),
    readFileSync(path.join(goldens, 'llama-basic/model.safetensors')),
  );
  for (let run = 0; run < runs; run++) {
    const { checkpoint, config: original } = documents[run % documents.length]!;
    const config = mutate(original, random) as Record<string, unknown>;
    const what = `${names[run % names.length]} ${run}`;
    tame(what, () => void parseModel({ ...checkpoint, config }));
    // The file itself, broken as text is: one in ten, since each is written.
    if (run % 10 !== 0) continue;
    const text = JSON.stringify(config);
    const cut = Math.floor(random() * text.length);
    writeFileSync(path.join(folder, 'config.json'), run % 20 === 0 ? text : text.slice(0, cut));
    tame(what, () => void parseModel(openCheckpoint(folder)));
  }
});

/** A small tokenizer of each kind, so that many can be made in a short time. */
function smallTokenizers(): { tokenizer: Json; config: Json }[] {
  const vocab = Object.fromEntries(
    [...'abcdefghijklmnop ▁Ġ', '<s>', 'ab', '<0x0A>'].map((token, id) => [token, id]),
  );
  const added = [
    {
      id: 20,
      content: '<s>',
      special: true,
      lstrip: false,
      rstrip: false,
      normalized: false,
      single_word: false,
    },
  ];
  const bpe = {
    type: 'BPE',
    vocab,
    merges: [['a', 'b']],
    unk_token: null,
    byte_fallback: true,
    fuse_unk: false,
    ignore_merges: false,
  };
  const split = { type: 'Split', pattern: { Regex: '\\p{L}+|\\s' }, behavior: 'Isolated', invert: false };
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  const template = {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [{ Sequence: { id: 'A', type_id: 0 } }],
    special_tokens: { '<s>': { id: '<s>', ids: [20], tokens: ['<s>'] } },
  };
  const rest = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    post_processor: template,
  };
  const config = {
    bos_token: '<s>',
    eos_token: { content: '<s>' },
    tokenizer_class: 'LlamaTokenizer',
    add_bos_token: true,
    added_tokens_decoder: { '20': { content: '<s>', special: true } },
  };
  return [
    {
      tokenizer: {
        ...rest,
        model: bpe,
        normalizer: null,
        pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] },
        decoder: byteLevel,
      },
      config,
    },
    {
      tokenizer: {
        ...rest,
        model: bpe,
        normalizer: { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replace] },
        pre_tokenizer: null,
        decoder: {
          type: 'Sequence',
          decoders: [
            { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
            { type: 'ByteFallback' },
            { type: 'Fuse' },
            { type: 'Strip', content: ' ', start: 1, stop: 0 },
          ],
        },
      },
      config,
    },
    {
      tokenizer: {
        ...rest,
        model: {
          type: 'Unigram',
          unk_id: 0,
          vocab: [
            ['<unk>', 0],
            ['a', -1],
            ['▁', -2],
            ['ab', -1.5],
          ],
        },
        normalizer: null,
        pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
        decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
      },
      config,
    },
  ] as unknown as { tokenizer: Json; config: Json }[];
}

test('10,000 tokenizers, loaded and used', () => {
  const random = series(2);
  const kinds = smallTokenizers();
  for (let run = 0; run < runs; run++) {
    const kind = kinds[run % kinds.length]!;
    const tokenizer = mutate(kind.tokenizer, random) as Record<string, unknown>;
    const config = (random() < 0.3 ? mutate(kind.config, random) : kind.config) as Record<string, unknown>;
    if (tokenizer === null || typeof tokenizer !== 'object') continue;
    tame(`tokenizer ${run}`, () => {
      const loaded = loadTokenizer({ path: 'fuzzed', tokenizer, config });
      const ids = withTimeLimit(20, () => loaded.encode('ab <s> abc\n é xxxxxxxx'));
      loaded.decode(ids);
    });
  }
});

test('10,000 tokenizers in the metadata of GGUF files', () => {
  const random = series(3);
  const metadata: Json = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'llama-bpe',
    'tokenizer.ggml.tokens': ['<s>', 'a', 'b', 'ab', 'Ġ', '▁', '<0x0A>'],
    'tokenizer.ggml.token_type': [3, 1, 1, 1, 1, 4, 6],
    'tokenizer.ggml.scores': [0, -1, -2, -3, -4, -5, -6],
    'tokenizer.ggml.merges': ['a b'],
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.eos_token_id': 0,
    'tokenizer.ggml.add_bos_token': true,
    'tokenizer.chat_template': '{{ messages[0].content }}',
  };
  for (let run = 0; run < runs; run++) {
    const changed = mutate(metadata, random) as Record<string, Json>;
    if (run % 2 === 0 && changed['tokenizer.ggml.model'] === 'gpt2')
      changed['tokenizer.ggml.model'] = 'llama';
    tame(`metadata ${run}`, () => {
      const source = tokenizerFromGguf('fuzzed.gguf', new Map(Object.entries(changed)));
      const tokenizer = loadTokenizer(source);
      tokenizer.decode(withTimeLimit(6, () => tokenizer.encode('ab a\n')));
      loadChatTemplate(source)?.render([{ role: 'user', content: 'hi' }]);
    });
  }
});

test('10,000 chat templates, parsed and rendered', () => {
  const random = series(4);
  const pieces = [
    '{% for m in messages %}',
    '{% endfor %}',
    '{% if m.role == "user" %}',
    '{% else %}',
    '{% endif %}',
    '{{ m.content }}',
    '{{ bos_token }}',
    '{% set ns = namespace(x=0) %}',
    '{% set ns.x = ns.x + 1 %}',
    '{{ tools | tojson }}',
    '{% macro f(x) %}',
    '{% endmacro %}',
    '{{ f(1) }}',
    '{{ range(9999999999) }}',
    '{% for i in range(99999) %}',
    '{{ "x" * 3 }}',
    '{{ messages[-1:] }}',
    '{{ raise_exception("no") }}',
    '{{ m.content | trim | upper }}',
    '{%- generation -%}',
    '{% endgeneration %}',
    '{{',
    '}}',
    '{%',
    '%}',
    "'",
    '"',
    '~',
    '|',
    '(',
    ')',
    '[',
    ']',
    '\n',
    ' ',
    'é',
    '{# #}',
    '{{ loop.index0 }}',
    '{{ x.y.z }}',
    '{{ 1 / 0 }}',
    '{% break %}',
  ];
  for (let run = 0; run < runs; run++) {
    const length = 1 + Math.floor(random() * 12);
    const text = Array.from({ length }, () => pieces[Math.floor(random() * pieces.length)]).join('');
    tame(text, () => {
      const template = loadChatTemplate({
        path: 'fuzzed',
        tokenizer: {},
        config: { chat_template: text, bos_token: '<s>' },
      });
      withTimeLimit(2, () => template!.render([{ role: 'user', content: 'hi' }], { tools: [{ name: 'f' }] }));
    });
  }
});

const bombs: [string, string][] = [
  ['loops in loops', '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'],
  ['a huge range', '{{ range(1000000000) | length }}'],
  [
    'a text that doubles',
    '{% set ns = namespace(x="aaaaaaaa") %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}',
  ],
  ['a macro that calls itself', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'],
  ['a deep expression', `{{ ${'('.repeat(5000)}1${')'.repeat(5000)} }}`],
];
for (const [name, text] of bombs)
  test(`a template with ${name} ends in one clear line`, async () => {
    const tokenizer = smallTokenizers()[0]!.tokenizer as Record<string, unknown>;
    const before = process.memoryUsage().rss;
    const attempt = async () => {
      const words = loadWords({ path: 'bomb', tokenizer, config: { chat_template: text } });
      encodeChat(words, [{ role: 'user', content: 'hi' }], { addSpecialTokens: false });
    };
    await assert.rejects(attempt, (error) => error instanceof SluiceError && !error.message.includes('\n'));
    assert.ok(process.memoryUsage().rss - before < 512 << 20);
  });
