// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/** Partial pod templates over whole ones: the rules of `kubectl patch`, case by case. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../../operator/api/objects.ts';
import { mergeTemplate } from '../../../operator/resources/merge.ts';

const base: JsonObject = {
  metadata: { labels: { a: '1' } },
  spec: {
    terminationGracePeriodSeconds: 30,
    containers: [
      {
        name: 'runtime',
        image: 'runtime:1',
        args: ['serve'],
        env: [{ name: 'A', value: '1' }],
        volumeMounts: [{ name: 'models', mountPath: '/models', readOnly: true }],
        resources: { limits: { 'nvidia.com/gpu': '2' } },
      },
    ],
    volumes: [{ name: 'cache', emptyDir: {} }],
  },
};

const runtime = (overlay: JsonObject): JsonObject => ({
  spec: { containers: [{ name: 'runtime', ...overlay }] },
});

const cases: Record<string, { overlay: JsonObject; at: (merged: any) => unknown; gives: unknown }> = {
  'nothing changes nothing': { overlay: {}, at: (merged) => merged, gives: base },
  'a scalar is replaced': {
    overlay: { spec: { terminationGracePeriodSeconds: 60 } },
    at: (merged) => merged.spec.terminationGracePeriodSeconds,
    gives: 60,
  },
  'labels are added': {
    overlay: { metadata: { labels: { b: '2' } } },
    at: (merged) => merged.metadata.labels,
    gives: { a: '1', b: '2' },
  },
  'the container runtime is found by its name': {
    overlay: runtime({ resources: { requests: { cpu: '2' } } }),
    at: (merged) => merged.spec.containers.map((each: any) => [each.name, each.image, each.resources]),
    gives: [['runtime', 'runtime:1', { limits: { 'nvidia.com/gpu': '2' }, requests: { cpu: '2' } }]],
  },
  'another container stands beside it': {
    overlay: { spec: { containers: [{ name: 'sidecar', image: 'side:1' }] } },
    at: (merged) => merged.spec.containers.map((each: any) => each.name),
    gives: ['runtime', 'sidecar'],
  },
  'variables are merged by name': {
    overlay: runtime({
      env: [
        { name: 'A', value: '2' },
        { name: 'B', value: '3' },
      ],
    }),
    at: (merged) => merged.spec.containers[0].env,
    gives: [
      { name: 'A', value: '2' },
      { name: 'B', value: '3' },
    ],
  },
  'a variable from elsewhere takes the place of a value': {
    overlay: runtime({ env: [{ name: 'A', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } }] }),
    at: (merged) => merged.spec.containers[0].env,
    gives: [{ name: 'A', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } }],
  },
  'a volume of another kind takes the place of the old': {
    overlay: { spec: { volumes: [{ name: 'cache', persistentVolumeClaim: { claimName: 'fast' } }] } },
    at: (merged) => merged.spec.volumes,
    gives: [{ name: 'cache', persistentVolumeClaim: { claimName: 'fast' } }],
  },
  'a volume of the same kind is merged': {
    overlay: { spec: { volumes: [{ name: 'cache', emptyDir: { sizeLimit: '1Gi' } }] } },
    at: (merged) => merged.spec.volumes,
    gives: [{ name: 'cache', emptyDir: { sizeLimit: '1Gi' } }],
  },
  'mounts are merged by their path': {
    overlay: runtime({ volumeMounts: [{ name: 'other', mountPath: '/models' }] }),
    at: (merged) => merged.spec.containers[0].volumeMounts,
    gives: [{ name: 'other', mountPath: '/models', readOnly: true }],
  },
  'args are replaced': {
    overlay: runtime({ args: ['serve', '--devices=cpu:0'] }),
    at: (merged) => merged.spec.containers[0].args,
    gives: ['serve', '--devices=cpu:0'],
  },
  'tolerations, which have no key, are replaced': {
    overlay: { spec: { tolerations: [{ operator: 'Exists' }] } },
    at: (merged) => merged.spec.tolerations,
    gives: [{ operator: 'Exists' }],
  },
  'null removes': {
    overlay: runtime({ resources: null }),
    at: (merged) => 'resources' in merged.spec.containers[0],
    gives: false,
  },
};

for (const [name, { overlay, at, gives }] of Object.entries(cases)) {
  test(name, () => {
    const before = structuredClone({ base, overlay });
    assert.deepEqual(at(mergeTemplate(base, overlay)), gives);
    assert.deepEqual({ base, overlay }, before, 'the arguments are left as they were');
  });
}
