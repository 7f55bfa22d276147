import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { SluiceError } from '../../../runtime/errors.ts';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { type OnnxModel, toOnnx } from '../../../runtime/graph/onnx.ts';
import { add, mul } from '../../../runtime/graph/ops/elementwise.ts';
import { linear } from '../../../runtime/graph/ops/linear.ts';
import { ortVersion } from '../../../runtime/ort/api-table.ts';
import { addressOf, libraryVersion } from '../../../runtime/ort/library.ts';
import { MappedFile, memoryReader } from '../../../runtime/ort/mapped-file.ts';
import { IoBinding, RunOptions, Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'sluice-ort-'));
after(() => rmSync(folder, { recursive: true }));

/** y = 2 x + b, on any number of rows of 4. */
function doubling(): Uint8Array {
  const builder = new GraphBuilder('doubling');
  const x = builder.input('x', 'float32', ['rows', 4]);
  const bias = builder.constant('bias', 'float32', [4], Float32Array.of(1, 2, 3, 4));
  builder.output('y', add(builder, 'sum', mul(builder, 'twice', x, builder.scalar(2)), bias));
  return toOnnx(builder.build()).bytes;
}

const weights = Float32Array.from({ length: 300 * 4 }, (_, index) => Math.sin(index));

/** y = x W^T with an external W [300, 4]. */
function projection(): OnnxModel {
  const builder = new GraphBuilder('projection');
  const x = builder.input('x', 'float32', ['rows', 4]);
  const weight = builder.initializer('weight', 'float32', [300, 4], {
    read: () => new Uint8Array(weights.slice().buffer),
  });
  builder.output('y', linear(builder, 'product', x, weight));
  return toOnnx(builder.build());
}

function product(x: readonly number[]): number[] {
  return Array.from({ length: 300 }, (_, row) =>
    x.reduce((sum, value, column) => sum + value * weights[row * 4 + column]!, 0),
  );
}

function assertClose(actual: ArrayLike<number>, expected: readonly number[]): void {
  for (const [index, value] of expected.entries()) assert.ok(Math.abs(actual[index]! - value) < 1e-5);
}

test('the library is the release whose function table we know', () => {
  assert.equal(libraryVersion, ortVersion);
});

test('outputs land in the memory given, whatever the shape of the run', () => {
  using session = Session.fromBytes(doubling());
  assert.deepEqual([session.inputNames, session.outputNames], [['x'], ['y']]);
  const runner = session.prepare(['x'], ['y']);
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  for (const rows of [1, 3, 2]) {
    const x = new Float32Array(memory.buffer, 0, rows * 4).fill(rows);
    const y = new Float32Array(memory.buffer, 4096, rows * 4).fill(Number.NaN);
    using input = OrtValue.over(x, 'float32', [rows, 4]);
    using output = OrtValue.over(y, 'float32', [rows, 4]);
    runner.run([input], [output]);
    assert.deepEqual(
      [...y.slice(-4)],
      [1, 2, 3, 4].map((bias) => 2 * rows + bias),
    );
  }
});

test('memory can be given by its address', () => {
  using session = Session.fromBytes(doubling());
  const [x, y] = [new Float32Array(4).fill(5), new Float32Array(4)];
  using input = OrtValue.over(addressOf(x), 'float32', [1, 4]);
  using output = OrtValue.over(addressOf(y), 'float32', [1, 4]);
  session.prepare(['x'], ['y']).run([input], [output]);
  assert.deepEqual([...y], [11, 12, 13, 14]);
});

test('outputs that ORT allocates tell their type and shape', () => {
  using session = Session.fromBytes(doubling());
  using input = OrtValue.over(new Float32Array(8), 'float32', [2, 4]);
  const [output] = session.run({ x: input });
  assert.deepEqual(
    [output!.dtype, output!.shape, [...output!.toFloat32()]],
    ['float32', [2, 4], [1, 2, 3, 4, 1, 2, 3, 4]],
  );
  output!.close();
});

test('a binding runs again and again on what was bound once', () => {
  using session = Session.fromBytes(doubling());
  const x = new Float32Array(4);
  using value = OrtValue.over(x, 'float32', [1, 4]);
  using binding = new IoBinding(session);
  binding.bindInput('x', value);
  binding.bindOutput('y', value);
  binding.run();
  binding.run();
  assert.deepEqual([...x], [3, 6, 9, 12]);
});

test('values of external initializers are freed once they are copied', () => {
  const { bytes, external } = projection();
  const data = weights.slice();
  const value = OrtValue.over(data, 'float32', [300, 4]);
  using session = Session.fromBytes(bytes, { copiedInitializers: new Map([[external[0]!.name, value]]) });
  assert.deepEqual([data.length, value.pointer], [0, 0n]);
  using input = OrtValue.over(Float32Array.of(1, 2, 3, 4), 'float32', [1, 4]);
  assertClose(session.run({ x: input })[0]!.toFloat32(), product([1, 2, 3, 4]));
});

test('external initializers are used where they lie in a mapped file', () => {
  const file = path.join(folder, 'weights');
  writeFileSync(file, Buffer.concat([Buffer.alloc(64), Buffer.from(weights.buffer)]));
  const { bytes, external } = projection();
  using mapped = MappedFile.open(file);
  assert.equal(mapped.bytes, 64 + weights.byteLength);
  const value = OrtValue.over(mapped.pointer + 64n, 'float32', [300, 4]);
  using session = Session.fromBytes(bytes, { sharedInitializers: new Map([[external[0]!.name, value]]) });
  mapped.dropPages();
  using input = OrtValue.over(Float32Array.of(4, 3, 2, 1), 'float32', [1, 4]);
  assertClose(session.run({ x: input })[0]!.toFloat32(), product([4, 3, 2, 1]));
});

test('a file is mapped once for all who open it, and is read where it is not touched', () => {
  const file = path.join(folder, 'mapped-twice');
  const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i % 251);
  writeFileSync(file, bytes);
  const first = MappedFile.open(file);
  const second = MappedFile.open(file);
  assert.equal(second.pointer, first.pointer);
  first.close();
  const part = new Uint8Array(100);
  memoryReader(second.pointer + 5000n)(17, part);
  assert.deepEqual(part, bytes.slice(5017, 5117));
  second.close();
  const own = bytes.slice();
  memoryReader(addressOf(own))(3000, part);
  assert.deepEqual(part, bytes.slice(3000, 3100), 'memory that is no file');
});

test('a file that is not there cannot be mapped', () => {
  assert.throws(
    () => MappedFile.open(path.join(folder, 'absent')),
    (error) =>
      error instanceof SluiceError && error.code === 'checkpoint_invalid' && /absent/.test(error.message),
  );
});

const failures: readonly (readonly [string, () => void, RegExp])[] = [
  ['bytes that are no model', () => Session.fromBytes(Uint8Array.of(1, 2, 3)), /protobuf/i],
  ['a model file that is not there', () => Session.fromFile(path.join(folder, 'none.onnx')), /none\.onnx/],
  ['a model without the initializers that it needs', () => Session.fromBytes(projection().bytes), /weight/],
  [
    'an input of the wrong width',
    () => {
      using session = Session.fromBytes(doubling());
      using input = OrtValue.over(new Float32Array(5), 'float32', [1, 5]);
      session.run({ x: input });
    },
    /dimension|shape/i,
  ],
  [
    'an input of an unknown name',
    () => {
      using session = Session.fromBytes(doubling());
      using input = OrtValue.over(new Float32Array(4), 'float32', [1, 4]);
      session.run({ z: input });
    },
    /z/,
  ],
  [
    'a run that was told to end',
    () => {
      using session = Session.fromBytes(doubling());
      using input = OrtValue.over(new Float32Array(4), 'float32', [1, 4]);
      using options = new RunOptions();
      options.terminate();
      session.prepare(['x'], ['y']).runAllocating([input], options);
    },
    /terminate/i,
  ],
];

for (const [sentence, action, message] of failures) {
  test(`${sentence} gives ORT's message as an error of ours`, () => {
    assert.throws(
      action,
      (error) =>
        error instanceof SluiceError && error.code === 'engine_failed' && message.test(error.message),
    );
  });
}

test('run options can be used again after a termination', () => {
  using session = Session.fromBytes(doubling());
  using input = OrtValue.over(new Float32Array(4), 'float32', [1, 4]);
  using options = new RunOptions();
  const runner = session.prepare(['x'], ['y']);
  options.terminate();
  assert.throws(() => runner.runAllocating([input], options));
  options.clearTerminate();
  assert.deepEqual([...runner.runAllocating([input], options)[0]!.toFloat32()], [1, 2, 3, 4]);
});

test('profiling leaves a trace of the nodes that ran', () => {
  using session = Session.fromBytes(doubling(), { profilePrefix: path.join(folder, 'trace') });
  using input = OrtValue.over(new Float32Array(4), 'float32', [1, 4]);
  session.run({ x: input });
  const events = JSON.parse(readFileSync(session.endProfiling(), 'utf8')) as { name: string }[];
  assert.ok(events.some(({ name }) => name.includes('Add')));
});

test('threads run their own sessions at the same time', async () => {
  const worker = new URL(import.meta.resolve('./session-worker.ts'));
  const sums = await Promise.all(
    [1, 2, 3, 4].map(
      (factor) =>
        new Promise((resolve, reject) => {
          const thread = new Worker(worker, { workerData: { model: doubling(), factor } });
          thread.once('message', resolve);
          thread.once('error', reject);
        }),
    ),
  );
  assert.deepEqual(
    sums,
    [1, 2, 3, 4].map((factor) => 2 * factor + 1 + 1000 * factor),
  );
});
