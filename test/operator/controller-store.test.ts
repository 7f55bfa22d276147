import assert from 'node:assert/strict';
import { test } from 'node:test';
import { keyOf, refOf, Store } from '../../operator/controller/store.ts';
import type { KubeObject } from '../../operator/kube/client.ts';

let errors: string[] = [];

function make(): Store {
  errors = [];
  return new Store({ image: (object) => [object.spec.image] }, (index, object, error) => {
    errors.push(`${index} ${keyOf(object)}: ${(error as Error).message}`);
  });
}

function pod(
  name: string,
  resourceVersion: number,
  more: { uid?: string; owner?: string; image?: string } = {},
): KubeObject {
  const { uid = `uid-${name}`, owner, image = 'x' } = more;
  const reference = { apiVersion: 'apps/v1', kind: 'ReplicaSet', name: 'o', uid: owner ?? '' };
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      namespace: 'test',
      name,
      uid,
      resourceVersion: String(resourceVersion),
      ...(owner === undefined
        ? {}
        : {
            ownerReferences: [
              { ...reference, uid: 'other' },
              { ...reference, controller: true },
            ],
          }),
    },
    spec: { image },
  };
}

function names(objects: KubeObject[]): string {
  return objects
    .map(({ metadata }) => metadata.name)
    .sort()
    .join();
}

test('objects are found by key, namespace, controller and own indexes, as they are now', () => {
  const store = make();
  store.set(pod('a', 1, { owner: 'u1', image: 'x' }));
  store.set(pod('b', 2, { owner: 'u1', image: 'y' }));
  assert.equal(store.get('test/a')?.metadata.name, 'a');
  assert.equal(names(store.list()), 'a,b');
  assert.equal(names(store.list('test')), 'a,b');
  assert.equal(names(store.list('other')), '');
  assert.equal(names(store.by('owner', 'u1')), 'a,b');
  assert.equal(names(store.by('owner', 'other')), '');
  assert.equal(names(store.by('image', 'x')), 'a');
  store.set(pod('a', 3, { owner: 'u2', image: 'y' }));
  assert.equal(names(store.by('owner', 'u1')), 'b');
  assert.equal(names(store.by('owner', 'u2')), 'a');
  assert.equal(names(store.by('image', 'y')), 'a,b');
  store.delete('test/b');
  assert.equal(names(store.by('image', 'y')), 'a');
  assert.equal(store.size, 1);
});

test('a change tells what was before', () => {
  const store = make();
  const types = (changes: readonly { type: string }[]) => changes.map(({ type }) => type).join();
  assert.equal(types(store.set(pod('a', 1))), 'added');
  assert.equal(types(store.set(pod('a', 1))), '');
  const [updated] = store.set(pod('a', 2));
  assert.deepEqual([updated?.type, updated?.previous?.metadata.resourceVersion], ['updated', '1']);
  const [gone] = store.delete('test/a', pod('a', 3));
  assert.deepEqual(
    [gone?.type, gone?.object.metadata.resourceVersion, gone?.previous?.metadata.resourceVersion],
    ['deleted', '3', '2'],
  );
  assert.equal(types(store.delete('test/a')), '');
});

test('another object of the same name is a deletion and an addition', () => {
  const store = make();
  store.set(pod('a', 1, { uid: 'first', image: 'x' }));
  const changes = store.set(pod('a', 5, { uid: 'second', image: 'y' }));
  assert.deepEqual(
    changes.map(({ type, object }) => [type, object.metadata.uid]),
    [
      ['deleted', 'first'],
      ['added', 'second'],
    ],
  );
  assert.equal(names(store.by('image', 'x')), '');
});

test('what is handed out cannot be changed', () => {
  const store = make();
  store.set(pod('a', 1));
  assert.throws(() => {
    store.get('test/a')!.spec.image = 'z';
  }, TypeError);
});

test('an index that throws leaves the object out of it, keeps the object, and is reported', () => {
  const store = make();
  const { spec: _none, ...broken } = pod('a', 1);
  assert.equal(store.set(broken as KubeObject).length, 1);
  assert.equal(names(store.list('test')), 'a');
  assert.deepEqual(errors.length, 1);
  assert.match(errors[0]!, /^image test\/a: /);
});

test('an index that does not exist is a bug', () => {
  assert.throws(() => make().by('nothing', 'x'), /no index "nothing"/);
});

test('keys name objects with and without a namespace', () => {
  for (const ref of [{ namespace: 'a', name: 'b' }, { name: 'b' }]) assert.deepEqual(refOf(keyOf(ref)), ref);
});
