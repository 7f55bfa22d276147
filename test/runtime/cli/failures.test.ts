/** Whatever is wrong with flags or a checkpoint: one line on stderr that names it, exit code 2, no stack. */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { root, run } from './program.ts';

const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-failures-'));
after(() => rmSync(scratch, { recursive: true }));

async function assertRefused(argv: readonly string[], message: RegExp, env: Record<string, string> = {}) {
  const { code, stderr } = await run(argv, { env });
  assert.equal(code, 2, stderr);
  assert.match(stderr.trimEnd().split('\n').at(-1)!, message);
  assert.doesNotMatch(stderr, /^\s+at /m);
  // The line itself is one; serve writes its log to stdout.
  assert.equal(stderr.trimEnd().split('\n').length, 1, stderr);
}

describe('flags and environment', { concurrency: 2 }, () => {
  const cases: [name: string, argv: string[], message: RegExp, env?: Record<string, string>][] = [
    ['unknown command', ['serv'], /"serv": unknown command; did you mean serve\?/],
    ['unknown flag', ['serve', '--prot=1'], /--prot: unknown flag; did you mean --port\?/],
    ['a flag of the server in generate', ['generate', '--port=1'], /--port: unknown flag/],
    ['no prompt', ['generate'], /--prompt: missing/],
    ['bad number', ['serve', '--port', 'x'], /--port "x": .*integer from 0 to 65535, for example 8000/],
    [
      "MAX's old devices",
      ['serve', '--devices', 'gpu-0,gpu-1'],
      /--devices "gpu-0,gpu-1": the form is gpu:<index>.*gpu:0,1/,
    ],
    ['a GPU', ['serve', '--devices=gpu:0'], /--devices "gpu:0": .*no GPU execution/],
    [
      'GPUs that the container was given',
      ['serve'],
      /NVIDIA_VISIBLE_DEVICES="0,1".*--devices cpu:0/,
      { NVIDIA_VISIBLE_DEVICES: '0,1' },
    ],
    [
      'unknown variable',
      ['serve'],
      /SLUICE_PROT "1": unknown environment variable; did you mean SLUICE_PORT\?/,
      { SLUICE_PROT: '1' },
    ],
    ['no file of options', ['serve', '--config=/no/such.yaml'], /--config "\/no\/such.yaml": cannot be read/],
    ['no file of keys', ['serve', '--api-key-file=/no/such'], /--api-key-file "\/no\/such": cannot be read/],
    [
      'an address of somebody else',
      ['serve', '--host=192.0.2.77', '--port=0'],
      /--port 0 on --host "192\.0\.2\.77"/,
    ],
    ['an argument for version', ['version', 'x'], /takes no options/],
  ];
  for (const [name, argv, message, env] of cases) test(name, () => assertRefused(argv, message, env));
});

describe('checkpoints', { concurrency: 2 }, () => {
  const source = path.join(root, 'test/goldens/llama-basic');
  const sharded = path.join(root, 'test/goldens/llama-sharded');

  function editConfig(folder: string, change: object): void {
    const file = path.join(folder, 'config.json');
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), ...change }));
  }

  function writeHeader(folder: string, length: bigint, text: string): void {
    const head = Buffer.alloc(8);
    head.writeBigUInt64LE(length);
    writeFileSync(path.join(folder, 'model.safetensors'), Buffer.concat([head, Buffer.from(text)]));
  }

  const cases: [name: string, from: string, spoil: (folder: string) => void, message: RegExp][] = [
    ['the folder is missing', source, (folder) => rmSync(folder, { recursive: true }), /is missing/],
    ['config.json is missing', source, (folder) => rmSync(path.join(folder, 'config.json')), /config\.json/],
    [
      'config.json is not JSON',
      source,
      (folder) => writeFileSync(path.join(folder, 'config.json'), '{"a": 1,'),
      /config\.json/,
    ],
    [
      'config.json is a list',
      source,
      (folder) => writeFileSync(path.join(folder, 'config.json'), '[]'),
      /config\.json/,
    ],
    [
      'truncated weights',
      source,
      (folder) => truncateSync(path.join(folder, 'model.safetensors'), 5000),
      /model\.safetensors/,
    ],
    [
      'weights of a few bytes',
      source,
      (folder) => truncateSync(path.join(folder, 'model.safetensors'), 4),
      /model\.safetensors/,
    ],
    [
      'an absurd header length',
      source,
      (folder) => writeHeader(folder, 2n ** 63n, '{}'),
      /model\.safetensors/,
    ],
    [
      'a header beyond the file',
      source,
      (folder) => writeHeader(folder, 1_000_000n, '{}'),
      /model\.safetensors/,
    ],
    ['a header that is not JSON', source, (folder) => writeHeader(folder, 5n, 'hello'), /model\.safetensors/],
    ['no weights at all', source, (folder) => rmSync(path.join(folder, 'model.safetensors')), /safetensors/],
    [
      'a missing shard',
      sharded,
      (folder) => rmSync(path.join(folder, 'model-00003-of-00005.safetensors')),
      /model-00003-of-00005/,
    ],
    [
      'a missing tokenizer',
      source,
      (folder) => rmSync(path.join(folder, 'tokenizer.json')),
      /tokenizer\.json: missing/,
    ],
    [
      'a tokenizer that is not JSON',
      source,
      (folder) => writeFileSync(path.join(folder, 'tokenizer.json'), 'x'),
      /tokenizer\.json: is not JSON/,
    ],
    [
      'heads that do not divide',
      source,
      (folder) => editConfig(folder, { num_attention_heads: 7 }),
      /num_attention_heads|head/,
    ],
    [
      'KV heads that do not divide',
      source,
      (folder) => editConfig(folder, { num_key_value_heads: 3 }),
      /num_key_value_heads/,
    ],
    [
      'an unknown architecture',
      source,
      (folder) => editConfig(folder, { architectures: ['FooForCausalLM'] }),
      /FooForCausalLM/,
    ],
    [
      'no architecture',
      source,
      (folder) => editConfig(folder, { architectures: undefined }),
      /architectures/,
    ],
  ];
  for (const [name, from, spoil, message] of cases)
    test(name, async () => {
      const folder = mkdtempSync(path.join(scratch, 'model-'));
      cpSync(from, folder, { recursive: true });
      spoil(folder);
      await assertRefused(
        ['serve', '--host=127.0.0.1', '--port=0', '--devices=cpu:0', `--model-path=${folder}`],
        message,
      );
    });

  test('an encoding that the checkpoint cannot give', () =>
    assertRefused(
      ['serve', '--host=127.0.0.1', '--port=0', `--model-path=${source}`, '--quantization-encoding=float16'],
      /--quantization-encoding float16/,
    ));
  test('a length beyond the model', () =>
    assertRefused(['serve', '--host=127.0.0.1', '--port=0', '--max-length=1000000'], /--max-length 1000000/));
  test('weights that are not there', () =>
    assertRefused(
      ['generate', '--prompt=x', `--model-path=${source}`, '--weight-path=/no/such.safetensors'],
      /no\/such\.safetensors/,
    ));
});
