/** GGUF files from hostile hands: every one ends in a typed error or opens, quickly and without much memory. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { openGguf } from '../../../runtime/weights/gguf/checkpoint.ts';

const goldens = path.resolve(import.meta.dirname, '../../goldens');
const whole = readFileSync(path.join(goldens, 'gguf-q4_0/model-Q4_0.gguf'));
const folder = mkdtempSync(path.join(tmpdir(), 'sluice-gguf-'));
after(() => rmSync(folder, { recursive: true }));

function open(bytes: Uint8Array, name = 'm.gguf'): 'opened' | string {
  const file = path.join(folder, name);
  writeFileSync(file, bytes);
  try {
    for (const tensor of openGguf(file).tensors.values()) tensor.read();
    return 'opened';
  } catch (error) {
    assert.ok(error instanceof SluiceError, `not a typed error: ${(error as Error).stack}`);
    assert.ok(error.code === 'checkpoint_invalid' || error.code === 'checkpoint_unsupported');
    assert.ok(!error.message.includes('\n'), error.message);
    return error.message;
  }
}

/** The same little-endian 64-bit value everywhere a 64-bit count stands first after the magic. */
function withCount(offset: number, value: bigint): Uint8Array {
  const bytes = Buffer.from(whole);
  bytes.writeBigUInt64LE(value, offset);
  return bytes;
}

const cases: readonly [string, () => Uint8Array, RegExp][] = [
  ['the untouched file', () => whole, /^opened$/],
  ['an empty file', () => new Uint8Array(0), /truncated/],
  ['no magic number', () => Buffer.from('PK\x03\x04 not gguf at all, but long enough'), /is not a GGUF file/],
  [
    'a future version',
    () => Buffer.concat([Buffer.from('GGUF'), Buffer.from([9, 0, 0, 0]), whole.subarray(8)]),
    /version 9/,
  ],
  ['an absurd number of tensors', () => withCount(8, 2n ** 62n), /more than any file can hold/],
  ['many more keys than bytes', () => withCount(16, 1n << 40n), /more than \d+ bytes can hold/],
  ['an absurd string length', () => withCount(24, 1n << 33n), /claims 8589934592 bytes/],
  ['tensor data cut off', () => whole.subarray(0, whole.length - 40_000), /truncated: tensor/],
  ['the header cut off', () => whole.subarray(0, 2000), /truncated|left in the file/],
];

for (const [name, bytes, expected] of cases) {
  test(`${name} ends in one clear line`, () => assert.match(open(bytes()), expected));
}

test('a split model with a part missing names the part', () => {
  writeFileSync(path.join(folder, 'x-00001-of-00002.gguf'), whole);
  assert.throws(
    () => openGguf(path.join(folder, 'x-00001-of-00002.gguf')),
    /x-00002-of-00002\.gguf: cannot be opened \(ENOENT\)/,
  );
});

test('10,000 files with flipped, cut and repeated bytes are refused with a typed error or open', () => {
  let state = 12345;
  const next = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 4) % below;
  };
  const headerBytes = 15_000;
  let opened = 0;
  for (let i = 0; i < 10_000; i++) {
    const bytes = Buffer.from(whole);
    // Small offsets hold the counts and types that steer the parser: most changes go there.
    const reach = i % 3 === 0 ? headerBytes : i % 3 === 1 ? 1200 : whole.length;
    for (let flips = 1 + next(6); flips > 0; flips--) {
      const at = next(reach);
      const kind = next(4);
      if (kind === 0) bytes[at] = next(256);
      else if (kind === 1) bytes[at]! ^= 1 << next(8);
      else if (kind === 2) bytes.fill(0xff, at, at + 8);
      else bytes.copyWithin(at, next(headerBytes), next(headerBytes));
    }
    if (open(i % 7 === 0 ? bytes.subarray(0, next(bytes.length)) : bytes) === 'opened') opened++;
  }
  assert.ok(
    opened > 0,
    'the changes never left a sound file: the test tries nothing beyond the magic number',
  );
});
