/**
 * The reflector's promise, on both API servers, while watches break, are forgotten and go silent, and the server is
 * killed: the store becomes what the server has, and the changes told lead there step by step.
 */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { systemClock } from '../../operator/controller/clock.ts';
import { EventRecorder } from '../../operator/controller/event-recorder.ts';
import { Reflector } from '../../operator/controller/reflector.ts';
import { type Change, keyOf } from '../../operator/controller/store.ts';
import { type KubeClient, KubeError, resources } from '../../operator/kube/client.ts';
import { controlPlane } from '../support/control-plane.ts';
import { MemoryKube } from '../support/memory-kube.ts';
import { restartApiServer, wire } from './controller-disturbances.ts';
import { memoryLog } from './controller-fake-clock.ts';

const { configMaps } = resources;

interface Place {
  /** For the test's own writes and reads. */
  readonly writer: KubeClient;
  /** For the reflector. */
  readonly client: KubeClient;
  readonly namespace: string;
  readonly disturbances: Readonly<Record<string, () => void>>;
}

const implementations: Record<string, (t: TestContext) => Promise<Place>> = {
  'the in-memory API server': async () => {
    const kube = new MemoryKube();
    return {
      writer: kube,
      client: kube,
      namespace: 'test',
      disturbances: {
        'ends the watches': () => kube.endWatches(),
        'breaks the watches': () => kube.endWatches(new KubeError(0, 'Unreachable', 'connection reset')),
        'forgets what was': () => {
          kube.endWatches(new KubeError(0, 'Unreachable', 'connection reset'));
          kube.compact();
        },
      },
    };
  },
  'the real API server': async (t) => {
    const plane = await controlPlane(t);
    const { client, reset, hush } = await wire(t, plane);
    return {
      writer: plane.client,
      client,
      namespace: await plane.namespace(t),
      disturbances: { 'breaks the connections': reset, 'goes silent': hush },
    };
  },
};

/** Checks every change against those before it. */
function follow(t: TestContext, { client, namespace }: Pick<Place, 'client' | 'namespace'>) {
  const { log, lines } = memoryLog();
  const reflector = new Reflector({
    client,
    type: configMaps,
    namespace,
    clock: systemClock,
    random: Math.random,
    log,
    pageSize: 3,
    watchTimeoutSeconds: 2,
    idleTimeoutMs: 1_500,
    backoff: { baseMs: 20, maxMs: 200 },
  });
  const told = new Map<string, string>();
  const wrong: string[] = [];
  reflector.subscribe(({ type, object, previous }: Change) => {
    const key = keyOf(object);
    const known = told.get(key);
    if (known !== previous?.metadata.resourceVersion) wrong.push(`${type} ${key}: ${known} was known`);
    if (type === 'deleted') told.delete(key);
    else told.set(key, object.metadata.resourceVersion!);
  });
  const stop = new AbortController();
  const finished = reflector.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await finished;
  });
  return { reflector, told, wrong, lines };
}

/** Resolves when the store and what was told are what the server has; the limit is for a reflector that is deaf. */
async function converges(
  { writer, namespace }: Place,
  { reflector, told, wrong }: ReturnType<typeof follow>,
) {
  let want = '';
  let have = '';
  for (const deadline = Date.now() + 120_000; Date.now() < deadline; ) {
    const { items } = await writer.list(configMaps, { namespace });
    want = JSON.stringify(items.map((item) => [keyOf(item), item.metadata.resourceVersion]).sort());
    const stored = reflector.store.list();
    have = JSON.stringify(stored.map((item) => [keyOf(item), item.metadata.resourceVersion]).sort());
    if (have === want && JSON.stringify([...told].sort()) === want) {
      assert.deepEqual(wrong, []);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.equal(have, want);
}

/** Writes that create, change, delete, and put another object under an old name. */
async function write({ writer, namespace }: Place, count: number, seed: number): Promise<void> {
  for (let step = 0; step < count; step += 1) {
    const ref = { namespace, name: `c${(step * 7 + seed) % 11}` };
    const data = { n: `${seed}.${step}` };
    const object = { apiVersion: 'v1', kind: 'ConfigMap', metadata: ref, data };
    if ((step + seed) % 3 !== 0)
      await writer.apply(configMaps, object, { fieldManager: 'test', force: true });
    else {
      await writer.remove(configMaps, ref);
      if (step % 2 === 0) await writer.create(configMaps, object);
    }
  }
}

for (const [implementation, make] of Object.entries(implementations)) {
  describe(implementation, () => {
    test('the store follows what is written', async (t) => {
      const place = await make(t);
      await write(place, 12, 0);
      const followed = follow(t, place);
      await followed.reflector.synced;
      await write(place, 30, 1);
      await converges(place, followed);
    });

    test('the store follows when the server', async (t) => {
      for (const name of Object.keys((await make(t)).disturbances)) {
        await t.test(name, async (t) => {
          const place = await make(t);
          const followed = follow(t, place);
          await followed.reflector.synced;
          for (let round = 0; round < 3; round += 1) {
            await write(place, 8, round);
            place.disturbances[name]!();
            await write(place, 8, round + 5);
          }
          await converges(place, followed);
        });
      }
    });
  });
}

test('the real API server takes the events that the recorder writes', async (t) => {
  const plane = await controlPlane(t);
  const namespace = await plane.namespace(t);
  const { log, lines } = memoryLog();
  const details = { type: 'Warning', reason: 'ApplyFailed', message: 'no' } as const;
  const recorder = new EventRecorder({
    client: plane.client,
    component: 'sluice-operator',
    instance: 'pod-1',
    clock: systemClock,
    random: Math.random,
    log,
  });
  const object = await plane.client.create(configMaps, {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: { namespace, name: 'a'.repeat(250) },
  });
  recorder.record(object, { ...details, message: 'ä'.repeat(3_000) });
  recorder.record(object, { ...details, message: 'ä'.repeat(3_000) });
  recorder.record(
    await plane.client.get(resources.namespaces, { name: namespace }).then((found) => found!),
    details,
  );
  await recorder.flush();
  assert.deepEqual(lines, []);
  const fieldSelector = `involvedObject.uid=${object.metadata.uid}`;
  const { items } = await plane.client.list(resources.events, { namespace, fieldSelector });
  assert.deepEqual(
    items.map(({ type, reason, count, source }) => [type, reason, count, source.component]),
    [['Warning', 'ApplyFailed', 2, 'sluice-operator']],
  );
});

test('the store follows when the real API server is killed and started again', async (t) => {
  const plane = await controlPlane(t);
  const namespace = await plane.namespace(t);
  const place: Place = { writer: plane.client, client: plane.client, namespace, disturbances: {} };
  await write(place, 12, 0);
  const followed = follow(t, place);
  await converges(place, followed);
  const { resourceVersion } = await plane.client.list(configMaps, { namespace });
  await restartApiServer(t, plane);
  await write(place, 12, 3);
  await converges(place, followed);
  assert.ok(followed.lines.some(({ message }) => message === 'watch failed'));
  // It has forgotten what was before its start: the real thing behind the 410 of the other tests.
  const { signal } = new AbortController();
  const watch = plane.client.watch(configMaps, {
    namespace,
    resourceVersion: String(Number(resourceVersion) - 5),
    signal,
  });
  await assert.rejects(
    watch[Symbol.asyncIterator]().next(),
    (error) => error instanceof KubeError && error.status === 410,
  );
});
