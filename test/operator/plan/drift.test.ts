/** Drift is read off who manages which field: cases as the API server writes them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AnyObject } from '../../../operator/api/objects.ts';
import { driftOf, replacement, stamped } from '../../../operator/plan/drift.ts';
import { appliedAnnotation } from '../../../operator/resources/labels.ts';

const wanted = stamped({
  apiVersion: 'apps/v1',
  kind: 'Deployment',
  metadata: { name: 'chat-abc', namespace: 'prod', labels: { app: 'x' } },
  spec: {
    replicas: 2,
    template: {
      spec: {
        containers: [
          {
            name: 'runtime',
            args: ['serve'],
            ports: [{ name: 'http', containerPort: 8000 }],
            env: [{ name: 'A', value: '1' }],
          },
        ],
        volumes: [{ name: 'cache', emptyDir: {} }],
      },
    },
  },
});

const containerFields = {
  'k:{"name":"runtime"}': {
    '.': {},
    'f:name': {},
    'f:args': {},
    'f:ports': {
      'k:{"containerPort":8000,"protocol":"TCP"}': { '.': {}, 'f:name': {}, 'f:containerPort': {} },
    },
    'f:env': { 'k:{"name":"A"}': { '.': {}, 'f:name': {}, 'f:value': {} } },
  },
};
const ownFields = {
  'f:metadata': { 'f:labels': { 'f:app': {} }, 'f:annotations': { [`f:${appliedAnnotation}`]: {} } },
  'f:spec': {
    'f:replicas': {},
    'f:template': {
      'f:spec': {
        'f:containers': containerFields,
        'f:volumes': { 'k:{"name":"cache"}': { '.': {}, 'f:name': {}, 'f:emptyDir': {} } },
      },
    },
  },
};

const ours = (fieldsV1: object = ownFields) => ({ manager: 'sluice-operator', operation: 'Apply', fieldsV1 });
const theirs = (fieldsV1: object, more: object = {}) => ({
  manager: 'kubectl-edit',
  operation: 'Update',
  fieldsV1,
  ...more,
});
/** Our fields less one; nodes that hold no field are not written. */
const without = (path: readonly string[], tree: object = ownFields): object => {
  const [step = '', ...rest] = path;
  const copy: Record<string, unknown> = { ...tree };
  const below = rest.length === 0 ? {} : without(rest, copy[step] as object);
  if (Object.keys(below).length === 0) delete copy[step];
  else copy[step] = below;
  return copy;
};
const live = (...managedFields: object[]): AnyObject => ({
  ...wanted,
  metadata: { ...wanted.metadata, uid: 'u', resourceVersion: '7', managedFields },
});
const env = (name: string) => ({
  'f:spec': {
    'f:template': {
      'f:spec': {
        'f:containers': {
          'k:{"name":"runtime"}': { 'f:env': { [`k:{"name":"${name}"}`]: { '.': {}, 'f:value': {} } } },
        },
      },
    },
  },
});

const cases: Record<string, [object: AnyObject, drift: ReturnType<typeof driftOf>]> = {
  'as applied': [live(ours()), 'intact'],
  'a status that others write': [
    live(ours(), theirs({ 'f:status': { 'f:replicas': {} } }, { subresource: 'status' })),
    'intact',
  ],
  'an annotation that others add': [
    live(ours(), theirs({ 'f:metadata': { 'f:annotations': { 'f:note': {} } } })),
    'intact',
  ],
  'someone who applied the same value owns it too': [
    live(ours(), theirs({ 'f:spec': { 'f:replicas': {} } })),
    'intact',
  ],
  'a field taken over': [
    live(ours(without(['f:spec', 'f:replicas'])), theirs({ 'f:spec': { 'f:replicas': {} } })),
    'changed',
  ],
  'a label removed': [live(ours(without(['f:metadata', 'f:labels', 'f:app']))), 'changed'],
  'a container removed': [
    live(ours(without(['f:spec', 'f:template', 'f:spec', 'f:containers', 'k:{"name":"runtime"}']))),
    'changed',
  ],
  'a variable of ours changed by hand': [live(ours(), theirs(env('A'))), 'intact'],
  'a variable added by hand': [live(ours(), theirs(env('B'))), 'intruded'],
  'a field added by hand': [live(ours(), theirs({ 'f:spec': { 'f:paused': {} } })), 'intruded'],
  'a field added through the scale subresource counts as any other': [
    live(
      ours(without(['f:spec', 'f:replicas'])),
      theirs({ 'f:spec': { 'f:replicas': {} } }, { subresource: 'scale' }),
    ),
    'changed',
  ],
  'never applied by us': [live(), 'changed'],
  'applied from another manifest': [
    { ...live(ours()), metadata: { ...live(ours()).metadata, annotations: { [appliedAnnotation]: 'old' } } },
    'changed',
  ],
};
for (const [name, [object, drift]] of Object.entries(cases)) {
  test(`${name}: ${drift}`, () => assert.equal(driftOf(object, wanted), drift));
}

test('a replacement keeps what is not ours to say and takes the strangers out of the fields', () => {
  const intruded = live(ours(), theirs(env('B')), theirs({ 'f:status': {} }, { subresource: 'status' }));
  intruded.metadata.finalizers = ['them/keep'];
  intruded.metadata.annotations = { ...intruded.metadata.annotations, note: 'theirs' };
  intruded.spec = { ...intruded.spec, paused: true };
  const whole = replacement(intruded, wanted);
  assert.deepEqual(whole.spec, wanted.spec);
  assert.deepEqual(whole.metadata.finalizers, ['them/keep']);
  assert.equal(whole.metadata.annotations?.note, 'theirs');
  assert.equal(whole.metadata.resourceVersion, '7');
  assert.deepEqual(
    (whole.metadata.managedFields as { manager: string; subresource?: string }[]).map((each) => [
      each.manager,
      each.subresource,
    ]),
    [
      ['sluice-operator', undefined],
      ['kubectl-edit', 'status'],
    ],
  );
});
