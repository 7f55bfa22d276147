import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockProducts, leastWideRows } from '../../../runtime/engine/kernels/block-product.ts';
import { TableRows } from '../../../runtime/engine/kernels/table-rows.ts';
import { wideFormOf } from '../../../runtime/engine/kernels/x64/group-expansion.ts';
import {
  availableInstructionSets,
  chooseInstructionSet,
} from '../../../runtime/engine/kernels/x64/processor.ts';
import { addressOf } from '../../../runtime/ort/library.ts';
import { functionAt } from '../../../runtime/ort/native-code.ts';
import { rowWords } from '../../../runtime/ort/row-op.ts';
import {
  type FactorType,
  type GroupForm,
  groupBytesOf,
  groupsOf,
  packGroups,
  unpackGroups,
} from '../../../runtime/weights/column-groups.ts';
import { bfloat16ToFloat32, float16ToFloat32 } from '../../../runtime/weights/half.ts';
import { dequantize } from '../../../runtime/weights/quantized.ts';

interface Case {
  readonly bits: 4 | 8;
  readonly blockSize: number;
  readonly inputs: number;
  readonly outputs: readonly number[];
  readonly rows: number;
  readonly scales: FactorType;
  readonly minima: FactorType | 'none';
  readonly zeros: boolean;
  readonly twice: boolean;
  readonly seed: number;
}

const cases = fc.record({
  bits: fc.constantFrom(4 as const, 8 as const),
  blockSize: fc.constantFrom(16, 32, 64, 128),
  inputs: fc.integer({ min: 1, max: 300 }),
  outputs: fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 3 }),
  rows: fc.oneof(fc.integer({ min: 1, max: 13 }), fc.integer({ min: 14, max: 60 })),
  scales: fc.constantFrom<FactorType>('float16', 'float32'),
  minima: fc.constantFrom<FactorType | 'none'>('none', 'float16', 'float32'),
  zeros: fc.boolean(),
  twice: fc.boolean(),
  seed: fc.integer(),
});

/** Mulberry32: numbers in [0, 1). */
function random(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

interface Matrix {
  readonly form: GroupForm;
  /** Of all parts. */
  readonly groups: Uint8Array;
  /** [outputs, blocks * blockSize] of each part. */
  readonly dense: readonly Float32Array[];
  /** The same with the least and the largest that each weight's block can hold. */
  readonly extremes: readonly (readonly [Float32Array, Float32Array])[];
}

function matrixOf(each: Case, next: () => number): Matrix {
  const { bits, blockSize, inputs } = each;
  const blocks = Math.ceil(inputs / blockSize);
  const stored = blocks * blockSize;
  const middle = 2 ** (bits - 1);
  const minimaType = each.zeros ? 'float32' : each.minima;
  const form: GroupForm = {
    bits,
    blockSize,
    blocks: each.twice ? 2 * blocks : blocks,
    scales: each.scales,
    minima: minimaType,
    twice: each.twice,
  };
  const parts = each.outputs.map((outputs) => {
    const round = each.scales === 'float16' ? Math.f16round : Math.fround;
    const scales = Float32Array.from({ length: outputs * blocks }, () => round((next() + 0.5) / 64));
    const minima =
      each.minima === 'none'
        ? undefined
        : scales.map(
            (scale) => Math.f16round(next() - 0.5) + (each.minima === 'float16' ? middle * scale : 0),
          );
    const bytes = {
      packed: Uint8Array.from({ length: (outputs * stored * bits) / 8 }, () => next() * 256),
      scales,
      ...(minima === undefined ? {} : { minima }),
      ...(each.zeros
        ? { zeros: Uint8Array.from({ length: outputs * Math.ceil((blocks * bits) / 8) }, () => next() * 256) }
        : {}),
    };
    const all = (packed: Uint8Array): Float32Array =>
      dequantize({ ...bytes, packed }, { outputs, inputs: stored, bits, blockSize });
    return {
      packed: packGroups(form, bytes, outputs),
      dense: all(bytes.packed),
      extremes: [all(bytes.packed.map(() => 0)), all(bytes.packed.map(() => 255))] as const,
    };
  });
  const groups = new Uint8Array(parts.reduce((sum, { packed }) => sum + packed.length, 0));
  let end = 0;
  for (const { packed } of parts) {
    groups.set(packed, end);
    end += packed.length;
  }
  return {
    form,
    groups,
    dense: parts.map(({ dense }) => dense),
    extremes: parts.map(({ extremes }) => extremes),
  };
}

/** Rows whose blocks are whole steps of 1/127 of their largest value, which is there: quantizing them loses nothing. */
function exactRows(
  { inputs, blockSize, rows }: Pick<Case, 'inputs' | 'blockSize' | 'rows'>,
  next: () => number,
): Float32Array {
  return Float32Array.from({ length: rows * inputs }, (_, i) => {
    const place = (i % inputs) % blockSize;
    return place === 0 ? 127 / 64 : Math.round(next() * 254 - 127) / 64;
  });
}

test('packing in groups loses nothing, for random sizes, zero points and minima', () => {
  fc.assert(
    fc.property(cases, (each) => {
      const { form, groups, dense } = matrixOf(each, random(each.seed));
      let start = 0;
      for (const [part, outputs] of each.outputs.entries()) {
        const bytes = groups.slice(start, start + groupsOf(outputs) * groupBytesOf(form));
        start += bytes.length;
        const unpacked = unpackGroups(form, bytes, outputs);
        const stored = dense[part]!.length / outputs;
        const width = unpacked.length / outputs;
        for (const [i, value] of unpacked.entries()) {
          const expected = dense[part]![Math.floor(i / width) * stored + ((i % width) % stored)]!;
          assert.ok(Math.abs(value - expected) <= 4e-6, `${value} is not ${expected}`);
        }
      }
    }),
    { numRuns: 200 },
  );
});

test('rows of a table in groups are those of the dense matrix, for random sizes and forms', () => {
  fc.assert(
    fc.property(cases, (each) => {
      const next = random(each.seed);
      const { form, groups, dense } = matrixOf({ ...each, outputs: [each.outputs[0]!] }, next);
      const [outputs, { inputs }] = [each.outputs[0]!, each];
      const ids = Int32Array.from({ length: each.rows }, () => Math.floor(next() * outputs));
      const out = new Float32Array(ids.length * inputs + 1).fill(77);
      const table = new TableRows({ form, outputs, inputs });
      table.read(addressOf(ids), ids.length, addressOf(groups), addressOf(out));
      assert.equal(out.at(-1), 77, 'what lies behind the rows');
      const stored = dense[0]!.length / outputs;
      for (const [i, id] of ids.entries()) {
        for (let k = 0; k < inputs; k++) {
          const [actual, expected] = [out[i * inputs + k]!, dense[0]![id * stored + k]!];
          assert.ok(
            Math.abs(actual - expected) <= 4e-6,
            `row ${id}, input ${k}: ${actual} is not ${expected}`,
          );
        }
      }
    }),
    { numRuns: 100 },
  );
  const form: GroupForm = { bits: 4, blockSize: 16, blocks: 1, scales: 'float32', minima: 'none' };
  const bytes = addressOf(new Uint8Array(1024));
  const table = new TableRows({ form, outputs: 5, inputs: 16 });
  for (const id of [-1, 5])
    assert.throws(() => table.read(addressOf(Int32Array.of(id)), 1, bytes, bytes), /row -?\d of 5/);
});

test('rows of a plain table are its values, whatever type stores them', () => {
  const inputs = 24;
  const bits = Uint16Array.from({ length: 9 * inputs }, (_, i) => 0x3000 + ((i * 91) % 0x1000));
  const stored = [
    { dtype: 'float16', bytes: bits, values: float16ToFloat32(bits) },
    { dtype: 'bfloat16', bytes: bits, values: bfloat16ToFloat32(bits) },
    { dtype: 'float32', bytes: float16ToFloat32(bits), values: float16ToFloat32(bits) },
  ] as const;
  const ids = Int32Array.of(8, 0, 3, 3);
  for (const { dtype, bytes, values } of stored) {
    const out = new Float32Array(ids.length * inputs);
    const table = new TableRows({ form: { dtype }, outputs: 9, inputs });
    table.read(addressOf(ids), ids.length, addressOf(bytes), addressOf(out));
    const expected = [...ids].flatMap((id) => [...values.subarray(id * inputs, (id + 1) * inputs)]);
    assert.deepEqual([...out], expected, dtype);
  }
});

for (const instructions of availableInstructionSets()) {
  /** Rows of each part's products; what lies behind them is checked to be left alone. */
  const multiply = (
    each: Case,
    { form, groups }: Matrix,
    x: Float32Array,
    rows = each.rows,
  ): Float32Array[] => {
    const { inputs, outputs } = each;
    const weights = new Uint8Array(new SharedArrayBuffer(groups.length));
    weights.set(groups);
    const out = outputs.map((count) => new Float32Array(rows * count + 1).fill(77));
    const products = new BlockProducts(instructions);
    const kernel = products.kernel({ inputs, form, outputs });
    const words = BigUint64Array.from([
      ...new Array<bigint>(rowWords.places).fill(BigInt(rows)),
      ...[x, weights, ...out].map(addressOf),
    ]);
    functionAt(kernel, 1)(words);
    for (const each of out) assert.equal(each.at(-1), 77, 'what lies behind the rows');
    return out.map((each) => each.subarray(0, -1));
  };

  /** Whether products with so many rows are those of expanded groups. */
  const isWide = ({ rows }: Case, { form }: Matrix): boolean =>
    instructions === 'avx512' && rows >= leastWideRows && wideFormOf(form) !== undefined;

  test(`${instructions}: products equal those of the dense matrix, for random sizes and forms`, () => {
    fc.assert(
      fc.property(cases, (any) => {
        const next = random(any.seed);
        const matrix = matrixOf(any, next);
        const each = isWide(any, matrix) ? { ...any, rows: any.rows % leastWideRows || 1 } : any;
        const x = exactRows(each, next);
        const stored = Math.ceil(each.inputs / each.blockSize) * each.blockSize;
        for (const [part, product] of multiply(each, matrix, x).entries()) {
          const outputs = each.outputs[part]!;
          for (const [i, actual] of product.entries()) {
            const [row, output] = [Math.floor(i / outputs), i % outputs];
            let [expected, size] = [0, 0];
            for (let k = 0; k < each.inputs; k++) {
              const term = x[row * each.inputs + k]! * matrix.dense[part]![output * stored + k]!;
              expected += term;
              size += Math.abs(term);
            }
            assert.ok(
              Math.abs(actual - expected) <= 2e-6 * size + 1e-6,
              `row ${row}, output ${output} of part ${part}: ${actual}, expected ${expected}`,
            );
          }
        }
      }),
      { numRuns: 200 },
    );
  });

  // Only there groups are expanded.
  if (instructions === 'avx512') {
    test(`${instructions}: many rows are multiplied with weights rounded to 1/127 of the largest in a wide block`, () => {
      const wideCases = fc
        .tuple(cases, fc.integer({ min: 1, max: 800 }), fc.integer({ min: leastWideRows, max: 90 }))
        .map(([each, inputs, rows]): Case => ({ ...each, twice: false, inputs, rows }));
      fc.assert(
        fc.property(wideCases, (each) => {
          const { inputs, outputs } = each;
          const next = random(each.seed);
          const matrix = matrixOf(each, next);
          const wide = wideFormOf(matrix.form);
          fc.pre(wide !== undefined);
          const { blockSize } = wide!;
          const stored = wide!.blocks * blockSize;
          // Each weight alone: the products of rows with one input each.
          const ones = new Float32Array(Math.max(inputs, leastWideRows) * inputs);
          for (let input = 0; input < inputs; input++) ones[input * inputs + input] = 1;
          const weights = multiply(each, matrix, ones, ones.length / inputs);
          const x = exactRows({ inputs, blockSize, rows: each.rows }, next);
          for (const [part, product] of multiply(each, matrix, x).entries()) {
            const weight = (output: number, input: number): number =>
              weights[part]![input * outputs[part]! + output]!;
            for (let output = 0; output < outputs[part]!; output++) {
              for (let start = 0; start < stored; start += blockSize) {
                const from = output * stored + start;
                // Of 4 bits those that there can be, of 8 those that there are.
                const values = each.bits === 4 ? matrix.extremes[part]! : [matrix.dense[part]!];
                const ends = values.map((all) => all.subarray(from, from + blockSize));
                const largest = ends.reduce(
                  (most, values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), most),
                  0,
                );
                for (let input = start; input < Math.min(inputs, start + blockSize); input++) {
                  const off = Math.abs(weight(output, input) - matrix.dense[part]![output * stored + input]!);
                  const bound = each.bits === 4 ? 0.53 : 0.77;
                  assert.ok(off <= (bound * largest) / 127, `weight ${output}, ${input}: off by ${off}`);
                }
              }
              for (let row = 0; row < each.rows; row++) {
                let [expected, size] = [0, 0];
                for (let input = 0; input < inputs; input++) {
                  const term = x[row * inputs + input]! * weight(output, input);
                  expected += term;
                  size += Math.abs(term);
                }
                const actual = product[row * outputs[part]! + output]!;
                assert.ok(
                  Math.abs(actual - expected) <= 2e-6 * size + 1e-6,
                  `row ${row}, output ${output} of part ${part}: ${actual}, expected ${expected}`,
                );
              }
            }
          }
        }),
        { numRuns: 100 },
      );
    });
  }

  test(`${instructions}: rows that are multiplied twice are off by a hundredth of what they are once`, () => {
    const off = (twice: boolean): number => {
      const each: Case = {
        bits: 4,
        blockSize: 32,
        inputs: 75,
        outputs: [30],
        rows: 9,
        scales: 'float16',
        minima: 'float32',
        zeros: true,
        twice,
        seed: 1,
      };
      const next = random(5);
      const matrix = matrixOf(each, next);
      const x = Float32Array.from({ length: each.rows * each.inputs }, () => next() - 0.5);
      const [product] = multiply(each, matrix, x);
      const stored = 96;
      return product!.reduce((sum, actual, i) => {
        let expected = 0;
        for (let k = 0; k < each.inputs; k++)
          expected += x[Math.floor(i / 30) * each.inputs + k]! * matrix.dense[0]![(i % 30) * stored + k]!;
        return sum + Math.abs(actual - expected);
      }, 0);
    };
    const [once, twice] = [off(false), off(true)];
    assert.ok(twice > 0 && twice < once / 100, `${once} once, ${twice} twice`);
  });

  test(`${instructions}: a row has the same bits among few and among others, and zeros give zeros`, () => {
    const each: Case = {
      bits: 4,
      blockSize: 32,
      inputs: 96,
      outputs: [40],
      rows: 29,
      scales: 'float32',
      minima: 'float32',
      zeros: false,
      twice: false,
      seed: 1,
    };
    const next = random(3);
    const matrix = matrixOf(each, next);
    // Few rows and many may be multiplied in two ways.
    for (const [few, many] of [
      [1, leastWideRows - 1],
      [leastWideRows, 6200],
    ] as const) {
      const x = Float32Array.from({ length: many * each.inputs }, () => next() - 0.5);
      x.fill(0, 5 * each.inputs, 6 * each.inputs);
      const [together] = multiply(each, matrix, x, many);
      for (let row = 0; row + few <= many; row += few) {
        const [some] = multiply(each, matrix, x.slice(row * each.inputs, (row + few) * each.inputs), few);
        assert.deepEqual(some, together!.slice(row * 40, (row + few) * 40), `row ${row}`);
      }
      assert.ok(together!.slice(5 * 40, 6 * 40).every((value) => value === 0));
    }
  });
}

test('a set of instructions that the processor lacks is refused by name', () => {
  const sets = availableInstructionSets();
  assert.equal(chooseInstructionSet('portable'), undefined);
  assert.equal(chooseInstructionSet('auto'), sets[0]);
  for (const set of ['avx512', 'avx2'] as const) {
    if (sets.includes(set)) assert.equal(chooseInstructionSet(set), set);
    else
      assert.throws(() => chooseInstructionSet(set), {
        message: new RegExp(`--cpu-kernels ${set}.*portable`),
      });
  }
});
