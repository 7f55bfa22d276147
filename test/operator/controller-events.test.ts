/** Events: told once, counted, combined, bounded. On the in-memory API server; controller-conformance.test.ts asks the real one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type EventDetails, EventRecorder } from '../../operator/controller/event-recorder.ts';
import { NotLeaderError } from '../../operator/controller/leader.ts';
import { KubeError, type KubeObject, resources } from '../../operator/kube/client.ts';
import { MemoryKube, type MemoryKubeOptions } from '../support/memory-kube.ts';
import { FakeClock, memoryLog } from './controller-fake-clock.ts';

const { events } = resources;
const failed: EventDetails = { type: 'Warning', reason: 'ApplyFailed', message: 'no' };

function bench(options: MemoryKubeOptions = {}) {
  const clock = new FakeClock();
  const kube = new MemoryKube({ now: () => clock.now(), ...options });
  const { log, lines } = memoryLog();
  const dropped: string[] = [];
  const recorder = new EventRecorder({
    client: kube,
    component: 'sluice-operator',
    instance: 'pod-1',
    clock,
    // Names must differ although the clock stands still.
    random: Math.random,
    log,
    metrics: { dropped: (why) => dropped.push(why) },
  });
  const stored = () =>
    kube.objects(events).map(({ involvedObject, reason, message, count }) => ({
      on: involvedObject.name,
      reason,
      message,
      count,
    }));
  return { clock, kube, recorder, lines, dropped, stored };
}

function service(name: string): KubeObject {
  return {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'InferenceService',
    metadata: { namespace: 'test', name, uid: `uid-${name}`, resourceVersion: '7' },
  };
}

test('the same event is one object with a count and the time of the last one', async () => {
  const { clock, kube, recorder, stored } = bench();
  for (let n = 0; n < 5; n += 1) {
    recorder.record(service('a'), failed);
    await clock.advance(1_000);
  }
  await recorder.flush();
  assert.deepEqual(stored(), [{ on: 'a', reason: 'ApplyFailed', message: 'no', count: 5 }]);
  const [event] = kube.objects(events);
  assert.deepEqual(
    [event?.firstTimestamp, event?.lastTimestamp],
    ['2026-01-01T00:00:00Z', '2026-01-01T00:00:04Z'],
  );
  assert.deepEqual(event?.involvedObject, {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'InferenceService',
    namespace: 'test',
    name: 'a',
    uid: 'uid-a',
    resourceVersion: '7',
  });
});

test('other objects, reasons and messages are other events', async () => {
  const { recorder, stored } = bench();
  recorder.record(service('a'), failed);
  recorder.record(service('b'), failed);
  recorder.record(service('a'), { ...failed, reason: 'Other' });
  recorder.record(service('a'), { ...failed, message: 'yes' });
  recorder.record(service('a'), { ...failed, type: 'Normal' });
  await recorder.flush();
  assert.deepEqual(
    stored().map(({ count }) => count),
    [1, 1, 1, 1, 1],
  );
});

test('an object of the same name but another uid has its own events', async () => {
  const { recorder, stored } = bench();
  recorder.record(service('a'), failed);
  const again = service('a');
  again.metadata.uid = 'another';
  recorder.record(again, failed);
  await recorder.flush();
  assert.equal(stored().length, 2);
});

test('many messages of one reason are combined after the tenth', async () => {
  const { recorder, stored } = bench();
  for (let n = 0; n < 20; n += 1) recorder.record(service('a'), { ...failed, message: `pod ${n}` });
  await recorder.flush();
  const all = stored();
  assert.equal(all.length, 11);
  const combined = all.find(({ message }) => message.startsWith('(combined'));
  assert.deepEqual([combined?.message, combined?.count], ['(combined from similar events): pod 19', 10]);
});

test('one object may have 100 events at once and one a minute then; others are not touched', async () => {
  const { clock, kube, recorder, dropped } = bench();
  for (let n = 0; n < 175; n += 1) recorder.record(service('a'), failed);
  recorder.record(service('b'), failed);
  await recorder.flush();
  assert.deepEqual([kube.writes.length, dropped.length], [101, 75]);
  await clock.advance(60_000);
  recorder.record(service('a'), failed);
  recorder.record(service('a'), failed);
  await recorder.flush();
  assert.deepEqual([kube.writes.length, dropped.length], [102, 76]);
});

test('an event that the server has forgotten is told anew', async () => {
  const { clock, kube, recorder, stored } = bench();
  recorder.record(service('a'), failed);
  await recorder.flush();
  for (const { metadata } of kube.objects(events)) await kube.remove(events, metadata);
  await clock.advance(60_000);
  recorder.record(service('a'), failed);
  await recorder.flush();
  assert.deepEqual(stored(), [{ on: 'a', reason: 'ApplyFailed', message: 'no', count: 1 }]);
});

test('a server that fails is asked again twice, then the event is given up and logged; the next one is written', async () => {
  let down = true;
  const { clock, kube, recorder, dropped, lines, stored } = bench({
    intercept: () => {
      if (down) throw new KubeError(503, 'ServiceUnavailable', 'down');
    },
  });
  recorder.record(service('a'), failed);
  await clock.advance(10_000);
  assert.deepEqual([kube.writes.length, dropped], [3, ['failed']]);
  assert.equal(lines.filter(({ message }) => message === 'event not written').length, 1);
  down = false;
  recorder.record(service('a'), failed);
  await clock.advance(0);
  assert.equal(stored().length, 1);
});

for (const [what, error] of [
  ['a namespace that is being deleted', new KubeError(403, 'Forbidden', 'being terminated')],
  ['a lease that was lost', new NotLeaderError('lost')],
] as const) {
  test(`${what} ends the attempt at once`, async () => {
    const { clock, kube, recorder, dropped } = bench({
      intercept: () => {
        throw error;
      },
    });
    recorder.record(service('a'), failed);
    await clock.advance(60_000);
    assert.deepEqual([kube.writes.length, dropped], [1, ['failed']]);
  });
}

test('recording never waits, and what waits for a server that is down is bounded', async () => {
  const { recorder, dropped } = bench({
    intercept: () => new Promise<void>(() => {}),
  });
  for (let n = 0; n < 1_200; n += 1) recorder.record(service(`s${n}`), failed);
  assert.ok(dropped.length >= 199 && dropped.every((why) => why === 'queue'), `${dropped.length} dropped`);
});
