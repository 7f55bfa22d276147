/** The estimate of free GPUs: a table of named clusters, and properties over random ones. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { AnyObject } from '../../../operator/api/objects.ts';
import {
  type CapacityInput,
  estimateCapacity,
  type PodSpec,
  podRequest,
} from '../../../operator/plan/capacity.ts';

const resource = 'nvidia.com/gpu';
const gpus = (count: number) => ({ resources: { limits: { [resource]: String(count) } } });
const node = (name: string, count: number, more: Record<string, unknown> = {}): AnyObject =>
  ({
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name, labels: { 'kubernetes.io/hostname': name, ...(more.labels as object) } },
    spec: { ...(more.spec as object) },
    status: {
      allocatable: { [resource]: String(count) },
      conditions: [{ type: 'Ready', status: more.ready ?? 'True' }],
    },
  }) as AnyObject;
const pod = (on: string | undefined, count: number, more: Record<string, unknown> = {}): AnyObject =>
  ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'p', ...(more.ending ? { deletionTimestamp: '2026-01-01T00:00:00Z' } : {}) },
    spec: { ...(on ? { nodeName: on } : {}), containers: [gpus(count)] },
    status: { phase: more.phase ?? 'Running' },
  }) as AnyObject;
const spec = (count: number, more: Partial<PodSpec> = {}): PodSpec => ({
  containers: [gpus(count)],
  ...more,
});

interface Case {
  readonly name: string;
  readonly input: Partial<CapacityInput>;
  readonly fits?: number;
  readonly afterReleases?: number;
  readonly message: RegExp;
}

const cases: readonly Case[] = [
  {
    name: 'an empty node of 8 takes two pods of 4',
    input: { nodes: [node('a', 8)], podSpec: spec(4) },
    fits: 2,
    message: /^4 GPUs needed on one node, 8 of 8 free on a$/,
  },
  {
    name: 'a full node takes none',
    input: { nodes: [node('a', 4)], pods: [pod('a', 4)], podSpec: spec(4) },
    fits: 0,
    message: /0 of 4 free on a/,
  },
  {
    name: 'two half-free nodes do not add up to one pod',
    input: { nodes: [node('a', 4), node('b', 4)], pods: [pod('a', 2), pod('b', 2)], podSpec: spec(4) },
    fits: 0,
    message: /2 of 4 free on a, 2 of 4 free on b/,
  },
  {
    name: 'an ending pod still holds its GPUs and gives them back',
    input: { nodes: [node('a', 4)], pods: [pod('a', 4, { ending: true })], podSpec: spec(4) },
    fits: 0,
    afterReleases: 1,
    message: /0 of 4/,
  },
  {
    name: 'a pod that has ended holds nothing',
    input: { nodes: [node('a', 4)], pods: [pod('a', 4, { phase: 'Succeeded' })], podSpec: spec(4) },
    fits: 1,
    message: /4 of 4/,
  },
  {
    name: 'a pending pod without a node holds nothing',
    input: { nodes: [node('a', 4)], pods: [pod(undefined, 4, { phase: 'Pending' })], podSpec: spec(4) },
    fits: 1,
    message: /4 of 4/,
  },
  {
    name: 'a taint keeps pods away',
    input: {
      nodes: [node('a', 4, { spec: { taints: [{ key: 'team', value: 'x', effect: 'NoSchedule' }] } })],
      podSpec: spec(1),
    },
    fits: 0,
    message: /a is not usable because of its taint team/,
  },
  {
    name: 'a toleration lets them in',
    input: {
      nodes: [node('a', 4, { spec: { taints: [{ key: 'team', value: 'x', effect: 'NoSchedule' }] } })],
      podSpec: spec(1, { tolerations: [{ key: 'team', operator: 'Exists' }] }),
    },
    fits: 4,
    message: /4 of 4/,
  },
  {
    name: 'a cordoned node takes none',
    input: { nodes: [node('a', 4, { spec: { unschedulable: true } })], podSpec: spec(1) },
    fits: 0,
    message: /it is cordoned/,
  },
  {
    name: 'a node that is not ready takes none',
    input: { nodes: [node('a', 4, { ready: 'Unknown' })], podSpec: spec(1) },
    fits: 0,
    message: /it is not ready/,
  },
  {
    name: 'a node selector is obeyed',
    input: {
      nodes: [node('a', 4), node('b', 4, { labels: { zone: 'z1' } })],
      podSpec: spec(2, { nodeSelector: { zone: 'z1' } }),
    },
    fits: 2,
    message: /free on b$/,
  },
  {
    name: 'required node affinity is obeyed',
    input: {
      nodes: [node('a', 4, { labels: { model: 'h100' } }), node('b', 4, { labels: { model: 'l4' } })],
      podSpec: spec(4, {
        affinity: {
          nodeAffinity: {
            requiredDuringSchedulingIgnoredDuringExecution: {
              nodeSelectorTerms: [
                { matchExpressions: [{ key: 'model', operator: 'In', values: ['h100', 'h200'] }] },
              ],
            },
          },
        },
      }),
    },
    fits: 1,
    message: /free on a$/,
  },
  {
    name: 'a quota counts as well',
    input: {
      nodes: [node('a', 8)],
      podSpec: spec(2),
      quotas: [
        {
          apiVersion: 'v1',
          kind: 'ResourceQuota',
          metadata: { name: 'q' },
          spec: {},
          status: { hard: { [`requests.${resource}`]: '4' }, used: { [`requests.${resource}`]: '2' } },
        } as AnyObject,
      ],
    },
    fits: 1,
    message: /quota of nvidia\.com\/gpu leaves room for 1 more pods of 2/,
  },
  {
    name: 'no node reports the resource: unknown, not zero',
    input: {
      nodes: [node('a', 4)],
      resource: 'nvidia.com/mig-1g.5gb',
      podSpec: { containers: [{ resources: { limits: { 'nvidia.com/mig-1g.5gb': '1' } } }] },
    },
    message: /no node reports/,
  },
  {
    name: 'nodes that are not seen: unknown, not zero',
    input: { nodes: undefined, pods: [pod('a', 4)], podSpec: spec(4) },
    message: /cannot be estimated: the nodes are not seen$/,
  },
  {
    name: 'claimed devices: unknown',
    input: { nodes: [node('a', 4)], podSpec: spec(1, { resourceClaims: [{}] }) },
    message: /dynamic resource allocation/,
  },
  {
    name: 'scheduling gates: unknown',
    input: { nodes: [node('a', 4)], podSpec: spec(1, { schedulingGates: [{ name: 'kueue' }] }) },
    message: /scheduling gates/,
  },
  {
    name: 'another scheduler: unknown',
    input: { nodes: [node('a', 4)], podSpec: spec(1, { schedulerName: 'volcano' }) },
    message: /volcano/,
  },
];

for (const each of cases) {
  test(each.name, () => {
    const capacity = estimateCapacity({
      nodes: [],
      pods: [],
      quotas: [],
      resource,
      podSpec: spec(1),
      ...each.input,
    });
    assert.equal(capacity.known, each.fits !== undefined);
    if (capacity.known) {
      assert.equal(capacity.fits, each.fits);
      assert.equal(capacity.fitsAfterReleases, each.afterReleases ?? each.fits);
    }
    assert.match(capacity.message, each.message);
  });
}

test('init containers count at their peak, sidecars on top of what follows them', () => {
  assert.equal(podRequest({ containers: [gpus(2)], initContainers: [gpus(1)] }, resource), 2);
  assert.equal(podRequest({ containers: [gpus(1)], initContainers: [gpus(4)] }, resource), 4);
  assert.equal(
    podRequest(
      { containers: [gpus(2)], initContainers: [{ restartPolicy: 'Always', ...gpus(1) }] },
      resource,
    ),
    3,
  );
  assert.equal(
    podRequest(
      { containers: [gpus(1)], initContainers: [{ restartPolicy: 'Always', ...gpus(1) }, gpus(3)] },
      resource,
    ),
    4,
  );
});

test('what fits never exceeds the free GPUs, and no pod more would fit on any node', () => {
  const arbitrary = fc.record({
    nodes: fc.array(
      fc.record({
        size: fc.integer({ min: 0, max: 8 }),
        used: fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 3 }),
      }),
      { minLength: 1, maxLength: 5 },
    ),
    perPod: fc.integer({ min: 1, max: 8 }),
  });
  fc.assert(
    fc.property(arbitrary, ({ nodes, perPod }) => {
      const pods = nodes.flatMap(({ used }, i) => used.map((count) => pod(`n${i}`, count)));
      const capacity = estimateCapacity({
        nodes: nodes.map(({ size }, i) => node(`n${i}`, size)),
        pods,
        quotas: [],
        resource,
        podSpec: spec(perPod),
      });
      assert.ok(capacity.known);
      let expected = 0;
      for (const { size, used } of nodes) {
        let free = size - used.reduce((sum, count) => sum + count, 0);
        while (free >= perPod) {
          expected++;
          free -= perPod;
        }
      }
      assert.equal(capacity.fits, expected);
      assert.ok(capacity.fitsAfterReleases >= capacity.fits);
    }),
  );
});
