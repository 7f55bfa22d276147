import assert from 'node:assert/strict';
import { test } from 'node:test';
import { traceContext } from '../../../runtime/serve/trace-context.ts';

const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
const parent = '00f067aa0ba902b7';

test('the trace and its flags are kept, the span is a new one', () => {
  const context = traceContext(`00-${trace}-${parent}-01`);
  assert.equal(context?.traceId, trace);
  assert.match(context!.traceparent, new RegExp(`^00-${trace}-[0-9a-f]{16}-01$`));
  assert.ok(!context!.traceparent.includes(parent));
  assert.notEqual(traceContext(`00-${trace}-${parent}-01`)!.traceparent, context!.traceparent);
});

const headers: [string, string | undefined, boolean][] = [
  ['a later version may say more', `01-${trace}-${parent}-01-more`, true],
  ['version 00 may not', `00-${trace}-${parent}-01-more`, false],
  ['version ff is not allowed', `ff-${trace}-${parent}-01`, false],
  ['a trace of zeros is not allowed', `00-${'0'.repeat(32)}-${parent}-01`, false],
  ['a parent of zeros is not allowed', `00-${trace}-${'0'.repeat(16)}-01`, false],
  ['capitals are not allowed', `00-${trace.toUpperCase()}-${parent}-01`, false],
  ['anything else is passed over', 'hello', false],
  ['no header', undefined, false],
];
for (const [name, header, accepted] of headers) {
  test(name, () => assert.equal(traceContext(header) !== undefined, accepted));
}
