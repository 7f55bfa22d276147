import assert from 'node:assert/strict';
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { SluiceError } from '../../../runtime/errors.ts';
import { openCheckpoint } from '../../../runtime/weights/open.ts';
import { readSafetensors } from '../../../runtime/weights/safetensors.ts';

const goldens = path.resolve(import.meta.dirname, '../../goldens');
const folder = mkdtempSync(path.join(tmpdir(), 'sluice-safetensors-'));
after(() => rmSync(folder, { recursive: true }));

const file = path.join(folder, 'some.safetensors');

function encode(header: unknown, data: Uint8Array, headerBytes?: bigint): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(headerBytes ?? BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

const entry = (dtype: unknown, shape: unknown, begin: unknown, end: unknown) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const sound = { a: entry('F32', [2, 2], 0, 16), b: entry('BF16', [3], 16, 22) };
const data = Uint8Array.from({ length: 22 }, (_, index) => index);

function refused(bytes: Uint8Array, message: RegExp, code = 'checkpoint_invalid'): void {
  writeFileSync(file, bytes);
  assert.throws(
    () => readSafetensors(file),
    (error) => {
      assert.ok(error instanceof SluiceError, String(error));
      assert.equal(error.code, code);
      assert.match(error.message, message);
      assert.ok(error.message.includes(file) && !error.message.includes('\n'), error.message);
      return true;
    },
  );
}

test('tensors are read by name with their type, shape, place and bytes', () => {
  writeFileSync(file, encode({ __metadata__: { format: 'pt' }, ...sound }, data));
  const { tensors, dataBytes } = readSafetensors(file);
  assert.deepEqual([...tensors.keys()], ['a', 'b']);
  assert.equal(dataBytes, 22);
  const b = tensors.get('b')!;
  assert.deepEqual([b.dtype, b.shape, b.location!.bytes], ['bfloat16', [3], 6]);
  assert.deepEqual([...b.read()], [16, 17, 18, 19, 20, 21]);
  assert.deepEqual(readFileSync(file).subarray(b.location!.offset), Buffer.from(data.subarray(16)));
});

test('a scalar and an empty tensor are tensors', () => {
  writeFileSync(
    file,
    encode({ s: entry('F32', [], 0, 4), e: entry('F32', [0, 5], 4, 4) }, data.subarray(0, 4)),
  );
  const { tensors } = readSafetensors(file);
  assert.deepEqual([tensors.get('s')!.read().length, tensors.get('e')!.read().length], [4, 0]);
});

const hostile: readonly (readonly [string, Uint8Array, RegExp, string?])[] = [
  ['an empty file', new Uint8Array(0), /truncated/],
  ['a file shorter than the length of its header', new Uint8Array(7), /truncated/],
  ['an absurd header length', encode(sound, data, 2n ** 63n), /header would be 9223372036854775808 bytes/],
  ['a header longer than the file', encode(sound, data, 50_000n), /truncated: its header needs/],
  ['a header that is not JSON', encode('{"a":', data), /not JSON/],
  ['a header that is not UTF-8', encode(Buffer.from([0x7b, 0xff]).toString('latin1'), data), /not JSON/],
  ['a header that is a list', encode([], data), /not a JSON object/],
  [
    'a tensor named twice',
    encode(
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      data.subarray(0, 1),
    ),
    /"a" twice/,
  ],
  ['truncated data', encode(sound, data.subarray(0, 20)), /truncated: the tensor "b" ends at byte 22/],
  ['bytes after the last tensor', encode(sound, new Uint8Array(30)), /8 bytes after/],
  [
    'overlapping tensors',
    encode({ a: entry('U8', [4], 0, 4), b: entry('U8', [4], 2, 6) }, data.subarray(0, 6)),
    /overlapping/,
  ],
  [
    'a hole between tensors',
    encode({ a: entry('U8', [4], 0, 4), b: entry('U8', [4], 8, 12) }, data.subarray(0, 12)),
    /hole of 4 bytes/,
  ],
  [
    'a shape that does not match the bytes',
    encode({ a: entry('F32', [2], 0, 4) }, data.subarray(0, 4)),
    /takes 8/,
  ],
  ['a negative size', encode({ a: entry('F32', [-1], 0, 4) }, data), /shape \[-1\]/],
  ['a fractional size', encode({ a: entry('F32', [0.5], 0, 2) }, data), /shape/],
  [
    'sizes whose product overflows',
    encode({ a: entry('F32', [2 ** 50, 2 ** 50], 0, 4) }, data.subarray(0, 4)),
    /takes/,
  ],
  ['offsets in the wrong order', encode({ a: entry('U8', [4], 4, 0) }, data), /data_offsets/],
  ['offsets that are no numbers', encode({ a: entry('U8', [4], '0', '4') }, data), /data_offsets/],
  ['a tensor that is null', encode({ a: null }, data), /without dtype/],
  [
    'a type that we do not know',
    encode({ a: entry('F8_E4M3', [4], 0, 4) }, data.subarray(0, 4)),
    /F8_E4M3; known are/,
    'checkpoint_unsupported',
  ],
  [
    'a type named like a property of all objects',
    encode({ a: entry('constructor', [4], 0, 4) }, data.subarray(0, 4)),
    /known are/,
    'checkpoint_unsupported',
  ],
];

for (const [sentence, bytes, message, code] of hostile) {
  test(`${sentence} is refused in one line`, () => refused(bytes, message, code));
}

test('a file that is not there is named', () => {
  assert.throws(() => readSafetensors('/nowhere/x.safetensors'), /\/nowhere\/x\.safetensors is missing/);
});

test('any change of any bytes is a typed error or a success, quickly', () => {
  const original = encode({ __metadata__: { format: 'pt' }, ...sound }, data);
  const mutations = fc.array(fc.record({ at: fc.nat(original.length - 1), value: fc.nat(255) }), {
    minLength: 1,
    maxLength: 6,
  });
  fc.assert(
    fc.property(mutations, fc.nat(original.length), fc.boolean(), (changes, length, cut) => {
      const bytes = Buffer.from(original);
      for (const { at, value } of changes) bytes[at] = value;
      writeFileSync(file, cut ? bytes.subarray(0, length) : bytes);
      try {
        for (const tensor of readSafetensors(file).tensors.values()) {
          assert.equal(tensor.read().length, tensor.location!.bytes);
        }
      } catch (error) {
        assert.ok(error instanceof SluiceError, String(error));
      }
    }),
    { numRuns: 10_000 },
  );
});

test('any JSON as a header is a typed error or a success', () => {
  const tensor = fc.record({
    dtype: fc.oneof(fc.constantFrom('F32', 'BF16', 'U8', 'F64'), fc.jsonValue()),
    shape: fc.oneof(fc.array(fc.nat(4), { maxLength: 3 }), fc.jsonValue()),
    data_offsets: fc.oneof(fc.tuple(fc.nat(40), fc.nat(40)), fc.jsonValue()),
  });
  fc.assert(
    fc.property(fc.oneof(fc.dictionary(fc.string(), tensor), fc.jsonValue()), (header) => {
      writeFileSync(file, encode(header, data));
      try {
        readSafetensors(file);
      } catch (error) {
        assert.ok(error instanceof SluiceError, String(error));
      }
    }),
    { numRuns: 1000 },
  );
});

/** A copy of a golden checkpoint to break. */
function copyOf(name: string): string {
  const copy = mkdtempSync(path.join(folder, 'checkpoint-'));
  cpSync(path.join(goldens, name), copy, { recursive: true });
  return copy;
}

test('a folder with one file and a folder with shards both open', () => {
  const single = openCheckpoint(path.join(goldens, 'llama-basic'));
  assert.equal(single.encoding, 'float32');
  assert.equal(single.tensors.get('model.norm.weight')!.shape[0], 64);
  const sharded = openCheckpoint(path.join(goldens, 'llama-sharded'));
  assert.ok(sharded.tensors.has('model.embed_tokens.weight') && sharded.tensors.has('lm_head.weight'));
  assert.equal(openCheckpoint(path.join(goldens, 'llama3-rope')).encoding, 'bfloat16');
});

test('weights given by path are read instead of the folder’s', () => {
  const copy = copyOf('llama-basic');
  const elsewhere = path.join(folder, 'elsewhere.safetensors');
  copyFileSync(path.join(copy, 'model.safetensors'), elsewhere);
  rmSync(path.join(copy, 'model.safetensors'));
  const { tensors } = openCheckpoint(copy, { weightPaths: [elsewhere] });
  const norm = tensors.get('model.norm.weight')!;
  assert.ok(norm.kind === 'dense' && norm.location?.file === elsewhere);
});

test('the identity changes when a file is replaced', () => {
  const copy = copyOf('llama-basic');
  const before = openCheckpoint(copy).identity;
  assert.equal(openCheckpoint(copy).identity, before);
  const weights = path.join(copy, 'model.safetensors');
  writeFileSync(weights, readFileSync(weights));
  assert.notEqual(openCheckpoint(copy).identity, before);
});

const broken: readonly (readonly [string, string, (copy: string) => void, RegExp])[] = [
  [
    'config.json that is missing',
    'llama-basic',
    (copy) => rmSync(path.join(copy, 'config.json')),
    /config\.json is missing/,
  ],
  [
    'config.json that is not JSON',
    'llama-basic',
    (copy) => writeFileSync(path.join(copy, 'config.json'), '{"a"'),
    /config\.json is not JSON/,
  ],
  [
    'config.json whose fault lies over a line end',
    'llama-basic',
    (copy) => writeFileSync(path.join(copy, 'config.json'), '{\n  "a": 1,\n  b\n}\n'),
    /config\.json is not JSON/,
  ],
  [
    'config.json that is a list',
    'llama-basic',
    (copy) => writeFileSync(path.join(copy, 'config.json'), '[]'),
    /config\.json is not a JSON object/,
  ],
  [
    'weights that are missing',
    'llama-basic',
    (copy) => rmSync(path.join(copy, 'model.safetensors')),
    /has no weights: expected model\.safetensors/,
  ],
  [
    'weights that are truncated',
    'llama-basic',
    (copy) => truncateSync(path.join(copy, 'model.safetensors'), 20_000),
    /model\.safetensors is truncated/,
  ],
  [
    'weights in a form that we do not read',
    'llama-basic',
    (copy) => {
      rmSync(path.join(copy, 'model.safetensors'));
      writeFileSync(path.join(copy, 'pytorch_model.bin'), '');
    },
    /only pytorch_model\.bin/,
  ],
  [
    'a shard that is missing',
    'llama-sharded',
    (copy) => rmSync(path.join(copy, 'model-00003-of-00005.safetensors')),
    /model-00003-of-00005\.safetensors is missing/,
  ],
  [
    'an index that names a file outside the folder',
    'llama-sharded',
    (copy) =>
      writeFileSync(
        path.join(copy, 'model.safetensors.index.json'),
        '{"weight_map":{"a":"../other.safetensors"}}',
      ),
    /places "a" in "\.\.\/other\.safetensors"/,
  ],
  [
    'an index with an absolute path',
    'llama-sharded',
    (copy) =>
      writeFileSync(
        path.join(copy, 'model.safetensors.index.json'),
        '{"weight_map":{"a":"/etc/x.safetensors"}}',
      ),
    /places "a"/,
  ],
  [
    'an index without a map',
    'llama-sharded',
    (copy) => writeFileSync(path.join(copy, 'model.safetensors.index.json'), '{"weight_map":[]}'),
    /no weight_map/,
  ],
  [
    'an index that places a tensor where it is not',
    'llama-sharded',
    (copy) =>
      writeFileSync(
        path.join(copy, 'model.safetensors.index.json'),
        '{"weight_map":{"x.weight":"model-00004-of-00005.safetensors"}}',
      ),
    /lacks the tensor "x\.weight"/,
  ],
];

for (const [sentence, name, spoil, message] of broken) {
  test(`${sentence}: one line that says so`, () => {
    const copy = copyOf(name);
    spoil(copy);
    assert.throws(
      () => openCheckpoint(copy),
      (error) => {
        assert.ok(error instanceof SluiceError, String(error));
        assert.match(error.message, message);
        assert.ok(!error.message.includes('\n'));
        return true;
      },
    );
  });
}

test('a checkpoint that is no folder is refused', () => {
  assert.throws(() => openCheckpoint(path.join(folder, 'absent')), /absent is missing/);
  const plain = path.join(folder, 'plain');
  writeFileSync(plain, '');
  assert.throws(() => openCheckpoint(plain), /plain is not a folder/);
  mkdirSync(path.join(folder, 'empty'));
  assert.throws(() => openCheckpoint(path.join(folder, 'empty')), /config\.json is missing/);
});
