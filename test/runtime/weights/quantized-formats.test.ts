/** GGUF, GPTQ and AWQ layouts: what leaves the readers equals the element formulas of their specifications. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { awqTensor } from '../../../runtime/weights/awq.ts';
import type { DenseTensor } from '../../../runtime/weights/checkpoint.ts';
import { blockFormats, convertBlocks } from '../../../runtime/weights/gguf/blocks.ts';
import { gptqTensor } from '../../../runtime/weights/gptq.ts';
import { float16Table } from '../../../runtime/weights/half.ts';
import { dequantize } from '../../../runtime/weights/quantized.ts';

const half = (b: Uint8Array, at: number): number => float16Table[b[at]! | (b[at + 1]! << 8)]!;

/** Value i of one stored block, straight from ggml's dequantize_row_* loops. */
const element: Readonly<Record<string, (b: Uint8Array, i: number) => number>> = {
  q4_0: (b, i) => ((i < 16 ? b[2 + i]! & 15 : b[2 + i - 16]! >> 4) - 8) * half(b, 0),
  q4_1: (b, i) => (i < 16 ? b[4 + i]! & 15 : b[4 + i - 16]! >> 4) * half(b, 0) + half(b, 2),
  q5_0: (b, i) => {
    const high = new DataView(b.buffer, b.byteOffset + 2, 4).getUint32(0, true);
    const low = i < 16 ? b[6 + i]! & 15 : b[6 + i - 16]! >> 4;
    return ((low | (((high >>> i) & 1) << 4)) - 16) * half(b, 0);
  },
  q5_1: (b, i) => {
    const high = new DataView(b.buffer, b.byteOffset + 4, 4).getUint32(0, true);
    const low = i < 16 ? b[8 + i]! & 15 : b[8 + i - 16]! >> 4;
    return (low | (((high >>> i) & 1) << 4)) * half(b, 0) + half(b, 2);
  },
  q8_0: (b, i) => new Int8Array(b.buffer, b.byteOffset)[2 + i]! * half(b, 0),
  q4_k: (b, i) => {
    const [s, m] = kScale(b, i >> 5);
    const byte = b[16 + (i >> 6) * 32 + (i & 31)]!;
    return half(b, 0) * s * ((i >> 5) & 1 ? byte >> 4 : byte & 15) - half(b, 2) * m;
  },
  q5_k: (b, i) => {
    const [s, m] = kScale(b, i >> 5);
    const byte = b[48 + (i >> 6) * 32 + (i & 31)]!;
    const q = ((i >> 5) & 1 ? byte >> 4 : byte & 15) + (b[16 + (i & 31)]! & (1 << (i >> 5)) ? 16 : 0);
    return half(b, 0) * s * q - half(b, 2) * m;
  },
  q6_k: (b, i) => {
    const n = i >> 7;
    const l = i & 31;
    const high = b[128 + n * 32 + l]!;
    const low = b[n * 64 + l]!;
    const next = b[n * 64 + 32 + l]!;
    const q = [
      (low & 15) | ((high & 3) << 4),
      (next & 15) | (((high >> 2) & 3) << 4),
      (low >> 4) | (((high >> 4) & 3) << 4),
      (next >> 4) | ((high >> 6) << 4),
    ][(i & 127) >> 5]!;
    return half(b, 208) * new Int8Array(b.buffer, b.byteOffset)[192 + (i >> 4)]! * (q - 32);
  },
};

function kScale(b: Uint8Array, j: number): [number, number] {
  const s = b.subarray(4, 16);
  if (j < 4) return [s[j]! & 63, s[j + 4]! & 63];
  return [(s[j + 4]! & 15) | ((s[j - 4]! >> 6) << 4), (s[j + 4]! >> 4) | ((s[j]! >> 6) << 4)];
}

/** Random bytes with sane half-precision scales where the format keeps them. */
const scaleOffsets: Readonly<Record<string, readonly number[]>> = {
  q4_0: [0],
  q4_1: [0, 2],
  q5_0: [0],
  q5_1: [0, 2],
  q8_0: [0],
  q4_k: [0, 2],
  q5_k: [0, 2],
  q6_k: [208],
};

function close(actual: Float32Array, expected: readonly number[]): void {
  const scale = Math.max(...expected.map(Math.abs), 1e-6);
  for (const [i, value] of expected.entries()) {
    assert.ok(
      Math.abs(actual[i]! - value) <= 2e-6 * scale * 16,
      `element ${i}: ${actual[i]} instead of ${value}`,
    );
  }
}

for (const format of blockFormats) {
  test(`${format.name} blocks keep the values of ggml's formula`, () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: format.bytes * 4, maxLength: format.bytes * 4 }), (bytes) => {
        for (let b = 0; b < 4; b++) {
          for (const at of scaleOffsets[format.name]!)
            bytes[b * format.bytes + at + 1]! = 0x20 | (bytes[b * format.bytes + at + 1]! & 0x8f);
        }
        const shape = {
          outputs: 2,
          inputs: format.elements * 2,
          bits: format.bits,
          blockSize: format.blockSize,
        };
        const dense = dequantize(convertBlocks(format, bytes, shape.outputs, shape.inputs), shape);
        const expected = Array.from({ length: format.elements * 4 }, (_, i) => {
          const block = Math.floor(i / format.elements);
          const stored = bytes.slice(block * format.bytes, (block + 1) * format.bytes);
          return element[format.name]!(stored, i % format.elements);
        });
        close(dense, expected);
      }),
      { numRuns: 50 },
    );
  });
}

const dense = (dtype: DenseTensor['dtype'], shape: number[], data: ArrayBufferView): DenseTensor => ({
  kind: 'dense',
  dtype,
  shape,
  read: () => new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
});

interface Case {
  bits: 4 | 8;
  groupSize: number;
  inputs: number;
  outputs: number;
  actOrder: boolean;
  trueZeros: boolean;
}

const cases: readonly Case[] = [
  { bits: 4, groupSize: 32, inputs: 64, outputs: 16, actOrder: false, trueZeros: false },
  { bits: 4, groupSize: 128, inputs: 256, outputs: 24, actOrder: false, trueZeros: true },
  { bits: 4, groupSize: -1, inputs: 72, outputs: 8, actOrder: false, trueZeros: false },
  { bits: 8, groupSize: -1, inputs: 64, outputs: 16, actOrder: false, trueZeros: false },
  { bits: 8, groupSize: 64, inputs: 160, outputs: 8, actOrder: false, trueZeros: true },
  { bits: 4, groupSize: 32, inputs: 96, outputs: 16, actOrder: true, trueZeros: true },
  { bits: 4, groupSize: 24, inputs: 72, outputs: 8, actOrder: true, trueZeros: false },
  { bits: 4, groupSize: 48, inputs: 144, outputs: 8, actOrder: false, trueZeros: false },
];

/** A small deterministic stream of numbers. */
function numbers(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % below;
  };
}

for (const c of cases) {
  const title = `GPTQ ${c.bits} bits, groups of ${c.groupSize}, ${c.inputs} inputs${c.actOrder ? ', act-order' : ''}, ${c.trueZeros ? 'v2' : 'v1'} zeros`;
  test(`${title} dequantises to (q - zero) x scale`, () => {
    const next = numbers(c.inputs * 31 + c.bits);
    const size = c.groupSize > 0 ? c.groupSize : c.inputs;
    const groups = Math.ceil(c.inputs / size);
    const perWord = 32 / c.bits;
    const top = 1 << c.bits;
    const order = Array.from({ length: c.inputs }, (_, i) => i);
    if (c.actOrder)
      for (let i = order.length - 1; i > 0; i--) {
        const j = next(i + 1);
        [order[i], order[j]] = [order[j]!, order[i]!];
      }
    const gIdx = new Int32Array(c.inputs);
    for (const [rank, input] of order.entries()) gIdx[input] = Math.floor(rank / size);
    const q = Array.from({ length: c.inputs }, () => Array.from({ length: c.outputs }, () => next(top)));
    const z = Array.from({ length: groups }, () =>
      Array.from({ length: c.outputs }, () => 1 + next(top - 1)),
    );
    const s = Float32Array.from({ length: groups * c.outputs }, () => (1 + next(100)) / 64);
    const qweight = new Uint32Array((c.inputs / perWord) * c.outputs);
    for (let k = 0; k < c.inputs; k++)
      for (let n = 0; n < c.outputs; n++)
        qweight[Math.floor(k / perWord) * c.outputs + n]! |= q[k]![n]! << (c.bits * (k % perWord));
    const zeroWords = Math.ceil(c.outputs / perWord);
    const qzeros = new Uint32Array(groups * zeroWords);
    for (let g = 0; g < groups; g++)
      for (let n = 0; n < c.outputs; n++)
        qzeros[g * zeroWords + Math.floor(n / perWord)]! |=
          (z[g]![n]! - (c.trueZeros ? 0 : 1)) << (c.bits * (n % perWord));
    const tensor = gptqTensor(
      'layer',
      {
        qweight: dense('int32', [c.inputs / perWord, c.outputs], qweight),
        qzeros: dense('int32', [groups, zeroWords], qzeros),
        scales: dense('float32', [groups, c.outputs], s),
        gIdx: dense('int32', [c.inputs], gIdx),
      },
      { bits: c.bits, groupSize: c.groupSize, trueZeros: c.trueZeros },
    );
    const bytes = tensor.read();
    const stored = bytes.permutation?.length ?? c.inputs;
    const shape = { outputs: c.outputs, inputs: stored, bits: c.bits, blockSize: tensor.blockSize };
    const expected: number[] = [];
    for (let n = 0; n < c.outputs; n++)
      for (let k = 0; k < c.inputs; k++)
        expected.push((q[k]![n]! - z[gIdx[k]!]![n]!) * s[gIdx[k]! * c.outputs + n]!);
    close(dequantize(bytes, shape, c.inputs), expected);
  });
}

test('AWQ gemm words hold columns 0, 2, 4, 6, 1, 3, 5, 7 and true zeros', () => {
  const next = numbers(7);
  const [inputs, outputs, groupSize] = [64, 16, 32];
  const order = [0, 2, 4, 6, 1, 3, 5, 7];
  const q = Array.from({ length: inputs }, () => Array.from({ length: outputs }, () => next(16)));
  const z = Array.from({ length: 2 }, () => Array.from({ length: outputs }, () => next(16)));
  const s = Float32Array.from({ length: 2 * outputs }, () => (1 + next(100)) / 64);
  const pack = (rows: number[][]): Uint32Array => {
    const words = new Uint32Array((rows.length * outputs) / 8);
    for (const [r, row] of rows.entries())
      for (let w = 0; w < outputs / 8; w++)
        for (const [nibble, column] of order.entries())
          words[(r * outputs) / 8 + w]! |= row[w * 8 + column]! << (4 * nibble);
    return words;
  };
  const tensor = awqTensor(
    'layer',
    {
      qweight: dense('int32', [inputs, outputs / 8], pack(q)),
      qzeros: dense('int32', [2, outputs / 8], pack(z)),
      scales: dense('float32', [2, outputs], s),
    },
    { groupSize },
  );
  const expected: number[] = [];
  for (let n = 0; n < outputs; n++)
    for (let k = 0; k < inputs; k++) {
      const g = Math.floor(k / groupSize);
      expected.push((q[k]![n]! - z[g]![n]!) * s[g * outputs + n]!);
    }
  close(dequantize(tensor.read(), { outputs, inputs, bits: 4, blockSize: tensor.blockSize }), expected);
});
