import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { type AttributeValue, tensorType, type Value } from '../../../runtime/graph/graph.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import { custom } from '../../../runtime/graph/ops/custom.ts';
import { CustomOpDomain, defineCustomOp, type KernelContext } from '../../../runtime/ort/custom-op.ts';
import { copyMemory, type Pointer } from '../../../runtime/ort/library.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';

function read(from: Pointer, length: number): Float32Array {
  const values = new Float32Array(length);
  copyMemory(values, from, length * 4);
  return values;
}

function write(to: Pointer, values: Float32Array): void {
  copyMemory(to, values, values.byteLength);
}

function model(
  type: string,
  inputs: number,
  absent: readonly number[] = [],
  attributes: Record<string, AttributeValue> = {},
): Uint8Array {
  const builder = new GraphBuilder('custom');
  const values: (Value | null)[] = Array.from({ length: inputs }, (_, index) =>
    absent.includes(index) ? null : builder.input(`x${index}`, 'float32', ['n']),
  );
  const [y] = custom(builder, 'out', type, values, [tensorType('float32', ['n'])], attributes);
  builder.output('y', y!);
  return toOnnx(builder.build()).bytes;
}

const float = { dtype: 'float32' } as const;

test('a kernel has its attributes, reads its inputs and makes its output', () => {
  const seen: unknown[] = [];
  const op = defineCustomOp({
    name: 'Scale',
    inputs: [float],
    outputs: [float],
    attributes: { layer: 'int', factor: 'float', label: 'string' },
    kernel({ layer, factor, label }) {
      seen.push([layer, factor, label]);
      return (context) => {
        const [length] = context.inputShape(0);
        write(
          context.output(0, [length!]),
          read(context.input(0), length!).map((value) => value * factor),
        );
      };
    },
  });
  using domain = new CustomOpDomain('sluice', [op]);
  using session = Session.fromBytes(
    model('Scale', 1, [], { layer: -7, factor: { float: 2.5 }, label: 'höher' }),
    { customOps: [domain] },
  );
  using x = OrtValue.over(Float32Array.of(1, 2, 3), 'float32', [3]);
  assert.deepEqual([...session.run({ x0: x })[0]!.toFloat32()], [2.5, 5, 7.5]);
  assert.deepEqual(seen, [[-7, 2.5, 'höher']]);
});

test('an optional input may be absent', () => {
  const op = defineCustomOp({
    name: 'Maybe',
    inputs: [float, { ...float, optional: true }, float],
    outputs: [float],
    attributes: {},
    kernel: () => (context) => {
      assert.equal(context.inputCount(), 3);
      const value = read(context.input(0), 1)[0]! + (context.input(1) === 0n ? 100 : 0);
      write(context.output(0, [1]), Float32Array.of(value + read(context.input(2), 1)[0]!));
    },
  });
  using domain = new CustomOpDomain('sluice', [op]);
  using x = OrtValue.over(Float32Array.of(1), 'float32', [1]);
  using without = Session.fromBytes(model('Maybe', 3, [1]), { customOps: [domain] });
  assert.equal(without.run({ x0: x, x2: x })[0]!.toFloat32()[0], 102);
  using withAll = Session.fromBytes(model('Maybe', 3), { customOps: [domain] });
  assert.equal(withAll.run({ x0: x, x1: x, x2: x })[0]!.toFloat32()[0], 2);
});

test('a variadic input takes any number of tensors', () => {
  const op = defineCustomOp({
    name: 'Sum',
    inputs: [{ ...float, variadic: true }],
    outputs: [float],
    attributes: {},
    kernel: () => (context: KernelContext) => {
      let sum = 0;
      for (let index = 0; index < context.inputCount(); index++) sum += read(context.input(index), 1)[0]!;
      write(context.output(0, [1]), Float32Array.of(sum));
    },
  });
  using domain = new CustomOpDomain('sluice', [op]);
  for (const count of [1, 2, 5]) {
    using session = Session.fromBytes(model('Sum', count), { customOps: [domain] });
    const inputs = Object.fromEntries(
      Array.from({ length: count }, (_, index) => [
        `x${index}`,
        OrtValue.over(Float32Array.of(10 ** index), 'float32', [1]),
      ]),
    );
    assert.equal(session.run(inputs)[0]!.toFloat32()[0], Number('1'.repeat(count)));
  }
});

test('an error thrown in a kernel is the error of the run, and the next run works', () => {
  let broken = true;
  const op = defineCustomOp({
    name: 'Fragile',
    inputs: [float],
    outputs: [float],
    attributes: {},
    kernel: () => (context) => {
      if (broken) throw new Error('the kernel met a block that is not there');
      copyMemory(context.output(0, [1]), context.input(0), 4);
    },
  });
  using domain = new CustomOpDomain('sluice', [op]);
  using session = Session.fromBytes(model('Fragile', 1), { customOps: [domain] });
  using x = OrtValue.over(Float32Array.of(3), 'float32', [1]);
  assert.throws(
    () => session.run({ x0: x }),
    (error) =>
      error instanceof SluiceError &&
      error.code === 'engine_failed' &&
      error.message.includes('the kernel met a block that is not there'),
  );
  broken = false;
  assert.equal(session.run({ x0: x })[0]!.toFloat32()[0], 3);
});

test('an error thrown while kernels are made is the error of the session', () => {
  const op = defineCustomOp({
    name: 'Unmakeable',
    inputs: [float],
    outputs: [float],
    attributes: {},
    kernel(): (context: KernelContext) => void {
      throw new Error('no such layer');
    },
  });
  using domain = new CustomOpDomain('sluice', [op]);
  assert.throws(() => Session.fromBytes(model('Unmakeable', 1), { customOps: [domain] }), /no such layer/);
});

test('a kernel may run another session', () => {
  const inner = (() => {
    const double = defineCustomOp({
      name: 'Double',
      inputs: [float],
      outputs: [float],
      attributes: {},
      kernel: () => (context) => {
        write(
          context.output(0, [1]),
          read(context.input(0), 1).map((value) => 2 * value),
        );
      },
    });
    const domain = new CustomOpDomain('sluice', [double]);
    return Session.fromBytes(model('Double', 1), { customOps: [domain] });
  })();
  const outer = defineCustomOp({
    name: 'Nested',
    inputs: [float],
    outputs: [float],
    attributes: {},
    kernel: () => (context) => {
      const x = OrtValue.over(context.input(0), 'float32', [1]);
      write(context.output(0, [1]), inner.run({ x0: x })[0]!.toFloat32());
    },
  });
  using domain = new CustomOpDomain('sluice', [outer]);
  using session = Session.fromBytes(model('Nested', 1), { customOps: [domain] });
  using x = OrtValue.over(Float32Array.of(21), 'float32', [1]);
  assert.equal(session.run({ x0: x })[0]!.toFloat32()[0], 42);
  inner.close();
});

test('opening and closing sessions leaves no memory behind', () => {
  const op = defineCustomOp({
    name: 'Pass',
    inputs: [float],
    outputs: [float],
    attributes: {},
    kernel: () => (context) => {
      copyMemory(context.output(0, [1]), context.input(0), 4);
    },
  });
  const bytes = model('Pass', 1);
  const cycle = (): void => {
    using domain = new CustomOpDomain('sluice', [op]);
    using session = Session.fromBytes(bytes, { customOps: [domain] });
    using x = OrtValue.over(Float32Array.of(1), 'float32', [1]);
    session.run({ x0: x })[0]!.close();
  };
  for (let count = 0; count < 100; count++) cycle();
  const before = process.memoryUsage().rss;
  for (let count = 0; count < 300; count++) cycle();
  const grown = process.memoryUsage().rss - before;
  assert.ok(grown < 64 * 2 ** 20, `${grown} bytes after 300 sessions`);
});
