/** Where options come from, which win, and the one line that tells what is wrong with one. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import { runtimeReference } from '../../../runtime/cli/reference.ts';
import { nearest, type Option } from '../../../runtime/config/options.ts';
import { loadConfig, runtimeOptions, runtimeSpecArgs, runtimeSpecSchema } from '../../../runtime/config.ts';
import { SluiceError } from '../../../runtime/errors.ts';

const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-config-'));
after(() => rmSync(scratch, { recursive: true }));

let files = 0;
function yaml(text: string): string {
  const file = path.join(scratch, `${files++}.yaml`);
  writeFileSync(file, text);
  return file;
}

const load = (argv: readonly string[], env: Record<string, string> = {}) => loadConfig({ argv, env });

describe('values', () => {
  const file = yaml(
    'port: 1\nmax-body-bytes: 2MiB\nserved-model-name: [a, b]\ndevices: cpu:0,1\nlog-level: warn\n',
  );
  const cases: [name: string, argv: string[], env: Record<string, string>, expected: object][] = [
    [
      'nothing given',
      [],
      {},
      { port: 8000, host: '0.0.0.0', devices: { kind: 'auto' }, maxBatchSize: 32, modelPath: undefined },
    ],
    ['a flag with a space', ['--port', '1'], {}, { port: 1 }],
    ['a flag with =', ['--port=1'], {}, { port: 1 }],
    ['a value with =', ['--model-path=a=b'], {}, { modelPath: 'a=b' }],
    ['a variable', [], { SLUICE_PORT: '2' }, { port: 2 }],
    [
      'a file',
      ['--config', file],
      {},
      {
        port: 1,
        maxBodyBytes: 2 << 20,
        servedModelName: ['a', 'b'],
        devices: { kind: 'cpu', indices: [0, 1] },
      },
    ],
    ['a file named by a variable', [], { SLUICE_CONFIG: file }, { port: 1, logLevel: 'warn' }],
    ['a variable over the file', ['--config', file], { SLUICE_PORT: '2' }, { port: 2, logLevel: 'warn' }],
    ['a flag over both', ['--config', file, '--port=3'], { SLUICE_PORT: '2' }, { port: 3 }],
    ['an empty variable', [], { SLUICE_PORT: '' }, { port: 8000 }],
    ['an empty value of the file', ['--config', yaml('port:\n')], {}, { port: 8000 }],
    ['an empty file', ['--config', yaml('')], {}, { port: 8000 }],
    [
      'repeated and with commas',
      ['--served-model-name=a, b', '--served-model-name', 'c'],
      {},
      { servedModelName: ['a', 'b', 'c'] },
    ],
    ['a list of one in a variable', [], { SLUICE_WEIGHT_PATH: '/a,/b' }, { weightPath: ['/a', '/b'] }],
    ['bytes', ['--max-body-bytes=4KiB'], {}, { maxBodyBytes: 4096 }],
    ['bytes as Kubernetes writes them', ['--max-body-bytes=4Mi'], {}, { maxBodyBytes: 4 << 20 }],
    ['bytes, decimal', ['--max-body-bytes=4k'], {}, { maxBodyBytes: 4000 }],
    ['seconds', ['--shutdown-delay=7s', '--shutdown-grace', '0'], {}, { shutdownDelay: 7, shutdownGrace: 0 }],
    ['one rank', ['--devices=cpu:3'], {}, { devices: { kind: 'cpu', indices: [3] } }],
    ['the cache in XDG', [], { XDG_CACHE_HOME: '/x' }, { cacheDir: '/x/sluice' }],
    ['variables of other programs', [], { SLUICE_OPERATOR_PORT: '1', SLUICE_LOCAL_X: '2' }, { port: 8000 }],
    [
      'variables that Kubernetes makes for Services',
      [],
      {
        SLUICE_PORT: 'tcp://10.0.0.1:80',
        SLUICE_SERVICE_HOST: '10.0.0.1',
        SLUICE_SERVICE_PORT_HTTP: '80',
        SLUICE_PORT_80_TCP_ADDR: '10.0.0.1',
      },
      { port: 8000 },
    ],
    ['no GPUs', [], { NVIDIA_VISIBLE_DEVICES: 'void' }, { devices: { kind: 'auto' } }],
    [
      'GPUs that are left alone on purpose',
      ['--devices=cpu:0'],
      { NVIDIA_VISIBLE_DEVICES: 'all' },
      { devices: { kind: 'cpu', indices: [0] } },
    ],
  ];
  for (const [name, argv, env, expected] of cases)
    test(name, () => {
      const config = load(argv, env);
      const actual = Object.fromEntries(
        Object.keys(expected).map((key) => [key, config[key as keyof typeof config]]),
      );
      assert.deepEqual(actual, expected);
    });

  test('the configuration cannot be changed', () => {
    assert.throws(() => Object.assign(load([]), { port: 1 }), TypeError);
  });
});

describe('what is refused, in one line with an example', () => {
  const cases: [name: string, argv: string[], env: Record<string, string>, message: RegExp][] = [
    ['unknown flag', ['--prot=1'], {}, /^--prot: unknown flag; did you mean --port\?/],
    [
      'unknown flag like nothing',
      ['--zzzzzzzzzzz'],
      {},
      /^--zzzzzzzzzzz: unknown flag \(--help lists all\)$/,
    ],
    [
      'unknown variable',
      [],
      { SLUICE_MODEL_PAHT: 'x' },
      /^SLUICE_MODEL_PAHT "x": unknown.*did you mean SLUICE_MODEL_PATH\?$/,
    ],
    [
      'unknown key',
      ['--config', yaml('max_length: 1')],
      {},
      /yaml: max_length: unknown option; did you mean max-length\?$/,
    ],
    ['a file of another form', ['--config', yaml('- port')], {}, /the form is a mapping of options/],
    ['a file that is no YAML', ['--config', yaml('a: [')], {}, /cannot be read as YAML/],
    ['no file', ['--config=/no/such'], {}, /^--config "\/no\/such": cannot be read/],
    [
      'a mapping as value',
      ['--config', yaml('port: {a: 1}')],
      {},
      /port \{"a":1\}|port .*the form is an integer/,
    ],
    ['a positional argument', ['model'], {}, /^"model": unexpected argument/],
    ['a short flag', ['-p', '1'], {}, /^"-p": unexpected argument/],
    [
      'no value at the end',
      ['--port'],
      {},
      /^--port: the value is missing; the form is an integer .*--port 8000$/,
    ],
    ['a flag as value', ['--model-path', '--port=1'], {}, /^--model-path: the value is missing/],
    ['twice', ['--port=1', '--port=2'], {}, /^--port "2": given twice/],
    [
      'no number',
      ['--port=8o'],
      {},
      /^--port "8o": the form is an integer from 0 to 65535, for example 8000$/,
    ],
    ['a fraction', ['--threads=1.5'], {}, /^--threads "1\.5"/],
    ['out of range', ['--port=65536'], {}, /^--port "65536"/],
    ['negative', ['--max-batch-size=-1'], {}, /^--max-batch-size "-1"/],
    ['an empty value', ['--model-path='], {}, /^--model-path ""/],
    ['an empty name', ['--served-model-name=a,,b'], {}, /^--served-model-name "a,,b"/],
    [
      'not in the list',
      ['--quantization-encoding=int3'],
      {},
      /float32, bfloat16, float16, .*q6_k.*, for example float32$/,
    ],
    ['no power of two', ['--kv-cache-page-size=48'], {}, /power of two/],
    ['bytes of another unit', ['--max-body-bytes=1TB'], {}, /^--max-body-bytes "1TB"/],
    ['in a variable', [], { SLUICE_PORT: 'x' }, /^SLUICE_PORT "x"/],
    ['in the file', ['--config', yaml('port: x')], {}, /yaml: port "x"/],
    ['a line break in the value', ['--port=a\nb'], {}, /^--port "a\\nb"/],
    [
      "MAX's old devices",
      ['--devices=gpu-0,gpu-1'],
      {},
      /^--devices "gpu-0,gpu-1": the form is gpu:<index>\[,<index>\.\.\.\], for example gpu:0,1$/,
    ],
    ['an old device alone', ['--devices=gpu-0'], {}, /for example gpu:0$/],
    ['a kind alone', ['--devices=cpu'], {}, /for example cpu:0$/],
    ['a GPU', ['--devices=gpu:0'], {}, /no GPU execution/],
    ['a rank twice', ['--devices=cpu:0,0'], {}, /given twice/],
    ['a kind twice', ['--devices=cpu:0,cpu:1'], {}, /the form is auto or cpu:/],
    [
      'GPUs that auto would pass over',
      [],
      { NVIDIA_VISIBLE_DEVICES: '0' },
      /NVIDIA_VISIBLE_DEVICES="0".*--devices cpu:0$/,
    ],
    ['a value for a negation', ['--no-x=1'], {}, /^--no-x: unknown flag/],
  ];
  for (const [name, argv, env, message] of cases)
    test(name, () => {
      assert.throws(
        () => load(argv, env),
        (error) => {
          assert.ok(error instanceof SluiceError, String(error));
          assert.match(error.message, message);
          assert.equal(error.exitCode, 2);
          assert.doesNotMatch(error.message, /\n/);
          return true;
        },
      );
    });
});

test('every option names a variable, a form and an example that it takes itself', () => {
  for (const option of Object.values(runtimeOptions) as Option[]) {
    assert.match(option.flag, /^[a-z]+(-[a-z]+)*$/);
    assert.equal(option.env, `SLUICE_${option.flag.toUpperCase().replaceAll('-', '_')}`);
    assert.doesNotThrow(() => load([`--${option.flag}=${option.example}`]), option.flag);
    assert.notEqual(option.form, '');
  }
});

test('what spec.runtime may hold becomes args that the program reads as the same values', () => {
  const spec = {
    threads: 3,
    maxBatchSize: 4,
    maxLength: 100,
    shutdownDelaySeconds: 9,
    maxBodyBytes: 5000,
    logLevel: 'warn',
    cacheDir: '/c',
  } as const;
  const args = runtimeSpecArgs(runtimeSpecSchema.parse(spec));
  assert.partialDeepStrictEqual(load(args), {
    threads: 3,
    maxBatchSize: 4,
    maxLength: 100,
    shutdownDelay: 9,
    maxBodyBytes: 5000,
    logLevel: 'warn',
    cacheDir: '/c',
  });
  assert.equal(args.length, Object.keys(spec).length);
  assert.deepEqual(runtimeSpecArgs({}), []);
  assert.throws(() => runtimeSpecSchema.parse({ port: 1 }));
});

test('a name with one error leads back to itself', () => {
  const names: string[] = Object.values(runtimeOptions).map(({ flag }) => flag);
  fc.assert(
    fc.property(fc.constantFrom(...names), fc.nat(), (name, at) => {
      const index = at % (name.length - 1);
      const swapped = name.slice(0, index) + name[index + 1] + name[index] + name.slice(index + 2);
      const found = nearest(swapped, names);
      assert.ok(found === name || names.includes(swapped), `${swapped} gave ${found}`);
    }),
  );
});

test('docs/reference/runtime.md is what the table says', () => {
  const file = path.resolve(import.meta.dirname, '../../../docs/reference/runtime.md');
  assert.equal(readFileSync(file, 'utf8'), runtimeReference());
});
