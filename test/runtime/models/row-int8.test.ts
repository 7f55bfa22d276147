/** The form of matrices for many rows against plain loops: exact integers, rows that do not see each other, cuts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { rowInt8Ops } from '../../../runtime/engine/row-int8-ops.ts';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { rotateRow } from '../../../runtime/graph/hadamard.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import { quantizeRows } from '../../../runtime/graph/ops/row-int8.ts';
import { rowInt8Projection } from '../../../runtime/models/row-int8-weight.ts';
import type { Range } from '../../../runtime/models/shard.ts';
import { CustomOpDomain } from '../../../runtime/ort/custom-op.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';
import type { StoredTensor } from '../../../runtime/weights/checkpoint.ts';
import { dequantize } from '../../../runtime/weights/quantized.ts';

const [outputs, inputs, blockSize] = [24, 96, 32];
// Pairs of products stay in 16 bits: exact on every processor.
const pairLimit = 128;

const wave = (length: number, seed: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length }, (_, index) => Math.sin(index * index * 0.37 + seed) * (1 + (index % 7)));

const dense: StoredTensor = {
  kind: 'dense',
  dtype: 'float32',
  shape: [outputs, inputs],
  read: () => new Uint8Array(wave(outputs * inputs, 1).buffer),
};

function quantized(permuted: boolean): StoredTensor & { readonly kind: 'quantized' } {
  const blocks = inputs / blockSize;
  const permutation = Int32Array.from({ length: inputs }, (_, index) => (index * 37) % inputs);
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits: 4,
    blockSize,
    layout: () => ({ zeros: true, minima: true, ...(permuted ? { permutation } : {}) }),
    read: () => ({
      packed: Uint8Array.from({ length: (outputs * inputs) / 2 }, (_, index) => (index * 89) % 256),
      scales: wave(outputs * blocks, 2),
      zeros: Uint8Array.from({ length: outputs * Math.ceil(blocks / 2) }, (_, index) => (index * 61) % 256),
      minima: wave(outputs * blocks, 3),
      ...(permuted ? { permutation } : {}),
    }),
  };
}

function matrixOf(tensor: StoredTensor): Float32Array {
  if (tensor.kind === 'dense') return new Float32Array(tensor.read().buffer as ArrayBuffer);
  return dequantize(tensor.read(), { outputs, inputs, bits: tensor.bits, blockSize });
}

function project(
  tensor: StoredTensor,
  x: Float32Array,
  rows: Range,
  columns: Range,
  bias: boolean,
): Float32Array {
  const builder = new GraphBuilder('projection');
  const width = columns.end - columns.start;
  const input = builder.input('x', 'float32', ['rows', width]);
  const biasValue = bias
    ? builder.initializer('bias', 'float32', [rows.end - rows.start], {
        read: () => new Uint8Array(new Float32Array(rows.end - rows.start).fill(0.5).buffer),
      })
    : null;
  const parts = [{ tensor, rows, columns }];
  const projection = { parts, weight: 'w', bias: biasValue, pairLimit };
  builder.output('out', rowInt8Projection(builder, 'y', quantizeRows(builder, 'q', input), projection));
  const { bytes, external } = toOnnx(builder.build());
  using ops = new CustomOpDomain('sluice', rowInt8Ops({ tokens: x.length / width }));
  using session = Session.fromBytes(bytes, {
    customOps: [ops],
    copiedInitializers: new Map(
      external.map(({ name, type, source }) => [name, OrtValue.over(source.read(), type.dtype, type.shape)]),
    ),
  });
  using value = OrtValue.over(x, 'float32', [x.length / width, width]);
  using out = session.run({ x: value })[0]!;
  return out.toFloat32().slice();
}

const rotated = (row: Float32Array): number[] => {
  const copy = row.slice();
  rotateRow(copy, 0, copy.length);
  return [...copy];
};

/** The largest sum of two neighbours. */
const pairOf = (values: readonly number[]): number =>
  Math.max(...values.filter((_, k) => k % 2 === 0).map((one, i) => Math.abs(one + (values[2 * i + 1] ?? 0))));

/** What the form promises, element by element: rotated and rounded activations times weights made alike. */
function expected(
  matrix: Float32Array,
  x: Float32Array,
  rows: Range,
  columns: Range,
  bias: number,
): number[] {
  const width = columns.end - columns.start;
  const round = (values: readonly number[], pair: number): { whole: number[]; step: number } => {
    const step = Math.max(...values.map(Math.abs), pair) / 127;
    return { whole: values.map((value) => (step === 0 ? 0 : value / step)), step };
  };
  const result: number[] = [];
  for (let row = 0; row < x.length / width; row++) {
    const left = round(rotated(x.subarray(row * width, (row + 1) * width)), 0);
    for (let output = rows.start; output < rows.end; output++) {
      const column = rotated(matrix.subarray(output * inputs + columns.start, output * inputs + columns.end));
      const right = round(column, pairOf(column));
      const sum = left.whole.reduce(
        (total, value, k) => total + Math.round(value) * Math.round(right.whole[k]!),
        0,
      );
      result.push(sum * left.step * right.step + bias);
    }
  }
  return result;
}

const cuts = fc.record({
  kind: fc.constantFrom('dense', 'quantized', 'permuted'),
  rows: fc.tuple(fc.nat(outputs - 1), fc.nat(outputs - 1)),
  columns: fc.tuple(fc.nat(inputs - 1), fc.nat(inputs - 1)),
  count: fc.integer({ min: 1, max: 9 }),
  bias: fc.boolean(),
  seed: fc.nat(1000),
});

const range = ([one, other]: readonly [number, number]): Range => ({
  start: Math.min(one, other),
  end: Math.max(one, other) + 1,
});

test('every cut of every stored form gives the products of the rounded rows and columns', () => {
  fc.assert(
    fc.property(cuts, (cut) => {
      const tensor = cut.kind === 'dense' ? dense : quantized(cut.kind === 'permuted');
      const [rows, columns] = [range(cut.rows), range(cut.columns)];
      const x = wave(cut.count * (columns.end - columns.start), cut.seed);
      const actual = project(tensor, x, rows, columns, cut.bias);
      const wanted = expected(matrixOf(tensor), x, rows, columns, cut.bias ? 0.5 : 0);
      assert.equal(actual.length, wanted.length);
      // One activation or weight on the border between two steps may be rounded the other way.
      const largest = Math.max(1e-6, ...wanted.map(Math.abs));
      wanted.forEach((value, index) => {
        const error = Math.abs(actual[index]! - value) / largest;
        assert.ok(error < 0.03, `element ${index}: ${actual[index]}, ${value} expected`);
      });
    }),
    { numRuns: 80 },
  );
});

test('a row gives the same bits whatever rows are beside it, and a row of zeros gives zeros', () => {
  const whole = { start: 0, end: outputs };
  const all = { start: 0, end: inputs };
  const x = wave(9 * inputs, 5);
  x.fill(0, 3 * inputs, 4 * inputs);
  x.fill(1e4, 8 * inputs);
  const together = project(dense, x, whole, all, false);
  for (let row = 0; row < 9; row++) {
    const alone = project(dense, x.slice(row * inputs, (row + 1) * inputs), whole, all, false);
    assert.deepEqual(together.slice(row * outputs, (row + 1) * outputs), alone, `row ${row}`);
  }
  assert.ok(together.slice(3 * outputs, 4 * outputs).every((value) => value === 0));
});
