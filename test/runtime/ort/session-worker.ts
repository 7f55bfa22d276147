/** A thread of session.test.ts: runs a session of its own, with a custom op of its own, many times. */
import { parentPort, workerData } from 'node:worker_threads';
import { GraphBuilder } from '../../../runtime/graph/builder.ts';
import { toOnnx } from '../../../runtime/graph/onnx.ts';
import { custom } from '../../../runtime/graph/ops/custom.ts';
import { CustomOpDomain, defineCustomOp } from '../../../runtime/ort/custom-op.ts';
import { copyMemory } from '../../../runtime/ort/library.ts';
import { Session } from '../../../runtime/ort/session.ts';
import { OrtValue } from '../../../runtime/ort/value.ts';

const { model, factor } = workerData as { model: Uint8Array; factor: number };

let calls = 0;
const count = defineCustomOp({
  name: 'Count',
  inputs: [{ dtype: 'float32' }],
  outputs: [{ dtype: 'float32' }],
  attributes: {},
  kernel: () => (context) => {
    calls += factor;
    copyMemory(context.output2d(0, 1, 4), context.input(0), 16);
  },
});

const domain = new CustomOpDomain('sluice', [count]);
const builder = new GraphBuilder('counted');
const x = builder.input('x', 'float32', [1, 4]);
builder.output('y', custom(builder, 'counted', 'Count', [x], [x.type])[0]!);
const counting = Session.fromBytes(toOnnx(builder.build()).bytes, { customOps: [domain] });
const doubling = Session.fromBytes(model);

const values = new Float32Array(4).fill(factor);
const value = OrtValue.over(values, 'float32', [1, 4]);
const out = OrtValue.over(new Float32Array(4), 'float32', [1, 4]);
const runner = counting.prepare(['x'], ['y']);
for (let run = 0; run < 1000; run++) runner.run([value], [out]);
doubling.prepare(['x'], ['y']).run([out], [value]);
counting.close();
doubling.close();
domain.close();
parentPort!.postMessage(values[0]! + calls);
