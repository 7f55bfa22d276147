/**
 * The domain of the engine's custom ops. ONNX Runtime notes the names of domains in a map of the whole process, without a
 * lock: two threads that make their first sessions at the same moment both find the name missing, both add it, and the
 * process ends. So it is made known before there are several threads.
 */
import { GraphBuilder } from '../graph/builder.ts';
import { toOnnx } from '../graph/onnx.ts';
import { CustomOpDomain, defineCustomOp } from '../ort/custom-op.ts';
import { Session } from '../ort/session.ts';

export const opDomain = 'sluice';

/** To be called by one thread, before others make sessions with ops of the domain. */
export function announceOpDomain(): void {
  const builder = new GraphBuilder('nothing');
  builder.output('y', builder.input('x', 'float32', ['rows', 1]));
  // A domain without ops would not be noted.
  const op = defineCustomOp({
    name: 'Nothing',
    inputs: [{ dtype: 'float32' }],
    outputs: [{ dtype: 'float32' }],
    attributes: {},
    kernel: () => () => {},
  });
  using domain = new CustomOpDomain(opDomain, [op]);
  using _session = Session.fromBytes(toOnnx(builder.build()).bytes, { customOps: [domain] });
}
