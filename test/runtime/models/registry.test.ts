import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { prepareRank } from '../../../runtime/models/prepare.ts';
import { architectures, parseModel } from '../../../runtime/models/registry.ts';
import type { Checkpoint } from '../../../runtime/weights/checkpoint.ts';
import { openCheckpoint } from '../../../runtime/weights/open.ts';

const goldens = path.resolve(import.meta.dirname, '../../goldens');
const sound = openCheckpoint(path.join(goldens, 'llama-basic'));

/** A sound checkpoint with some keys of config.json replaced; undefined removes one. */
function withConfig(changes: Readonly<Record<string, unknown>>, from: Checkpoint = sound): Checkpoint {
  const config = Object.fromEntries(
    Object.entries({ ...from.config, ...changes }).filter(([, value]) => value !== undefined),
  );
  return { ...from, config };
}

function build(checkpoint: Checkpoint): void {
  const options = { rank: 0, ranks: 1, cacheDir: null, warn: () => {} };
  prepareRank(parseModel(checkpoint), checkpoint, options);
}

const refused: readonly (readonly [string, Checkpoint, RegExp, string?])[] = [
  [
    'an unknown architecture',
    withConfig({ architectures: ['MambaForCausalLM'] }),
    /MambaForCausalLM is not known; known are LlamaForCausalLM, Mistral/,
    'checkpoint_unsupported',
  ],
  [
    'a mixture of experts under a known name',
    withConfig({ num_local_experts: 8 }),
    /mixtures of experts are not supported \(num_local_experts is 8\)/,
    'checkpoint_unsupported',
  ],
  [
    'a mixture of experts of an unknown architecture',
    withConfig({ architectures: ['Qwen2MoeForCausalLM'], num_experts: 60 }),
    /mixtures of experts are not supported/,
    'checkpoint_unsupported',
  ],
  ['no architecture', withConfig({ architectures: undefined }), /no architectures: expected a list/],
  ['a missing size', withConfig({ hidden_size: undefined }), /hidden_size: .*it is missing/],
  ['a size that is text', withConfig({ num_hidden_layers: '2' }), /num_hidden_layers: .*received "2"/],
  ['a negative size', withConfig({ vocab_size: -512 }), /vocab_size: .*received -512/],
  ['an absurd number of layers', withConfig({ num_hidden_layers: 1e9 }), /num_hidden_layers/],
  [
    'heads that do not divide the hidden size',
    withConfig({ num_attention_heads: 7, num_key_value_heads: 7 }),
    /hidden_size 64 is no multiple of num_attention_heads 7/,
  ],
  [
    'KV heads that do not divide the heads',
    withConfig({ num_key_value_heads: 3 }),
    /num_attention_heads 8 is no multiple of num_key_value_heads 3/,
  ],
  [
    'another head size than the weights have',
    withConfig({ head_dim: 16 }),
    /q_proj\.weight" has the shape \[64, 64\]; config\.json makes it \[128, 64\]/,
  ],
  [
    'another vocabulary than the weights have',
    withConfig({ vocab_size: 500 }),
    /embed_tokens\.weight" has the shape \[512, 64\]/,
  ],
  [
    'more layers than there are weights',
    withConfig({ num_hidden_layers: 3 }),
    /lacks the tensor "model\.layers\.2\./,
  ],
  [
    'biases that the weights lack',
    withConfig({ attention_bias: true }),
    /lacks the tensor "model\.layers\.0\.self_attn\.q_proj\.bias"/,
  ],
  [
    'an unknown activation',
    withConfig({ hidden_act: 'mish' }),
    /activation "mish"; known are silu/,
    'checkpoint_unsupported',
  ],
  [
    'an unknown rope type',
    withConfig({ rope_scaling: { rope_type: 'spiral' } }),
    /rope type "spiral"; known are default, linear/,
    'checkpoint_unsupported',
  ],
  [
    'a rope type that is a property of all objects',
    withConfig({ rope_scaling: { type: 'constructor' } }),
    /known are default/,
    'checkpoint_unsupported',
  ],
  [
    'a rope scaling without its factor',
    withConfig({ rope_scaling: { type: 'linear' } }),
    /rope type "linear" needs factor/,
  ],
  [
    'an end of sequence that is text',
    { ...sound, generationConfig: { eos_token_id: '</s>' } },
    /generation_config\.json: eos_token_id is "<\/s>"/,
  ],
];

for (const [sentence, checkpoint, message, code = 'checkpoint_invalid'] of refused) {
  test(`${sentence}: one line that says so`, () => {
    assert.throws(
      () => build(checkpoint),
      (error) => {
        assert.ok(error instanceof SluiceError, String(error));
        assert.equal(error.code, code);
        assert.match(error.message, message);
        assert.ok(!error.message.includes('\n') && error.message.length < 600, error.message);
        return true;
      },
    );
  });
}

test('every architecture has a golden checkpoint', () => {
  const index = JSON.parse(readFileSync(path.join(goldens, 'index.json'), 'utf8')) as unknown;
  const text = JSON.stringify(index);
  for (const { name } of architectures) {
    const kind = name.replace('ForCausalLM', '').toLowerCase();
    assert.ok(text.includes(kind), `${name} in ${text.slice(0, 200)}`);
  }
});

test('generation_config.json decides what ends a sequence, config.json where it is silent', () => {
  const eos = (generationConfig: Readonly<Record<string, unknown>>): readonly number[] =>
    parseModel({ ...sound, generationConfig }).spec.eosTokenIds;
  assert.deepEqual(eos({ eos_token_id: [5, 7] }), [5, 7]);
  assert.deepEqual(eos({ eos_token_id: 5 }), [5]);
  assert.deepEqual(eos({}), [1]);
});

test('rope parameters are read under their old and new names', () => {
  const frequencies = (changes: Readonly<Record<string, unknown>>): number[] => {
    const { rope } = parseModel(withConfig(changes)).spec;
    return [...rope.table(rope.variant(10)).inverseFrequencies];
  };
  const plain = frequencies({});
  const half = plain.map((frequency) => frequency / 2);
  assert.deepEqual(frequencies({ rope_scaling: { type: 'linear', factor: 2 } }), half);
  assert.deepEqual(frequencies({ rope_scaling: { rope_type: 'linear', factor: 2 } }), half);
  assert.deepEqual(
    frequencies({
      rope_theta: undefined,
      rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 10000 },
    }),
    half,
  );
  assert.deepEqual(frequencies({ rope_scaling: { rope_type: 'default' } }), plain);
});

test('rope parameters by kind of layer are read where all are the same', () => {
  const theta = (full: number, sliding: number) =>
    parseModel(
      withConfig({
        rope_theta: undefined,
        rope_parameters: {
          full_attention: { rope_type: 'default', rope_theta: full },
          sliding_attention: { rope_type: 'default', rope_theta: sliding },
        },
      }),
    ).spec.rope.table(0).inverseFrequencies[1]!;
  assert.ok(Math.abs(theta(160_000, 160_000) - 0.05) < 1e-12);
  assert.throws(() => theta(10_000, 1_000_000), /rope_parameters differ between kinds of layers/);
});

// By hand from _compute_yarn_parameters: 8 dimensions turn 512 / (2 pi) radians 32 times and once at 0.41 and 1.91 of the
// pairs, so the ramp is 0, 1/2, 1, 1.
test('yarn blends plain and stretched frequencies as transformers does', () => {
  const { rope } = parseModel(
    withConfig({
      max_position_embeddings: 512,
      rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 512 },
    }),
  ).spec;
  const { inverseFrequencies, attentionFactor } = rope.table(rope.variant(10));
  const expected = [1, 0.1 * (0.5 + 0.5 / 4), 0.01 / 4, 0.001 / 4];
  expected.forEach((frequency, pair) => {
    assert.ok(Math.abs(inverseFrequencies[pair]! - frequency) < 1e-12, `pair ${pair}`);
  });
  assert.ok(Math.abs(attentionFactor - 1.138629436) < 1e-9);
  assert.equal(rope.maxLength, 2048);
});

test('dynamic scaling changes nothing up to the original length, and the base beyond it', () => {
  const { rope, maxLength } = parseModel(withConfig({ rope_scaling: { type: 'dynamic', factor: 2 } })).spec;
  assert.equal(maxLength, 1024);
  assert.equal(rope.variant(512), 0);
  const [plain, stretched] = [512, 1024].map((length) => rope.table(rope.variant(length)).inverseFrequencies);
  const base = 10_000 * ((2 * 1024) / 512 - 1) ** (8 / 6);
  for (let pair = 0; pair < 4; pair++) {
    assert.ok(Math.abs(plain![pair]! - 10_000 ** (-pair / 4)) < 1e-12);
    assert.ok(Math.abs(stretched![pair]! - base ** (-pair / 4)) < 1e-12);
  }
});
