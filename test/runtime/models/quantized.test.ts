/** Quantized projections of every form against dequantised matrices, whole and cut as ranks cut them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import { blockProjections } from '../../../runtime/models/block-weight.ts';
import { quantizedProjection } from '../../../runtime/models/quantized-weight.ts';
import type { Range } from '../../../runtime/models/shard.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';
import type { QuantizedBytes, QuantizedTensor } from '../../../runtime/weights/checkpoint.ts';
import {
  type GroupForm,
  groupBytesOf,
  groupsOf,
  unpackGroups,
} from '../../../runtime/weights/column-groups.ts';
import { dequantize } from '../../../runtime/weights/quantized.ts';

interface Form {
  readonly bits: 4 | 8;
  readonly zeros: boolean;
  readonly minima: boolean;
  readonly permuted: boolean;
  readonly seed: number;
}

const [outputs, inputs, blockSize] = [12, 128, 32];
const blocks = inputs / blockSize;

function makeTensor({ bits, zeros, minima, permuted, seed }: Form): QuantizedTensor {
  let state = seed + 1;
  const random = (): number => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return state / 2 ** 31;
  };
  const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, () => Math.floor(random() * 256));
  const data: QuantizedBytes = {
    packed: bytes((outputs * inputs * bits) / 8),
    scales: Float32Array.from({ length: outputs * blocks }, () => 0.01 + 0.02 * random()),
    ...(zeros ? { zeros: bytes((outputs * blocks * bits) / 8) } : {}),
    ...(minima ? { minima: Float32Array.from({ length: outputs * blocks }, () => random() - 0.5) } : {}),
    ...(permuted
      ? { permutation: Int32Array.from({ length: inputs }, (_, index) => (index * 37 + seed) % inputs) }
      : {}),
  };
  const { permutation } = data;
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits,
    blockSize,
    layout: () => ({ zeros, minima, ...(permutation === undefined ? {} : { permutation }) }),
    read: () => structuredClone(data),
  };
}

const x = Array.from({ length: inputs }, (_, index) => Math.sin(index * index));

function project(tensor: QuantizedTensor, rows: Range, columns: Range): number[] {
  const builder = new GraphBuilder('projection');
  const width = columns.end - columns.start;
  const input = builder.input('x', 'float32', ['rows', width]);
  const y = quantizedProjection(builder, 'y', input, {
    tensor,
    weight: 'w',
    rows,
    columns,
    bias: null,
    accuracyLevel: 0,
  });
  builder.output('out', y);
  const { bytes, external } = toOnnx(builder.build());
  using session = Session.fromBytes(bytes, {
    copiedInitializers: new Map(
      external.map(({ name, type, source }) => [name, OrtValue.over(source.read(), type.dtype, type.shape)]),
    ),
  });
  const part = Float32Array.from(x.slice(columns.start, columns.end));
  using value = OrtValue.over(part, 'float32', [1, width]);
  using out = session.run({ x: value })[0]!;
  return [...out.toFloat32()];
}

test('parts summed over column cuts and joined over row cuts equal the dequantised product', () => {
  const form = fc.record({
    bits: fc.constantFrom<4 | 8>(4, 8),
    zeros: fc.boolean(),
    minima: fc.boolean(),
    permuted: fc.boolean(),
    seed: fc.nat(1000),
  });
  fc.assert(
    fc.property(form, fc.nat(outputs), fc.nat(inputs / 16), fc.nat(inputs), (facts, row, piece, column) => {
      const tensor = makeTensor(facts);
      const dense = dequantize(tensor.read(), { outputs, inputs, bits: facts.bits, blockSize });
      const expected = Array.from({ length: outputs }, (_, n) =>
        x.reduce((sum, value, k) => sum + value * dense[n * inputs + k]!, 0),
      );
      const at = facts.permuted ? column : piece * 16;
      const ranges = (total: number, middle: number): Range[] =>
        [
          { start: 0, end: middle },
          { start: middle, end: total },
        ].filter(({ start, end }) => end > start);
      const actual = ranges(outputs, row).flatMap((rows) => {
        const parts = ranges(inputs, at).map((columns) => project(tensor, rows, columns));
        return parts[0]!.map((_, index) => parts.reduce((sum, part) => sum + part[index]!, 0));
      });
      assert.equal(actual.length, outputs);
      for (const [n, value] of expected.entries()) {
        assert.ok(Math.abs(actual[n]! - value) < 2e-3, `row ${n}: ${actual[n]}, ${value} expected`);
      }
    }),
    { numRuns: 60 },
  );
});

test('what a rank packs in groups is its rows and columns of the matrices, each column once, permuted or not', () => {
  const forms = fc.record({
    bits: fc.constantFrom<4 | 8>(4, 8),
    zeros: fc.boolean(),
    minima: fc.boolean(),
    permuted: fc.boolean(),
  });
  const rows = fc.tuple(fc.nat(outputs - 1), fc.integer({ min: 1, max: outputs })).map(([start, size]) => ({
    start,
    end: Math.min(outputs, start + size),
  }));
  const cuts = fc.record({
    forms: fc.array(forms, { minLength: 1, maxLength: 3 }),
    rows,
    start: fc.nat(inputs - 1),
    size: fc.integer({ min: 1, max: inputs }),
    seed: fc.nat(1000),
  });
  fc.assert(
    fc.property(cuts, ({ forms, rows, start, size, seed }) => {
      // Where one is not permuted, all are cut between blocks.
      const unit = forms.every(({ permuted }) => permuted) ? 1 : 16;
      const first = Math.floor(start / unit) * unit;
      const columns = { start: first, end: Math.min(inputs, Math.ceil((first + size) / unit) * unit) };
      const width = columns.end - columns.start;
      const builder = new GraphBuilder('groups');
      const input = builder.input('x', 'float32', ['rows', width]);
      const tensors = forms.map((form) => makeTensor({ ...form, seed }));
      blockProjections(
        builder,
        input,
        tensors.map((tensor, i) => {
          const weight = (): string => `w${i}`;
          return { name: `y${i}`, tensor, weight, rows, columns, bias: null };
        }),
      );
      const graph = builder.build();
      let seen = 0;
      for (const { op, inputs: given, attributes } of graph.nodes) {
        if (op.name !== 'custom') continue;
        const source = (name: string): Uint8Array =>
          graph.initializers.find((each) => each.name === name)!.source.read();
        const groups = given[1]!.name;
        const form = JSON.parse(attributes.attributes.form) as GroupForm;
        const ordered = graph.nodes.find(({ outputs }) => outputs[0] === given[0]);
        const stored = form.blocks * form.blockSize;
        // A column beyond the input's is one of zeros.
        const order = ordered
          ? [...new Int32Array(source(ordered.inputs[1]!.name).buffer)]
          : Array.from({ length: width }, (_, column) => column);
        assert.deepEqual(
          order.filter((column) => column < width).sort((left, right) => left - right),
          Array.from({ length: width }, (_, column) => column),
        );
        const height = rows.end - rows.start;
        const partBytes = groupsOf(height) * groupBytesOf(form);
        const bytes = source(groups);
        for (const [part, name] of groups
          .replace(/\.groups.*/, '')
          .split('+')
          .entries()) {
          const index = Number(name.slice(1));
          const { bits } = forms[index]!;
          const dense = dequantize(tensors[index]!.read(), { outputs, inputs, bits, blockSize });
          const actual = unpackGroups(form, bytes.slice(part * partBytes, (part + 1) * partBytes), height);
          for (let row = 0; row < height; row++) {
            for (const [at, column] of order.entries()) {
              if (column >= width) continue;
              const expected = dense[(rows.start + row) * inputs + columns.start + column]!;
              assert.ok(
                Math.abs(actual[row * stored + at]! - expected) <= 4e-6,
                `${name}, ${row}, ${column}`,
              );
            }
          }
          seen++;
        }
      }
      assert.equal(seen, tensors.length, 'every matrix is in one node');
    }),
    { numRuns: 100 },
  );
});
