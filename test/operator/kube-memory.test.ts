/** What only the in-memory API server can be made to do at will: forget, collect garbage, fail. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KubeError, type KubeObject, type OwnerReference, resources } from '../../operator/kube/client.ts';
import { MemoryKube } from '../support/memory-kube.ts';

const { configMaps, deployments, replicaSets, pods } = resources;
const namespace = 'test';

function object(kind: string, name: string, owner?: KubeObject, finalizers?: string[]): KubeObject {
  const ownerReferences: OwnerReference[] | undefined = owner && [
    { apiVersion: owner.apiVersion, kind: owner.kind, name: owner.metadata.name, uid: owner.metadata.uid! },
  ];
  return {
    apiVersion: kind === 'Pod' || kind === 'ConfigMap' ? 'v1' : 'apps/v1',
    kind,
    metadata: {
      namespace,
      name,
      ...(ownerReferences === undefined ? {} : { ownerReferences }),
      ...(finalizers === undefined ? {} : { finalizers }),
    },
  };
}

async function family(kube: MemoryKube) {
  const parent = await kube.create(deployments, object('Deployment', 'parent'));
  const child = await kube.create(replicaSets, object('ReplicaSet', 'child', parent));
  await kube.create(pods, object('Pod', 'grandchild', child));
  await kube.create(pods, object('Pod', 'stranger'));
}

function names(kube: MemoryKube): string[] {
  return [deployments, replicaSets, pods].flatMap((type) =>
    kube.objects(type).map(({ metadata }) => metadata.name),
  );
}

test('deleting an owner leaves its dependents to the garbage collector', async () => {
  const kube = new MemoryKube();
  await family(kube);
  await kube.remove(deployments, { namespace, name: 'parent' });
  assert.deepEqual(names(kube), ['child', 'grandchild', 'stranger']);
  kube.collectGarbage();
  assert.deepEqual(names(kube), ['stranger']);
});

test('foreground deletion keeps the owner until its dependents are gone', async () => {
  const kube = new MemoryKube();
  await family(kube);
  const child = (await kube.get(replicaSets, { namespace, name: 'child' }))!;
  await kube.mergePatch(replicaSets, child.metadata, { metadata: { finalizers: ['example.dev/hold'] } });
  await kube.remove(deployments, { namespace, name: 'parent' }, { propagationPolicy: 'Foreground' });
  kube.collectGarbage();
  // The child waits for its finalizer, the parent for the child.
  assert.deepEqual(names(kube), ['parent', 'child', 'grandchild', 'stranger']);
  await kube.mergePatch(replicaSets, child.metadata, { metadata: { finalizers: null } });
  kube.collectGarbage();
  assert.deepEqual(names(kube), ['stranger']);
});

test('orphans lose the reference and stay', async () => {
  const kube = new MemoryKube();
  await family(kube);
  await kube.remove(deployments, { namespace, name: 'parent' }, { propagationPolicy: 'Orphan' });
  kube.collectGarbage();
  assert.deepEqual(names(kube), ['child', 'grandchild', 'stranger']);
  const child = await kube.get(replicaSets, { namespace, name: 'child' });
  assert.deepEqual(child?.metadata.ownerReferences ?? [], []);
});

test('a pod on a node stays, terminating, until its grace is set to zero', async () => {
  const kube = new MemoryKube();
  const ref = { namespace, name: 'a' };
  await kube.create(pods, {
    ...object('Pod', 'a'),
    spec: { nodeName: 'node', terminationGracePeriodSeconds: 5 },
  });
  await kube.remove(pods, ref);
  assert.ok((await kube.get(pods, ref))?.metadata.deletionTimestamp);
  await kube.remove(pods, ref, { gracePeriodSeconds: 0 });
  assert.equal(await kube.get(pods, ref), undefined);
});

test('after compaction, older watches and pages are Expired, newer ones are not', async () => {
  const kube = new MemoryKube();
  for (const name of ['a', 'b', 'c']) await kube.create(configMaps, object('ConfigMap', name));
  const page = await kube.list(configMaps, { namespace, limit: 1 });
  const { signal } = new AbortController();
  const watch = (resourceVersion: string) =>
    kube.watch(configMaps, { namespace, resourceVersion, signal })[Symbol.asyncIterator]().next();
  await kube.mergePatch(configMaps, { namespace, name: 'a' }, { data: { n: '1' } });
  const latest = await kube.list(configMaps, { namespace });
  kube.compact();
  const expired = (error: unknown) => error instanceof KubeError && error.status === 410;
  await assert.rejects(watch(page.resourceVersion), expired);
  await assert.rejects(kube.list(configMaps, { namespace, limit: 1, continue: page.continue! }), expired);
  const next = watch(latest.resourceVersion);
  await kube.create(configMaps, object('ConfigMap', 'd'));
  assert.equal((await next).value?.type, 'ADDED');
});

test('objects handed out and taken in are copies', async () => {
  const kube = new MemoryKube();
  const sent = { ...object('ConfigMap', 'a'), data: { n: '1' } };
  const got = await kube.create(configMaps, sent);
  sent.data.n = '2';
  got.data.n = '3';
  assert.deepEqual((await kube.get(configMaps, { namespace, name: 'a' }))?.data, { n: '1' });
});

test('intercept answers in place of the server, and every request is written down', async () => {
  let writes = 0;
  const kube = new MemoryKube({
    intercept: ({ verb }) => {
      if (verb === 'create' && ++writes === 2) throw new KubeError(500, 'InternalError', 'the second one');
    },
  });
  await kube.create(configMaps, object('ConfigMap', 'a'));
  await assert.rejects(kube.create(configMaps, object('ConfigMap', 'b')), /the second one/);
  await kube.create(configMaps, object('ConfigMap', 'c'));
  assert.deepEqual(
    kube.objects(configMaps).map(({ metadata }) => metadata.name),
    ['a', 'c'],
  );
  assert.deepEqual(
    kube.writes.map(({ verb, name }) => `${verb} ${name}`),
    ['create a', 'create b', 'create c'],
  );
});
