/** Each op through ONNX Runtime against numbers worked out by hand or by the plainest loop. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import type { Dimension, Value } from '../../../runtime/graph/graph.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import {
  activation,
  add,
  cast,
  clip,
  inverseSqrt,
  mul,
  scale,
  softcap,
} from '../../../runtime/graph/ops/elementwise.ts';
import { blockSums, linear, quantizedLinear } from '../../../runtime/graph/ops/linear.ts';
import { addRmsNorm, layerNorm, rmsNorm } from '../../../runtime/graph/ops/norm.ts';
import { concat, gather, reshape, selectColumns, slice, split } from '../../../runtime/graph/ops/shape.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';

type Build = (builder: GraphBuilder, x: Value) => Value | readonly Value[];

/** Runs a graph of one input x [rows, columns]; checks that the types inferred are those that come out. */
function run(x: readonly (readonly number[])[], build: Build): number[][] {
  const builder = new GraphBuilder('op');
  const width = x[0]!.length;
  const results = [build(builder, builder.input('x', 'float32', ['rows', width]))].flat() as Value[];
  for (const [index, value] of results.entries()) builder.output(`y${index}`, value);
  const { bytes, external } = toOnnx(builder.build());
  using session = Session.fromBytes(bytes, {
    copiedInitializers: new Map(
      external.map(({ name, type, source }) => [name, OrtValue.over(source.read(), type.dtype, type.shape)]),
    ),
  });
  using input = OrtValue.over(Float32Array.from(x.flat()), 'float32', [x.length, width]);
  return session.run({ x: input }).map((output, index) => {
    const { dtype, shape } = results[index]!.type;
    assert.equal(output.dtype, dtype);
    assert.equal(output.shape.length, shape.length, `rank of output ${index}`);
    shape.forEach((size: Dimension, axis) => {
      if (typeof size === 'number') assert.equal(output.shape[axis], size, `axis ${axis} of output ${index}`);
    });
    const values = [...output.toFloat32()];
    output.close();
    return values;
  });
}

function floats(
  builder: GraphBuilder,
  name: string,
  shape: readonly number[],
  values: readonly number[],
): Value {
  return builder.constant(name, 'float32', shape, Float32Array.from(values));
}

const rows = [
  [1, -2, 3, 4],
  [0.5, 0, -1, 2],
];
const flat = rows.flat();
const rms = (row: readonly number[]): number =>
  Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / row.length + 1e-3);
const sigmoid = (value: number): number => 1 / (1 + Math.exp(-value));
const weight = [
  [1, 0, 2, -1],
  [0.5, 1, 0, 0],
  [3, -3, 1, 1],
];
const product = rows.flatMap((row) =>
  weight.map((column) => column.reduce((sum, value, index) => sum + value * row[index]!, 0)),
);

const table: readonly (readonly [string, Build, readonly (readonly number[])[]])[] = [
  [
    'add broadcasts a vector',
    (b, x) => add(b, 'y', x, floats(b, 'v', [4], [1, 2, 3, 4])),
    [flat.map((v, i) => v + (i % 4) + 1)],
  ],
  ['mul takes the same value twice', (b, x) => mul(b, 'y', x, x), [flat.map((v) => v * v)]],
  [
    'scale by one is no node',
    (b, x) => {
      assert.equal(scale(b, 'y', x, 1), x);
      return scale(b, 'z', x, -2);
    },
    [flat.map((v) => -2 * v)],
  ],
  ['silu', (b, x) => activation(b, 'y', x, 'silu'), [flat.map((v) => v * sigmoid(v))]],
  [
    'gelu by tanh',
    (b, x) => activation(b, 'y', x, 'gelu_tanh'),
    [flat.map((v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))))],
  ],
  ['sigmoid', (b, x) => activation(b, 'y', x, 'sigmoid'), [flat.map(sigmoid)]],
  ['tanh', (b, x) => activation(b, 'y', x, 'tanh'), [flat.map(Math.tanh)]],
  ['relu', (b, x) => activation(b, 'y', x, 'relu'), [flat.map((v) => Math.max(0, v))]],
  ['clip', (b, x) => clip(b, 'y', x, 1.5), [flat.map((v) => Math.min(1.5, Math.max(-1.5, v)))]],
  ['softcap', (b, x) => softcap(b, 'y', x, 2), [flat.map((v) => 2 * Math.tanh(v / 2))]],
  [
    'inverse square root',
    (b, x) => inverseSqrt(b, 'y', mul(b, 's', x, x)),
    [flat.map((v) => 1 / Math.abs(v))],
  ],
  [
    'cast to half precision and back rounds',
    (b, x) => cast(b, 'y', cast(b, 'h', scale(b, 's', x, 1 / 3), 'float16'), 'float32'),
    [[0.333251953125, -0.66650390625, 1, 1.3330078125, 0.1666259765625, 0, -0.333251953125, 0.66650390625]],
  ],
  [
    'rms norm',
    (b, x) => rmsNorm(b, 'y', x, floats(b, 'w', [4], [1, 2, 3, 4]), 1e-3),
    [rows.flatMap((row) => row.map((v, i) => (v / rms(row)) * (i + 1)))],
  ],
  [
    'rms norm of a sum, and the sum',
    (b, x) => {
      const { normed, sum } = addRmsNorm(
        b,
        'y',
        x,
        scale(b, 'r', x, 2),
        floats(b, 'w', [4], [1, 1, 1, 1]),
        1e-3,
      );
      return [normed, sum];
    },
    [rows.flatMap((row) => row.map((v) => (3 * v) / rms(row.map((u) => 3 * u)))), flat.map((v) => 3 * v)],
  ],
  [
    'layer norm',
    (b, x) => layerNorm(b, 'y', x, floats(b, 'w', [4], [1, 1, 1, 1]), null, 1e-3),
    [
      rows.flatMap((row) => {
        const mean = row.reduce((sum, v) => sum + v, 0) / 4;
        const deviation = rms(row.map((v) => v - mean));
        return row.map((v) => (v - mean) / deviation);
      }),
    ],
  ],
  ['linear', (b, x) => linear(b, 'y', x, floats(b, 'w', [3, 4], weight.flat())), [product]],
  [
    'linear with a bias',
    (b, x) => linear(b, 'y', x, floats(b, 'w', [3, 4], weight.flat()), floats(b, 'b', [3], [10, 20, 30])),
    [product.map((v, i) => v + 10 * ((i % 3) + 1))],
  ],
  ['sums of blocks', (b, x) => blockSums(b, 'y', x, 2), [[-1, 7, 0.5, 1]]],
  [
    'gather looks rows up',
    (b, x) => gather(b, 'y', x, b.constant('i', 'int32', [3], Int32Array.of(1, 0, 1))),
    [[...rows[1]!, ...rows[0]!, ...rows[1]!]],
  ],
  ['slice takes columns', (b, x) => slice(b, 'y', x, 1, 3), [[-2, 3, 0, -1]]],
  [
    'split cuts columns',
    (b, x) => split(b, 'y', x, [1, 3]),
    [
      [1, 0.5],
      [-2, 3, 4, 0, -1, 2],
    ],
  ],
  ['reshape keeps the order', (b, x) => reshape(b, 'y', x, ['pairs', 2]), [flat]],
  [
    'concat joins columns',
    (b, x) => concat(b, 'y', [x, slice(b, 's', x, 0, 1)]),
    [[1, -2, 3, 4, 1, 0.5, 0, -1, 2, 0.5]],
  ],
  [
    'columns in another order, with zeros',
    (b, x) => selectColumns(b, 'y', x, [3, -1, 0]),
    [[4, 0, 1, 2, 0, 0.5]],
  ],
];

for (const [sentence, build, expected] of table) {
  test(sentence, () => {
    const outputs = run(rows, build);
    assert.equal(outputs.length, expected.length);
    outputs.forEach((values, index) => {
      assert.equal(values.length, expected[index]!.length);
      values.forEach((value, at) => {
        const wanted = expected[index]![at]!;
        const close = value === wanted || Math.abs(value - wanted) < 2e-5 * Math.max(1, Math.abs(wanted));
        assert.ok(close, `element ${at} of output ${index}: ${value}, ${wanted} expected`);
      });
    });
  });
}

for (const [bits, zero] of [
  [4, null],
  [4, 3],
  [8, null],
  [8, 100],
] as const) {
  test(`a weight in ${bits} bits with ${zero === null ? 'the usual' : 'its own'} zero point`, () => {
    const [outputs, inputs, blockSize] = [5, 64, 32];
    const blocks = inputs / blockSize;
    const at = (n: number, k: number): number => (n * 7 + k * 5) % 2 ** bits;
    const scaleOf = (n: number, block: number): number => 0.01 * (n + 1) + 0.001 * block;
    const x = [Array.from({ length: inputs }, (_, k) => Math.cos(k))];
    const [values] = run(x, (builder, input) => {
      const packed = new Uint8Array((outputs * inputs * bits) / 8);
      for (let n = 0; n < outputs; n++) {
        for (let k = 0; k < inputs; k++) {
          const index = n * inputs + k;
          if (bits === 8) packed[index] = at(n, k);
          else packed[index >> 1]! |= at(n, k) << (k % 2 === 0 ? 0 : 4);
        }
      }
      const scales = Array.from({ length: outputs * blocks }, (_, i) =>
        scaleOf(Math.floor(i / blocks), i % blocks),
      );
      const zeroBytes = bits === 8 ? blocks : blocks / 2;
      const zeros =
        zero === null
          ? null
          : builder.constant(
              'z',
              'uint8',
              [outputs, zeroBytes],
              new Uint8Array(outputs * zeroBytes).fill(bits === 8 ? zero : zero * 17),
            );
      return quantizedLinear(
        builder,
        'y',
        input,
        {
          packed: builder.constant('p', 'uint8', [outputs, blocks, (blockSize * bits) / 8], packed),
          scales: floats(builder, 's', [outputs, blocks], scales),
          zeros,
        },
        floats(builder, 'b', [outputs], [1, 2, 3, 4, 5]),
        { outputs, inputs, bits, blockSize, accuracyLevel: 0 },
      );
    });
    for (let n = 0; n < outputs; n++) {
      let wanted = n + 1;
      for (let k = 0; k < inputs; k++) {
        wanted += x[0]![k]! * (at(n, k) - (zero ?? 2 ** (bits - 1))) * scaleOf(n, Math.floor(k / blockSize));
      }
      assert.ok(Math.abs(values![n]! - wanted) < 1e-3, `${values![n]}, ${wanted} expected`);
    }
  });
}

const mistakes: readonly (readonly [string, Build])[] = [
  ['a weight of the wrong width', (b, x) => linear(b, 'y', x, floats(b, 'w', [3, 5], Array(15).fill(0)))],
  ['shapes that do not broadcast', (b, x) => add(b, 'y', x, floats(b, 'v', [3], [1, 2, 3]))],
  ['columns that are not there', (b, x) => slice(b, 'y', x, 2, 5)],
  ['pieces that do not fill the columns', (b, x) => split(b, 'y', x, [1, 2])],
  ['blocks that do not divide the columns', (b, x) => blockSums(b, 'y', x, 3)],
];

for (const [sentence, build] of mistakes) {
  test(`${sentence}: found where the node is made`, () => {
    assert.throws(() => run(rows, build), { name: 'AssertionError' });
  });
}

test('a weight that is asked for twice is one', () => {
  const builder = new GraphBuilder('twice');
  const source = { read: () => new Uint8Array(16) };
  const first = builder.initializer('w', 'float32', [4], source);
  assert.equal(builder.initializer('w', 'float32', [4], source), first);
  assert.throws(() => builder.initializer('w', 'float32', [2, 2], source), /declared twice/);
});

test('names that repeat are made unique, so that layers may be built by one function', () => {
  const builder = new GraphBuilder('names');
  const x = builder.input('x', 'float32', ['rows', 4]);
  const names = [1, 2, 3].map(() => scale(builder, 'same', x, 2).name);
  assert.equal(new Set(names).size, 3);
});
