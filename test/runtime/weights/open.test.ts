/** What a place may be: a folder, a GGUF in one file or in parts, other weights over a folder's configuration. */
import assert from 'node:assert/strict';
import { copyFileSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { parseModel } from '../../../runtime/models/registry.ts';
import { openCheckpoint } from '../../../runtime/weights/open.ts';

const goldens = path.resolve(import.meta.dirname, '../../goldens');
const gguf = path.join(goldens, 'gguf-q8_0/model-Q8_0.gguf');
const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-open-'));
after(() => rmSync(scratch, { recursive: true }));
const folder = (): string => mkdtempSync(path.join(scratch, 'model-'));

const encodings: [string, string][] = [
  ['llama-basic', 'float32'],
  ['llama3-rope', 'bfloat16'],
  ['gptq-4bit', 'gptq'],
  ['gptq-8bit', 'gptq'],
  ['awq', 'awq'],
  ['gguf-q4_0', 'q4_0'],
  ['gguf-q8_0', 'q8_0'],
  ['gguf-k', 'q4_k'],
];
for (const [name, encoding] of encodings)
  test(`${name} is stored as ${encoding}, and its model is found`, () => {
    const checkpoint = openCheckpoint(path.join(goldens, name));
    assert.equal(checkpoint.encoding, encoding);
    assert.ok(checkpoint.weightBytes > 0 && checkpoint.identity !== undefined);
    assert.equal(parseModel(checkpoint).spec.architecture, 'LlamaForCausalLM');
  });

test('a GGUF is the same by its file, by its folder and as weights alone', () => {
  const [byFile, byFolder, asWeights] = [
    openCheckpoint(gguf),
    openCheckpoint(path.dirname(gguf)),
    openCheckpoint(gguf, { weightPaths: [gguf] }),
  ];
  for (const other of [byFolder, asWeights]) {
    assert.deepEqual(other.config, byFile.config);
    assert.equal(other.identity, byFile.identity);
    assert.deepEqual([...other.tensors.keys()], [...byFile.tensors.keys()]);
    assert.equal(other.metadata?.size, byFile.metadata?.size);
  }
});

test('a GGUF over a folder: configuration of the folder, weights of the file', () => {
  const own = folder();
  const { config } = openCheckpoint(gguf);
  writeFileSync(path.join(own, 'config.json'), JSON.stringify({ ...config, rope_theta: 4321 }));
  writeFileSync(path.join(own, 'generation_config.json'), '{"eos_token_id": 7}');
  const checkpoint = openCheckpoint(own, { weightPaths: [gguf] });
  assert.equal(checkpoint.config.rope_theta, 4321);
  assert.equal(checkpoint.encoding, 'q8_0');
  assert.deepEqual(parseModel(checkpoint).spec.eosTokenIds, [7]);
  // The same when it lies in the folder.
  symlinkSync(gguf, path.join(own, 'model.gguf'));
  assert.equal(openCheckpoint(own).config.rope_theta, 4321);
});

test('older GPTQ checkpoints have their settings in quantize_config.json', () => {
  const own = folder();
  cpSync(path.join(goldens, 'gptq-4bit'), own, { recursive: true });
  const file = path.join(own, 'config.json');
  const { quantization_config: settings, ...config } = JSON.parse(readFileSync(file, 'utf8')) as {
    quantization_config: Record<string, unknown>;
  };
  const { quant_method: _, ...old } = settings;
  writeFileSync(file, JSON.stringify(config));
  writeFileSync(path.join(own, 'quantize_config.json'), JSON.stringify(old));
  const checkpoint = openCheckpoint(own);
  assert.equal(checkpoint.encoding, 'gptq');
  assert.equal(checkpoint.tensors.get('model.layers.0.self_attn.q_proj.weight')?.kind, 'quantized');
});

const quantized = (change: object) => () => {
  const own = folder();
  cpSync(path.join(goldens, 'gptq-4bit'), own, { recursive: true });
  const file = path.join(own, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8')) as { quantization_config: object };
  const changed = { ...config.quantization_config, ...change };
  writeFileSync(file, JSON.stringify({ ...config, quantization_config: changed }));
  openCheckpoint(own);
};

const refusals: [string, () => unknown, RegExp][] = [
  ['GPTQ of 3 bits', quantized({ bits: 3 }), /3 bits is not supported; 4 and 8 are/],
  ['GPTQ with overrides', quantized({ dynamic: { 'x.*': { bits: 8 } } }), /"dynamic" overrides/],
  [
    'compressed-tensors',
    quantized({ quant_method: 'compressed-tensors' }),
    /"compressed-tensors" are not supported/,
  ],
  ['fp8', quantized({ quant_method: 'fp8' }), /"fp8" are not supported/],
  [
    'two models in one folder',
    () => {
      const own = folder();
      copyFileSync(gguf, path.join(own, 'a.gguf'));
      copyFileSync(gguf, path.join(own, 'b.gguf'));
      openCheckpoint(own);
    },
    /several GGUF models \(a\.gguf, b\.gguf\): name the one/,
  ],
  [
    'a GGUF and safetensors together',
    () => openCheckpoint(gguf, { weightPaths: [gguf, path.join(goldens, 'llama-basic/model.safetensors')] }),
    /cannot both be the weights/,
  ],
  [
    'a part that is missing',
    () => {
      const own = folder();
      copyFileSync(gguf, path.join(own, 'm-00001-of-00002.gguf'));
      openCheckpoint(own);
    },
    /m-00002-of-00002\.gguf/,
  ],
  ['a file of another kind', () => openCheckpoint(import.meta.filename), /not a folder and not a GGUF file/],
  ['an empty folder', () => openCheckpoint(folder()), /config\.json is missing/],
];
for (const [name, attempt, message] of refusals)
  test(`${name}: refused in one line`, () => {
    assert.throws(
      attempt,
      (error) => error instanceof SluiceError && message.test(error.message) && !error.message.includes('\n'),
    );
  });
