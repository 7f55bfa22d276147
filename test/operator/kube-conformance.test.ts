/** What KubeClient promises, asked of every implementation: the in-memory API server and the real one. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import {
  type KubeClient,
  KubeError,
  type KubeObject,
  resources,
  type WatchEvent,
} from '../../operator/kube/client.ts';
import { controlPlane } from '../support/control-plane.ts';
import { MemoryKube } from '../support/memory-kube.ts';

interface Place {
  readonly client: KubeClient;
  readonly namespace: string;
}

const { configMaps, deployments, leases } = resources;

const implementations: Record<string, (t: TestContext) => Promise<Place>> = {
  'the in-memory API server': async () => ({ client: new MemoryKube(), namespace: 'test' }),
  'the real API server': async (t) => {
    const plane = await controlPlane(t);
    return { client: plane.client, namespace: await plane.namespace(t) };
  },
};

function configMap(
  namespace: string,
  name: string,
  data?: Record<string, string>,
  labels?: Record<string, string>,
): KubeObject {
  return {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: { namespace, name, ...(labels === undefined ? {} : { labels }) },
    ...(data === undefined ? {} : { data }),
  };
}

function deployment(namespace: string, name: string, replicas = 1): KubeObject {
  const labels = { app: name };
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { namespace, name },
    spec: {
      replicas,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { containers: [{ name: 'main', image: 'example' }] } },
    },
  };
}

async function refused(promise: Promise<unknown>, status: number, reason: string): Promise<KubeError> {
  const error = await promise.then(
    () => assert.fail(`expected ${status} ${reason}`),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof KubeError, String(error));
  assert.deepEqual([error.status, error.reason], [status, reason], error.message);
  return error;
}

/** The next events that are not bookmarks. */
async function next(events: AsyncIterator<WatchEvent>, count: number): Promise<string[]> {
  const seen: string[] = [];
  while (seen.length < count) {
    const { value, done } = await events.next();
    assert.ok(!done, `the watch ended after ${seen.join(', ')}`);
    if (value.type !== 'BOOKMARK') seen.push(`${value.type} ${value.object.metadata.name}`);
  }
  return seen;
}

function watch(
  t: TestContext,
  { client, namespace }: Place,
  resourceVersion: string,
  labelSelector?: string,
) {
  const stop = new AbortController();
  t.after(() => stop.abort());
  const selection = labelSelector === undefined ? {} : { labelSelector };
  const events = client.watch(configMaps, { namespace, resourceVersion, signal: stop.signal, ...selection });
  return { stop, events: events[Symbol.asyncIterator]() };
}

const cases: Record<string, (place: Place, t: TestContext) => Promise<void>> = {
  'get of an object that is not there is undefined': async ({ client, namespace }) => {
    assert.equal(await client.get(configMaps, { namespace, name: 'nothing' }), undefined);
  },
  'what is created can be read, with what the server adds': async ({ client, namespace }) => {
    const created = await client.create(configMaps, configMap(namespace, 'a', { text: 'ä€𝄞' }));
    assert.ok(created.metadata.uid && created.metadata.resourceVersion && created.metadata.creationTimestamp);
    assert.deepEqual(await client.get(configMaps, { namespace, name: 'a' }), created);
    assert.deepEqual(created.data, { text: 'ä€𝄞' });
    assert.deepEqual([created.apiVersion, created.kind], ['v1', 'ConfigMap']);
  },
  'a second object of the same name is AlreadyExists': async ({ client, namespace }) => {
    await client.create(configMaps, configMap(namespace, 'a'));
    await refused(client.create(configMaps, configMap(namespace, 'a')), 409, 'AlreadyExists');
  },
  'generateName gives a name': async ({ client, namespace }) => {
    const metadata = { namespace, generateName: 'some-' } as never;
    const created = await client.create(configMaps, { apiVersion: 'v1', kind: 'ConfigMap', metadata });
    assert.match(created.metadata.name, /^some-./);
  },
  'replace with an old resourceVersion is a Conflict and changes nothing': async ({ client, namespace }) => {
    const first = await client.create(configMaps, configMap(namespace, 'a', { n: '1' }));
    const second = await client.replace(configMaps, { ...first, data: { n: '2' } });
    assert.notEqual(second.metadata.resourceVersion, first.metadata.resourceVersion);
    await refused(client.replace(configMaps, { ...first, data: { n: '3' } }), 409, 'Conflict');
    assert.deepEqual((await client.get(configMaps, { namespace, name: 'a' }))?.data, { n: '2' });
  },
  'replace and patch of an object that is not there are NotFound': async ({ client, namespace }) => {
    await refused(client.replace(deployments, deployment(namespace, 'a')), 404, 'NotFound');
    await refused(client.mergePatch(configMaps, { namespace, name: 'a' }, { data: {} }), 404, 'NotFound');
  },
  'a write that changes nothing keeps the resourceVersion': async ({ client, namespace }) => {
    const object = configMap(namespace, 'a', { n: '1' });
    const first = await client.apply(configMaps, object, { fieldManager: 'one' });
    const again = await client.apply(configMaps, object, { fieldManager: 'one' });
    const patched = await client.mergePatch(configMaps, { namespace, name: 'a' }, { data: { n: '1' } });
    assert.equal(again.metadata.resourceVersion, first.metadata.resourceVersion);
    assert.equal(patched.metadata.resourceVersion, first.metadata.resourceVersion);
  },
  'a merge patch sets, deletes with null and keeps the rest': async ({ client, namespace }) => {
    await client.create(configMaps, configMap(namespace, 'a', { keep: '1', drop: '2' }));
    const patch = { data: { drop: null, add: '3' } };
    const patched = await client.mergePatch(configMaps, { namespace, name: 'a' }, patch);
    assert.deepEqual(patched.data, { keep: '1', add: '3' });
  },
  'a merge patch with an old resourceVersion is a Conflict': async ({ client, namespace }) => {
    const first = await client.create(configMaps, configMap(namespace, 'a'));
    const ref = { namespace, name: 'a' };
    await client.mergePatch(configMaps, ref, { data: { n: '1' } });
    const { resourceVersion } = first.metadata;
    await refused(
      client.mergePatch(configMaps, ref, { metadata: { resourceVersion }, data: { n: '2' } }),
      409,
      'Conflict',
    );
  },
  'the generation counts changes of the spec, and of nothing else': async ({ client, namespace }) => {
    const ref = { namespace, name: 'a' };
    const created = await client.create(deployments, deployment(namespace, 'a'));
    const scaled = await client.mergePatch(deployments, ref, { spec: { replicas: 2 } });
    const labelled = await client.mergePatch(deployments, ref, { metadata: { labels: { x: 'y' } } });
    const status = { status: { observedGeneration: 2 } };
    const reported = await client.mergePatch(deployments, ref, status, { subresource: 'status' });
    assert.deepEqual(
      [created, scaled, labelled, reported].map(({ metadata }) => metadata.generation),
      [1, 2, 2, 2],
    );
  },
  'status is written through its subresource, and nothing else is': async ({ client, namespace }) => {
    const ref = { namespace, name: 'a' };
    await client.create(deployments, { ...deployment(namespace, 'a'), status: { replicas: 7 } });
    assert.equal((await client.get(deployments, ref))!.status?.replicas, undefined);
    await client.mergePatch(deployments, ref, { status: { replicas: 7 } });
    assert.equal((await client.get(deployments, ref))!.status?.replicas, undefined);
    const patch = { spec: { replicas: 9 }, status: { replicas: 3 } };
    const written = await client.mergePatch(deployments, ref, patch, { subresource: 'status' });
    assert.deepEqual([written.spec.replicas, written.status.replicas], [1, 3]);
    const replaced = await client.replace(deployments, { ...written, status: {} });
    assert.equal(replaced.status.replicas, 3);
  },
  'scale sets the replicas': async ({ client, namespace }) => {
    const ref = { namespace, name: 'a' };
    await client.create(deployments, deployment(namespace, 'a'));
    const scale = await client.mergePatch(
      deployments,
      ref,
      { spec: { replicas: 5 } },
      { subresource: 'scale' },
    );
    assert.deepEqual([scale.kind, scale.spec.replicas], ['Scale', 5]);
    assert.equal((await client.get(deployments, ref))!.spec.replicas, 5);
  },
  'apply creates, and then changes only its own fields': async ({ client, namespace }) => {
    const ours = { fieldManager: 'one' };
    await client.apply(configMaps, configMap(namespace, 'a', { n: '1' }), ours);
    await client.mergePatch(configMaps, { namespace, name: 'a' }, { data: { other: 'x' } });
    const applied = await client.apply(configMaps, configMap(namespace, 'a', { n: '2' }), ours);
    assert.deepEqual(applied.data, { n: '2', other: 'x' });
  },
  'apply removes what its manager no longer applies': async ({ client, namespace }) => {
    const ours = { fieldManager: 'one' };
    await client.apply(configMaps, configMap(namespace, 'a', { n: '1', m: '1' }, { l: 'x' }), ours);
    await client.apply(configMaps, configMap(namespace, 'a', { k: '1' }), { fieldManager: 'two' });
    const applied = await client.apply(configMaps, configMap(namespace, 'a', { n: '1' }), ours);
    assert.deepEqual([applied.data, applied.metadata.labels], [{ n: '1', k: '1' }, undefined]);
  },
  'apply keeps a field that another manager applies too': async ({ client, namespace }) => {
    const both = configMap(namespace, 'a', { n: '1' });
    await client.apply(configMaps, both, { fieldManager: 'one' });
    await client.apply(configMaps, both, { fieldManager: 'two' });
    const applied = await client.apply(configMaps, configMap(namespace, 'a'), { fieldManager: 'one' });
    assert.deepEqual(applied.data, { n: '1' });
  },
  'apply of a field that another manager set is a Conflict, and force takes it': async ({
    client,
    namespace,
  }) => {
    await client.apply(configMaps, configMap(namespace, 'a', { n: '1' }), { fieldManager: 'one' });
    const theirs = configMap(namespace, 'a', { n: '2' });
    const error = await refused(client.apply(configMaps, theirs, { fieldManager: 'two' }), 409, 'Conflict');
    assert.match(error.message, /^Apply failed with 1 conflict: conflict with "one".*: \.data\.n$/);
    const taken = await client.apply(configMaps, theirs, { fieldManager: 'two', force: true });
    assert.deepEqual(taken.data, { n: '2' });
    // It is not the first one's any more, so that leaving it out does not remove it.
    const left = await client.apply(configMaps, configMap(namespace, 'a'), { fieldManager: 'one' });
    assert.deepEqual(left.data, { n: '2' });
  },
  'apply undoes what another writer changed, with force': async ({ client, namespace }) => {
    const ours = { fieldManager: 'one', force: true };
    await client.apply(deployments, deployment(namespace, 'a', 2), ours);
    await client.mergePatch(deployments, { namespace, name: 'a' }, { spec: { replicas: 9 } });
    await refused(
      client.apply(deployments, deployment(namespace, 'a', 2), { fieldManager: 'one' }),
      409,
      'Conflict',
    );
    const repaired = await client.apply(deployments, deployment(namespace, 'a', 2), ours);
    assert.equal(repaired.spec.replicas, 2);
  },
  'apply merges lists by key': async ({ client, namespace }) => {
    const object = deployment(namespace, 'a');
    const container = (env: { name: string; value: string }[]) => ({ name: 'main', image: 'example', env });
    const withEnv = (env: { name: string; value: string }[]) => {
      const copy = structuredClone(object);
      copy.spec.template.spec.containers = [container(env)];
      return copy;
    };
    const [x, y, z] = ['x', 'y', 'z'].map((name) => ({ name, value: '1' })) as [never, never, never];
    await client.apply(deployments, withEnv([x, y]), { fieldManager: 'one' });
    await client.apply(deployments, withEnv([z]), { fieldManager: 'two' });
    const applied = await client.apply(deployments, withEnv([y]), { fieldManager: 'one' });
    const names = applied.spec.template.spec.containers[0].env.map(({ name }: { name: string }) => name);
    assert.deepEqual(names.sort(), ['y', 'z']);
  },
  'apply to the status owns the status only': async ({ client, namespace }) => {
    const { apiVersion, kind, metadata } = deployment(namespace, 'a');
    await client.apply(deployments, deployment(namespace, 'a', 3), { fieldManager: 'one' });
    const status = { apiVersion, kind, metadata, status: { replicas: 2, observedGeneration: 1 } };
    const options = { fieldManager: 'one', subresource: 'status' } as const;
    const reported = await client.apply(deployments, status, options);
    assert.deepEqual([reported.spec.replicas, reported.status.replicas], [3, 2]);
    const less = await client.apply(deployments, { ...status, status: { observedGeneration: 1 } }, options);
    assert.deepEqual(
      [less.spec.replicas, less.status.replicas, less.status.observedGeneration],
      [3, undefined, 1],
    );
  },
  'apply with the uid of an object that is gone creates nothing': async ({ client, namespace }) => {
    const object = configMap(namespace, 'a');
    object.metadata.uid = '11111111-1111-4111-8111-111111111111';
    await refused(client.apply(configMaps, object, { fieldManager: 'one' }), 409, 'Conflict');
    assert.equal(await client.get(configMaps, { namespace, name: 'a' }), undefined);
  },
  'dryRun answers and changes nothing': async ({ client, namespace }) => {
    const options = { dryRun: true } as const;
    await client.create(configMaps, configMap(namespace, 'a'), options);
    assert.equal(await client.get(configMaps, { namespace, name: 'a' }), undefined);
    await client.create(configMaps, configMap(namespace, 'a', { n: '1' }));
    const object = configMap(namespace, 'a', { n: '2' });
    const applied = await client.apply(configMaps, object, { fieldManager: 'one', force: true, ...options });
    await client.remove(configMaps, { namespace, name: 'a' }, options);
    assert.deepEqual(applied.data, { n: '2' });
    assert.deepEqual((await client.get(configMaps, { namespace, name: 'a' }))?.data, { n: '1' });
  },
  'remove of an object that is gone is fine': async ({ client, namespace }) => {
    await client.remove(configMaps, { namespace, name: 'a' });
    await client.create(configMaps, configMap(namespace, 'a'));
    await client.remove(configMaps, { namespace, name: 'a' });
    assert.equal(await client.get(configMaps, { namespace, name: 'a' }), undefined);
  },
  'remove with another uid is a Conflict': async ({ client, namespace }) => {
    await client.create(configMaps, configMap(namespace, 'a'));
    const uid = '11111111-1111-4111-8111-111111111111';
    await refused(client.remove(configMaps, { namespace, name: 'a' }, { uid }), 409, 'Conflict');
    assert.ok(await client.get(configMaps, { namespace, name: 'a' }));
  },
  'a finalizer keeps a deleted object until it is taken away': async ({ client, namespace }) => {
    const ref = { namespace, name: 'a' };
    const object = configMap(namespace, 'a');
    object.metadata.finalizers = ['example.dev/hold'];
    await client.create(configMaps, object);
    await client.remove(configMaps, ref);
    assert.ok((await client.get(configMaps, ref))?.metadata.deletionTimestamp);
    await client.mergePatch(configMaps, ref, { metadata: { finalizers: null } });
    assert.equal(await client.get(configMaps, ref), undefined);
  },
  'Foreground and Orphan keep a deleted object for the garbage collector': async ({ client, namespace }) => {
    for (const [propagationPolicy, finalizer] of [
      ['Foreground', 'foregroundDeletion'],
      ['Orphan', 'orphan'],
    ] as const) {
      const ref = { namespace, name: finalizer.toLowerCase() };
      await client.create(deployments, deployment(namespace, ref.name));
      await client.remove(deployments, ref, { propagationPolicy });
      const deleted = await client.get(deployments, ref);
      assert.ok(deleted?.metadata.deletionTimestamp);
      assert.deepEqual(deleted.metadata.finalizers, [finalizer]);
      await client.mergePatch(deployments, ref, { metadata: { finalizers: null } });
    }
  },
  'list selects by labels and fields': async ({ client, namespace }) => {
    await client.create(configMaps, configMap(namespace, 'a', {}, { tier: 'x', left: '1' }));
    await client.create(configMaps, configMap(namespace, 'b', {}, { tier: 'y' }));
    await client.create(configMaps, configMap(namespace, 'c', {}, { tier: 'z' }));
    const names = async (labelSelector: string, fieldSelector = '') => {
      // The real one puts a certificate authority into every namespace.
      const list = await client.list(configMaps, { namespace, labelSelector, fieldSelector });
      return list.items.map(({ metadata }) => metadata.name).join();
    };
    assert.equal(await names('tier=x'), 'a');
    assert.equal(await names('tier!=x,tier'), 'b,c');
    assert.equal(await names('tier in (x, z)'), 'a,c');
    assert.equal(await names('tier notin (x),tier'), 'b,c');
    assert.equal(await names('left'), 'a');
    assert.equal(await names('tier,!left'), 'b,c');
    assert.equal(await names('', 'metadata.name=b'), 'b');
    await refused(client.list(configMaps, { namespace, labelSelector: '=' }), 400, 'BadRequest');
  },
  'a list in pages is one state, whatever happens meanwhile': async ({ client, namespace }) => {
    for (const name of ['a', 'b', 'c', 'd', 'e']) {
      await client.create(configMaps, configMap(namespace, name, {}, { page: '1' }));
    }
    const selection = { namespace, labelSelector: 'page', limit: 2 };
    const first = await client.list(configMaps, selection);
    await client.remove(configMaps, { namespace, name: 'd' });
    await client.create(configMaps, configMap(namespace, 'cc', {}, { page: '1' }));
    const second = await client.list(configMaps, { ...selection, continue: first.continue! });
    const third = await client.list(configMaps, { ...selection, continue: second.continue! });
    const names = [first, second, third].flatMap(({ items }) => items.map(({ metadata }) => metadata.name));
    assert.deepEqual(names, ['a', 'b', 'c', 'd', 'e']);
    assert.equal(third.continue, undefined);
    assert.equal(third.resourceVersion, first.resourceVersion);
    assert.ok(first.items.every(({ apiVersion, kind }) => apiVersion === 'v1' && kind === 'ConfigMap'));
  },
  'list of all namespaces and of one': async ({ client, namespace }) => {
    await client.create(leases, {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: { namespace, name: 'a' },
      spec: {},
    });
    const everywhere = await client.list(leases);
    assert.ok(everywhere.items.some(({ metadata }) => metadata.namespace === namespace));
    assert.deepEqual((await client.list(leases, { namespace })).items.length, 1);
  },
  'a watch tells what happens after its resourceVersion, in order': async (place, t) => {
    const { client, namespace } = place;
    await client.create(configMaps, configMap(namespace, 'before'));
    const { resourceVersion } = await client.list(configMaps, { namespace });
    const { stop, events } = watch(t, place, resourceVersion, '!never');
    await client.create(configMaps, configMap(namespace, 'a'));
    assert.deepEqual(await next(events, 1), ['ADDED a']);
    await client.mergePatch(configMaps, { namespace, name: 'a' }, { data: { n: 'ä€𝄞'.repeat(40_000) } });
    await client.remove(configMaps, { namespace, name: 'a' });
    await client.remove(configMaps, { namespace, name: 'before' });
    assert.deepEqual(await next(events, 3), ['MODIFIED a', 'DELETED a', 'DELETED before']);
    stop.abort();
  },
  'a watch with a selector sees objects come and go': async (place, t) => {
    const { client, namespace } = place;
    const { resourceVersion } = await client.list(configMaps, { namespace });
    const { stop, events } = watch(t, place, resourceVersion, 'in=yes');
    await client.create(configMaps, configMap(namespace, 'a'));
    await client.create(configMaps, configMap(namespace, 'b', {}, { in: 'yes' }));
    await client.mergePatch(configMaps, { namespace, name: 'a' }, { metadata: { labels: { in: 'yes' } } });
    await client.mergePatch(configMaps, { namespace, name: 'b' }, { metadata: { labels: { in: null } } });
    assert.deepEqual(await next(events, 3), ['ADDED b', 'ADDED a', 'DELETED b']);
    stop.abort();
  },
  'a watch resumes from the resourceVersion of its last event, a deletion included': async (place, t) => {
    const { client, namespace } = place;
    const { resourceVersion } = await client.list(configMaps, { namespace });
    await client.create(configMaps, configMap(namespace, 'a'));
    await client.remove(configMaps, { namespace, name: 'a' });
    await client.create(configMaps, configMap(namespace, 'b'));
    const first = watch(t, place, resourceVersion, '!never');
    await first.events.next();
    const { value } = await first.events.next();
    first.stop.abort();
    assert.ok(value?.type === 'DELETED');
    const second = watch(t, place, value.object.metadata.resourceVersion!, '!never');
    assert.deepEqual(await next(second.events, 1), ['ADDED b']);
    second.stop.abort();
  },
  'a watch ends by itself after its timeout': async ({ client, namespace }, t) => {
    const { resourceVersion } = await client.list(configMaps, { namespace });
    const { signal } = new AbortController();
    const options = { namespace, resourceVersion, timeoutSeconds: 1, labelSelector: 'never', signal };
    for await (const event of client.watch(configMaps, options)) {
      assert.equal(event.type, 'BOOKMARK', t.name);
    }
  },
  'a watch that is aborted throws the reason': async (place, t) => {
    const { client, namespace } = place;
    const { resourceVersion } = await client.list(configMaps, { namespace });
    const { stop, events } = watch(t, place, resourceVersion);
    const waiting = events.next();
    stop.abort(new Error('enough'));
    await assert.rejects(waiting, /enough/);
  },
  'beforeSend has the last word over every write': async ({ client, namespace }) => {
    const ref = { namespace, name: 'a' };
    const refusal = new Error('the fence');
    const options = {
      beforeSend: () => {
        throw refusal;
      },
    };
    await client.create(configMaps, configMap(namespace, 'a', { n: '1' }));
    const changed = configMap(namespace, 'a', { n: '2' });
    const writes = [
      client.create(configMaps, configMap(namespace, 'b'), options),
      client.replace(configMaps, changed, options),
      client.apply(configMaps, changed, { fieldManager: 'one', force: true, ...options }),
      client.mergePatch(configMaps, ref, { data: { n: '2' } }, options),
      client.remove(configMaps, ref, options),
    ];
    for (const { status, reason } of (await Promise.allSettled(writes)) as PromiseRejectedResult[]) {
      assert.deepEqual([status, reason], ['rejected', refusal]);
    }
    assert.deepEqual((await client.get(configMaps, ref))?.data, { n: '1' });
    assert.equal(await client.get(configMaps, { namespace, name: 'b' }), undefined);
  },
  'a write whose signal has aborted is not made': async ({ client, namespace }) => {
    const signal = AbortSignal.abort(new Error('enough'));
    await assert.rejects(client.create(configMaps, configMap(namespace, 'a'), { signal }), /enough/);
    assert.equal(await client.get(configMaps, { namespace, name: 'a' }), undefined);
  },
};

for (const [implementation, make] of Object.entries(implementations)) {
  describe(implementation, () => {
    for (const [name, run] of Object.entries(cases)) {
      test(name, async (t) => run(await make(t), t));
    }
  });
}
