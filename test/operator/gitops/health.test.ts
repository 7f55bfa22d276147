/**
 * What Argo CD and Flux make of every moment of a service's life: the table of conditions, and histories that the plan
 * itself wrote, judged by the interpreters that the two embed.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { parse, parseAllDocuments } from 'yaml';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import type { AnyObject } from '../../../operator/api/objects.ts';
import { judge, type Verdict } from '../../support/gitops-judge.ts';
import { badPath, crashPath, SimulatedCluster } from '../plan/simulated-cluster.ts';

const root = path.resolve(import.meta.dirname, '../../..');

/** `Available` and `Ready` as given; the others, present only while true, with their reasons. */
function object(
  available: boolean,
  ready: boolean,
  more: Record<string, string> = {},
  generations: readonly [number, number] = [3, 3],
): AnyObject {
  const [generation, observedGeneration] = generations;
  const condition = (type: string, status: boolean, reason: string) => ({
    type,
    status: status ? 'True' : 'False',
    reason,
    message: `the message of ${type}`,
    observedGeneration,
    lastTransitionTime: '2026-01-01T00:00:00Z',
  });
  return {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'InferenceService',
    metadata: { name: 'chat', namespace: 'prod', generation },
    status: {
      observedGeneration,
      conditions: [
        condition('Available', available, 'PodsReady'),
        condition('Ready', ready, ready ? 'Settled' : 'NotSettled'),
        ...Object.entries(more).map(([type, reason]) => condition(type, true, reason)),
      ],
    },
  };
}

type Row = readonly [moment: string, object: AnyObject, argo: string, flux: Verdict['flux']];
const { status: _, ...untouched } = object(false, false);
// biome-ignore format: a table.
const rows: readonly Row[] = [
  ['the operator has not looked yet', untouched as AnyObject, 'Progressing', 'Unknown'],
  ['an empty status', { ...untouched, status: {} } as AnyObject, 'Progressing', 'InProgress'],
  ['the status is about an older spec', object(true, true, {}, [4, 3]), 'Progressing', 'InProgress'],
  [
    'a failure is about an older spec',
    object(true, false, { Stalled: 'RolledBack' }, [4, 3]),
    'Progressing',
    'InProgress',
  ],
  ['first start, loading', object(false, false, { Reconciling: 'Starting' }), 'Progressing', 'InProgress'],
  ['settled', object(true, true), 'Healthy', 'Current'],
  [
    'surge, canary step, analysis',
    object(true, false, { Reconciling: 'RollingOut' }),
    'Progressing',
    'InProgress',
  ],
  [
    'waiting for a person',
    object(true, false, { Reconciling: 'ManualPause', Paused: 'ManualPause' }),
    'Suspended',
    'InProgress',
  ],
  ['recreate gap', object(false, false, { Reconciling: 'CapacityGap' }), 'Progressing', 'InProgress'],
  ['waiting for capacity', object(true, false, { Reconciling: 'CapacityWait' }), 'Progressing', 'InProgress'],
  ['rolled back', object(true, false, { Stalled: 'RolledBack' }), 'Degraded', 'Failed'],
  ['cannot ever work', object(false, false, { Stalled: 'TemplateInvalid' }), 'Degraded', 'Failed'],
  [
    'cannot ever work, and an older revision serves',
    object(true, false, { Stalled: 'PreflightFailed' }),
    'Degraded',
    'Failed',
  ],
  ['scaled to zero, suspended', object(false, true), 'Healthy', 'Current'],
  [
    'pinned to a revision by rollbackTo, on the way there',
    object(true, false, { Reconciling: 'RollingOut', Paused: 'PinnedToRevision' }),
    'Progressing',
    'InProgress',
  ],
  [
    'pinned to a revision by rollbackTo, and it serves',
    object(true, true, { Paused: 'PinnedToRevision' }),
    'Healthy',
    'Current',
  ],
  [
    'a pod cannot start, within the deadline',
    object(true, false, { Reconciling: 'ImagePullFailed' }),
    'Progressing',
    'InProgress',
  ],
  [
    'deadline passed, nothing to return to',
    object(false, false, { Stalled: 'ProgressDeadlineExceeded' }),
    'Degraded',
    'Failed',
  ],
  [
    'stalled while paused',
    object(true, false, { Stalled: 'RolledBack', Paused: 'ManualPause' }),
    'Degraded',
    'Failed',
  ],
  ['settled, then a pod lost', object(true, false, { Reconciling: 'Degraded' }), 'Progressing', 'InProgress'],
];

test('the table of conditions: each moment as Argo CD and Flux see it', () => {
  const verdicts = judge(rows.map(([, each]) => each));
  assert.deepEqual(
    rows.map(([moment], index) => [moment, verdicts[index]!.argo, verdicts[index]!.flux]),
    rows.map(([moment, , argo, flux]) => [moment, argo, flux]),
  );
});

test('Argo CD shows the reason and the words of the condition', () => {
  const [verdict] = judge([object(true, false, { Stalled: 'RolledBack' })]);
  assert.equal(verdict!.message, 'RolledBack: the message of Stalled');
});

test('an object that is being deleted is progressing for Argo CD, whatever it was', () => {
  const settled = object(true, true);
  const metadata = { ...settled.metadata, deletionTimestamp: '2026-01-01T00:00:00Z' };
  assert.equal(judge([{ ...settled, metadata }])[0]!.argo, 'Progressing');
});

const spec = (more: Partial<InferenceServiceSpec> = {}): InferenceServiceSpec => ({
  model: { path: '/tiny' },
  replicas: 2,
  storage: { persistentVolumeClaim: { claimName: 'models' } },
  ...more,
});

/** The object after each reconcile, as long as the story goes on. */
function record(
  story: (cluster: SimulatedCluster, reconcile: () => void) => void,
  gpus?: number,
): AnyObject[] {
  const cluster = new SimulatedCluster(spec(gpus === undefined ? {} : { gpus: 1, replicas: gpus }), gpus);
  const history: AnyObject[] = [];
  story(cluster, () => {
    history.push(cluster.service);
    cluster.reconcile();
    history.push(cluster.service);
    cluster.turn(60);
  });
  return history;
}

const repeat = (count: number, work: () => void): void => {
  for (let index = 0; index < count; index++) work();
};

/** Verdicts in the order seen, each once in a row: `Progressing/InProgress`. */
function course(history: readonly AnyObject[]): string[] {
  const verdicts = judge(history).map(({ argo, flux }) => `${argo}/${flux}`);
  return verdicts.filter((each, index) => each !== verdicts[index - 1]);
}

/** Each verdict followed by the next one: what most stories begin with. */
const started = ['Progressing/Unknown', 'Progressing/InProgress', 'Healthy/Current'];
const edited = (
  cluster: SimulatedCluster,
  reconcile: () => void,
  more: Partial<InferenceServiceSpec>,
): void => {
  repeat(6, reconcile);
  cluster.edit(spec(more));
  repeat(8, reconcile);
};

const stories: Record<string, { gpus?: number; story: Parameters<typeof record>[0]; seen: string[] }> = {
  'a first start': {
    story: (_cluster, reconcile) => repeat(6, reconcile),
    seen: ['Progressing/Unknown', 'Progressing/InProgress', 'Healthy/Current'],
  },
  'a change of the model': {
    story: (cluster, reconcile) => {
      repeat(6, reconcile);
      cluster.edit(spec({ model: { path: '/tiny2' } }));
      repeat(8, reconcile);
    },
    seen: [
      'Progressing/Unknown',
      'Progressing/InProgress',
      'Healthy/Current',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a change where every GPU is taken': {
    gpus: 2,
    story: (cluster, reconcile) => {
      repeat(6, reconcile);
      cluster.edit(spec({ gpus: 1, model: { path: '/tiny2' } }));
      repeat(20, reconcile);
    },
    seen: [
      'Progressing/Unknown',
      'Progressing/InProgress',
      'Healthy/Current',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'scaled to zero and up again': {
    story: (cluster, reconcile) => {
      repeat(6, reconcile);
      for (const replicas of [0, 1]) {
        cluster.edit(spec({ replicas }));
        repeat(6, reconcile);
      }
    },
    seen: [
      'Progressing/Unknown',
      'Progressing/InProgress',
      'Healthy/Current',
      'Progressing/InProgress',
      'Healthy/Current',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a template that the API server refuses, and its correction': {
    story: (cluster, reconcile) => {
      cluster.refusals.set('/tiny2', 'spec.template.spec.containers[0].tty: expected boolean');
      edited(cluster, reconcile, { model: { path: '/tiny2' } });
      edited(cluster, reconcile, { model: { path: '/tiny3' } });
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Degraded/Failed',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a first template that is refused': {
    story: (cluster, reconcile) => {
      cluster.refusals.set('/tiny', 'spec.template.spec.containers[0].tty: expected boolean');
      repeat(4, reconcile);
    },
    seen: ['Progressing/Unknown', 'Degraded/Failed'],
  },
  'a revision that crashes, is rolled back and tried again, and the way back by the spec': {
    story: (cluster, reconcile) => {
      edited(cluster, reconcile, { model: { path: crashPath } });
      cluster.hold('Retry');
      repeat(8, reconcile);
      cluster.edit(spec());
      repeat(4, reconcile);
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Degraded/Failed',
      'Progressing/InProgress',
      'Degraded/Failed',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a revision that crashes, where everything is to stay as it is': {
    story: (cluster, reconcile) =>
      edited(cluster, reconcile, { model: { path: crashPath }, rollout: { onFailure: 'Hold' } }),
    seen: [...started, 'Progressing/InProgress', 'Degraded/Failed'],
  },
  'a first revision that crashes': {
    story: (cluster, reconcile) => {
      cluster.edit(spec({ model: { path: crashPath }, rollout: { progressDeadlineSeconds: 600 } }));
      repeat(20, reconcile);
    },
    seen: ['Progressing/Unknown', 'Progressing/InProgress', 'Degraded/Failed'],
  },
  'a pause in the spec, and its end': {
    story: (cluster, reconcile) => {
      edited(cluster, reconcile, { model: { path: '/tiny2' }, rollout: { paused: true } });
      edited(cluster, reconcile, { model: { path: '/tiny2' } });
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Suspended/InProgress',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  "a person's hold on a rollout, which the next change ends": {
    story: (cluster, reconcile) => {
      repeat(6, reconcile);
      cluster.edit(spec({ model: { path: '/tiny2' } }));
      reconcile();
      cluster.hold('Pause');
      repeat(4, reconcile);
      cluster.edit(spec({ model: { path: '/tiny3' } }));
      repeat(8, reconcile);
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Suspended/InProgress',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a promotion by hand': {
    story: (cluster, reconcile) => {
      edited(cluster, reconcile, { model: { path: '/tiny2' }, rollout: { promotion: 'Manual' } });
      cluster.hold('Promote');
      repeat(8, reconcile);
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Suspended/InProgress',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
  'a return to an earlier revision, which stays': {
    story: (cluster, reconcile) => {
      repeat(6, reconcile);
      const { currentRevision } = cluster.service.status;
      edited(cluster, reconcile, { model: { path: '/tiny2' } });
      edited(cluster, reconcile, { model: { path: '/tiny2' }, rollout: { rollbackTo: currentRevision } });
    },
    seen: [
      ...started,
      'Progressing/InProgress',
      'Healthy/Current',
      'Progressing/InProgress',
      'Healthy/Current',
    ],
  },
};
for (const [name, { gpus, story, seen }] of Object.entries(stories)) {
  test(`what is seen of ${name}`, () => {
    assert.deepEqual(course(record(story, gpus)), seen);
  });
}

test('a revision that never becomes ready is never called healthy', () => {
  const history = record((cluster, reconcile) => {
    repeat(6, reconcile);
    cluster.edit(spec({ model: { path: badPath } }));
    repeat(30, reconcile);
  });
  const after = history.filter((each) => each.metadata.generation === 2);
  for (const { argo, flux } of judge(after)) {
    assert.notEqual(argo, 'Healthy');
    assert.notEqual(flux, 'Current');
  }
});

test('the examples hold the checks as they are shipped', () => {
  const read = (file: string) => readFileSync(path.join(root, file), 'utf8');
  const documents = (file: string) => parseAllDocuments(read(file)).map((each) => each.toJS());
  const config = documents('examples/gitops/argocd/argocd-cm.yaml')[0];
  assert.equal(
    config.data['resource.customizations.health.sluice.dev_InferenceService'],
    read('gitops/argocd/health.lua'),
  );
  const kustomizations = documents('examples/gitops/flux/clusters/production/models.yaml');
  const models = kustomizations.find((each) => each.kind === 'Kustomization');
  assert.deepEqual(
    models.spec.healthCheckExprs,
    parse(read('gitops/flux/health-checks.yaml')).healthCheckExprs,
  );
});
