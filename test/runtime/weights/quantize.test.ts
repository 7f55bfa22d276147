/** Quantization of plain matrices: what comes back is near what went in, for every form and size. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SluiceError } from '../../../runtime/errors.ts';
import type { Checkpoint, DenseTensor, StoredTensor } from '../../../runtime/weights/checkpoint.ts';
import { bfloat16ToFloat32, float16ToFloat32 } from '../../../runtime/weights/half.ts';
import { quantizeCheckpoint, quantizeTensor } from '../../../runtime/weights/quantize.ts';
import { dequantize, quantizedAt, rowBytes } from '../../../runtime/weights/quantized.ts';

const bitsAndBlocks = ([4, 8] as const).flatMap((bits) =>
  [16, 32, 64, 128, 256].map((blockSize) => ({ bits, blockSize })),
);

function denseTensor(values: Float32Array, shape: readonly number[]): DenseTensor {
  return { kind: 'dense', dtype: 'float32', shape, read: () => new Uint8Array(values.slice().buffer) };
}

for (const { bits, blockSize } of bitsAndBlocks) {
  test(`${bits} bits in blocks of ${blockSize}: each value comes back within half a step of its block, rows of any length`, () => {
    const matrices = fc.record({
      outputs: fc.integer({ min: 1, max: 9 }),
      inputs: fc.integer({ min: 1, max: 600 }),
      exponent: fc.integer({ min: -20, max: 20 }),
      seed: fc.integer({ min: 1, max: 2 ** 30 }),
    });
    fc.assert(
      fc.property(matrices, ({ outputs, inputs, exponent, seed }) => {
        let state = seed;
        const values = Float32Array.from({ length: outputs * inputs }, () => {
          state = Math.imul(state, 1103515245) + 12345;
          return ((state >> 8) / 2 ** 23) * 2 ** exponent;
        });
        const tensor = quantizeTensor(denseTensor(values, [outputs, inputs]), { bits, blockSize });
        const bytes = tensor.read();
        const shape = { outputs, inputs, bits, blockSize };
        const blocks = Math.ceil(inputs / blockSize);
        assert.deepEqual(tensor.layout(), { zeros: false, minima: false });
        assert.equal(bytes.packed.length, outputs * rowBytes(shape));
        assert.equal(bytes.scales.length, outputs * blocks);
        const back = dequantize(bytes, shape);
        for (const [i, value] of values.entries()) {
          const block = Math.floor(i / inputs) * blocks + Math.floor((i % inputs) / blockSize);
          const half = bytes.scales[block]! / 2;
          assert.ok(
            Math.abs(back[i]! - value) <= half * 1.0001,
            `${back[i]} is not within ${half} of ${value}`,
          );
        }
        // What lies behind a short row stands for zero.
        for (let row = 0; row < outputs; row++) {
          for (let k = inputs; k < blocks * blockSize; k++)
            assert.equal(quantizedAt(bytes.packed, row * rowBytes(shape), k, bits), 2 ** (bits - 1));
        }
      }),
      { numRuns: 40 },
    );
  });

  test(`${bits} bits in blocks of ${blockSize}: the largest magnitude of a block, of either sign, comes back as it was, and zeros stay zeros`, () => {
    const inputs = 2 * blockSize;
    const values = new Float32Array(3 * inputs);
    values[5] = -3;
    values[7] = 1;
    values[2 * inputs + blockSize] = 2;
    const back = dequantize(quantizeTensor(denseTensor(values, [3, inputs]), { bits, blockSize }).read(), {
      outputs: 3,
      inputs,
      bits,
      blockSize,
    });
    const most = 2 ** (bits - 1) - 1;
    for (const [i, value] of values.entries()) {
      if (i === 7) continue;
      assert.ok(Math.abs(back[i]! - value) <= 1e-6, `place ${i}: ${back[i]}`);
    }
    assert.ok(Math.abs(back[7]! - 1) <= 1.5 / most);
  });
}

test('half-precision matrices are quantized as the float32 values that they stand for', () => {
  const bits = Uint16Array.from({ length: 6 * 70 }, (_, i) => 0x3000 + ((i * 37) % 0x900));
  for (const [dtype, widen] of [
    ['float16', float16ToFloat32],
    ['bfloat16', bfloat16ToFloat32],
  ] as const) {
    const half: DenseTensor = {
      ...denseTensor(new Float32Array(0), [6, 70]),
      dtype,
      read: () => new Uint8Array(bits.slice().buffer),
    };
    const form = { bits: 4, blockSize: 32 } as const;
    assert.deepEqual(
      quantizeTensor(half, form).read(),
      quantizeTensor(denseTensor(widen(bits), [6, 70]), form).read(),
    );
  }
});

function checkpointOf(tensors: Record<string, StoredTensor>): Checkpoint {
  return {
    path: '/models/plain',
    config: { vocab_size: 48 },
    generationConfig: {},
    tensors: new Map(Object.entries(tensors)),
    encoding: 'float32',
    weightBytes: 4 * (48 * 64 + 64 * 64 + 64),
    identity: 'plain',
  };
}

const plain = {
  embedding: denseTensor(new Float32Array(48 * 64).fill(1), [48, 64]),
  projection: denseTensor(new Float32Array(64 * 64).fill(1), [64, 64]),
  norm: denseTensor(new Float32Array(64).fill(1), [64]),
};

test('of a checkpoint, matrices are quantized, those with a row for each token in 8 bits, and vectors stay', () => {
  const { tensors, encoding, weightBytes, identity } = quantizeCheckpoint(checkpointOf(plain), {
    bits: 4,
    blockSize: 32,
  });
  const forms = [...tensors].map(([name, tensor]) => [
    name,
    tensor.kind === 'quantized' ? tensor.bits : 'plain',
  ]);
  assert.deepEqual(forms, [
    ['embedding', 8],
    ['projection', 4],
    ['norm', 'plain'],
  ]);
  assert.equal(encoding, 'int4');
  assert.equal(weightBytes, (48 * 64 * (32 + 4)) / 32 + (64 * 64 * (16 + 4)) / 32 + 4 * 64);
  const others = [
    checkpointOf(plain).identity,
    quantizeCheckpoint(checkpointOf(plain), { bits: 8, blockSize: 32 }).identity,
    quantizeCheckpoint(checkpointOf(plain), { bits: 4, blockSize: 64 }).identity,
  ];
  assert.ok(!others.includes(identity), 'each way to quantize has prepared weights of its own');
});

test('a checkpoint that is quantized already is refused by name', () => {
  const once = quantizeCheckpoint(checkpointOf(plain), { bits: 8, blockSize: 32 });
  assert.throws(
    () => quantizeCheckpoint(once, { bits: 4, blockSize: 32 }),
    (error) =>
      error instanceof SluiceError &&
      error.code === 'checkpoint_unsupported' &&
      /^\/models\/plain: --quantization-encoding int4 quantizes plain weights, and these are stored as int8 already/.test(
        error.message,
      ),
  );
});
