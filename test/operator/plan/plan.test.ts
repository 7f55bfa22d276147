/** The plan: named cases over a small cluster, and properties over random histories of edits, crashes and hands. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import { badPath, fieldsOf, SimulatedCluster } from './simulated-cluster.ts';

const spec = (more: Partial<InferenceServiceSpec> = {}): InferenceServiceSpec => ({
  model: { path: '/tiny' },
  replicas: 2,
  storage: { persistentVolumeClaim: { claimName: 'models' } },
  ...more,
});
const withPath = (path: string, more: Partial<InferenceServiceSpec> = {}) =>
  spec({ model: { path }, ...more });

function settled(first: InferenceServiceSpec, gpus?: number): SimulatedCluster {
  const cluster = new SimulatedCluster(first, gpus);
  cluster.settle(10);
  assert.equal(cluster.condition('Ready')?.status, 'True');
  return cluster;
}

const verbs = (cluster: SimulatedCluster) =>
  cluster.plan().actions.map(({ verb, object }) => `${verb} ${object.kind}`);

test('a new service gets a Service, a record and a Deployment, and says that it starts', () => {
  const cluster = new SimulatedCluster(spec());
  assert.deepEqual(verbs(cluster), [
    'apply Service',
    'apply PodDisruptionBudget',
    'apply ControllerRevision',
    'apply Deployment',
  ]);
  cluster.reconcile();
  assert.deepEqual(
    cluster.service.status.conditions.map(
      (each: { type: string; status: string }) => `${each.type}=${each.status}`,
    ),
    ['Available=False', 'Ready=False', 'Reconciling=True', 'SpecUnderstood=True'],
  );
  assert.equal(cluster.condition('Reconciling').reason, 'Starting');
});

test('a settled service is available and ready, says nothing else, and plans nothing', () => {
  const cluster = settled(spec());
  assert.deepEqual(
    cluster.service.status.conditions.map(
      (each: { type: string; status: string }) => `${each.type}=${each.status}`,
    ),
    ['Available=True', 'Ready=True', 'SpecUnderstood=True'],
  );
  const plan = cluster.plan();
  assert.deepEqual(plan.actions, []);
  assert.deepEqual(plan.status, cluster.service.status, 'no write of the status either');
  const { currentRevision, updateRevision, replicas, readyReplicas } = plan.status;
  assert.equal(currentRevision, updateRevision);
  assert.deepEqual([replicas, readyReplicas], [2, 2]);
});

test('a change of replicas is made in place', () => {
  const cluster = settled(spec());
  const revision = cluster.service.status.currentRevision;
  cluster.edit(spec({ replicas: 5 }));
  assert.deepEqual(verbs(cluster), ['apply Deployment']);
  cluster.reconcile();
  assert.equal(cluster.condition('Reconciling').reason, 'Scaling');
  assert.equal(cluster.condition('Available').status, 'True');
  cluster.settle(5);
  assert.equal(cluster.readyPods, 5);
  assert.equal(cluster.service.status.currentRevision, revision);
});

test('several replicas have a budget for disruptions, a single one has none', () => {
  const cluster = settled(spec());
  assert.deepEqual(cluster.child('PodDisruptionBudget', 'chat')!.spec, {
    maxUnavailable: 1,
    selector: { matchLabels: { 'sluice.dev/service': 'chat', 'sluice.dev/role': 'runtime' } },
    unhealthyPodEvictionPolicy: 'AlwaysAllow',
  });
  cluster.edit(spec({ replicas: 1 }));
  cluster.settle(5);
  assert.equal(cluster.child('PodDisruptionBudget', 'chat'), undefined);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('scaled to zero: ready, and not available', () => {
  const cluster = settled(spec());
  cluster.edit(spec({ replicas: 0 }));
  cluster.settle(5);
  assert.equal(cluster.readyPods, 0);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.condition('Available').status, 'False');
  assert.equal(cluster.condition('Available').reason, 'ScaledToZero');
});

test('a new revision comes up beside the old one, which goes when the new one is ready as a whole', () => {
  const cluster = settled(spec());
  const old = cluster.service.status.currentRevision;
  cluster.edit(withPath('/tiny2'));
  for (let turn = 0; turn < 10; turn++) {
    cluster.reconcile();
    if (turn === 0) {
      assert.equal(cluster.condition('Reconciling').reason, 'RollingOut');
      assert.equal(cluster.condition('Available').status, 'True');
    }
    assert.ok(cluster.readyPods >= 2);
    cluster.turn();
  }
  assert.notEqual(cluster.service.status.currentRevision, old);
  assert.equal(cluster.child('Deployment', old), undefined);
  assert.ok(cluster.child('ControllerRevision', old), 'its record stays as history');
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('going back to an old spec reuses its record, rendering included, and makes it the newest', () => {
  const cluster = settled(spec());
  const old = cluster.service.status.currentRevision;
  const record = cluster.child('ControllerRevision', old)!;
  cluster.edit(withPath('/tiny2'));
  cluster.settle(10);
  cluster.edit(spec());
  cluster.settle(10);
  assert.equal(cluster.service.status.currentRevision, old);
  assert.deepEqual(cluster.child('ControllerRevision', old)!.data, record.data);
  assert.equal(cluster.child('ControllerRevision', old)!.revision, 3);
});

test('an edit during a rollout drops the revision in between and keeps the one that serves', () => {
  const cluster = settled(spec());
  const old = cluster.service.status.currentRevision;
  cluster.edit(withPath(badPath));
  cluster.settle(5);
  const bad = cluster.service.status.updateRevision;
  assert.ok(cluster.child('Deployment', bad));
  cluster.edit(withPath('/tiny3'));
  cluster.reconcile();
  assert.equal(cluster.child('Deployment', bad), undefined);
  assert.ok(cluster.child('Deployment', old));
  assert.equal(cluster.readyPods, 2);
  cluster.settle(10);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('a revision that never becomes ready leaves the old one serving for ever', () => {
  const cluster = settled(spec());
  cluster.edit(withPath(badPath));
  cluster.settle(50);
  assert.equal(cluster.readyPods, 2);
  assert.equal(cluster.condition('Ready').status, 'False');
  assert.equal(cluster.condition('Available').status, 'True');
});

test('a new default image moves nothing, and is used by the next revision', () => {
  const cluster = settled(spec());
  const { world } = cluster;
  const image = (name: string) =>
    cluster.child('Deployment', name)!.spec.template.spec.containers[0].image as string;
  const first = cluster.service.status.currentRevision;
  assert.deepEqual(cluster.plan().actions, []);
  assert.equal(image(first), 'runtime:1');
  assert.equal(world.children.length, 4);
});

test('on a full node old pods make room for new ones, one at a time, after that has been announced', () => {
  const cluster = settled(spec({ gpus: 2 }), 4);
  const old = cluster.service.status.currentRevision;
  cluster.edit(withPath('/tiny2', { gpus: 2 }));
  let announced = false;
  for (let turn = 0; (turn < 100 && cluster.condition('Ready').status !== 'True') || turn < 3; turn++) {
    const before = cluster.child('Deployment', old)?.spec.replicas;
    cluster.reconcile();
    const after = cluster.child('Deployment', old)?.spec.replicas;
    if (after < before) assert.ok(announced, 'said before it is done');
    announced ||= cluster.condition('Reconciling')?.reason === 'CapacityGap';
    cluster.turn(30);
    assert.ok(cluster.readyPods >= 1, 'one of two always serves');
  }
  assert.ok(announced);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.readyPods, 2);
});

test('a revision that could not use what the old pods free does not make them go', () => {
  const cluster = settled(spec({ gpus: 2 }), 4);
  cluster.edit(withPath('/tiny2', { gpus: 8 }));
  for (let turn = 0; turn < 50; turn++) {
    cluster.reconcile();
    cluster.turn(30);
    assert.equal(cluster.readyPods, 2);
  }
  assert.equal(cluster.condition('Reconciling').reason, 'CapacityWait');
  assert.match(cluster.condition('Reconciling').message, /Insufficient nvidia\.com\/gpu/);
});

test('room beside the old pods is used without a gap', () => {
  const cluster = settled(spec({ gpus: 2 }), 8);
  cluster.edit(withPath('/tiny2', { gpus: 2 }));
  for (let turn = 0; turn < 20; turn++) {
    cluster.reconcile();
    assert.notEqual(cluster.condition('Reconciling')?.reason, 'CapacityGap');
    assert.ok(cluster.readyPods >= 2);
    cluster.turn(30);
  }
  assert.equal(cluster.condition('Ready').status, 'True');
});

const foreign = (kind: string, name: string) => ({
  apiVersion: 'v1',
  kind,
  metadata: { name, namespace: 'prod', uid: 'foreign', labels: { app: 'other' } },
  spec: { theirs: true },
});

for (const kind of ['Service', 'Deployment', 'ControllerRevision']) {
  test(`a foreign ${kind} of a child's name is left alone and named in Stalled`, () => {
    const cluster = new SimulatedCluster(spec());
    const wanted = cluster.plan().actions.find((action) => action.object.kind === kind)!.object;
    const other = foreign(kind, wanted.metadata.name);
    cluster.put(other);
    const plan = cluster.plan();
    assert.ok(!plan.actions.some((action) => action.object.kind === kind));
    assert.equal(plan.requeueAfterMs, 10_000, 'its end need not be seen by a watch');
    cluster.reconcile();
    assert.deepEqual(cluster.child(kind, wanted.metadata.name), other);
    assert.equal(cluster.condition('Stalled').reason, 'NameConflict');
    assert.ok(cluster.condition('Stalled').message.includes(`${kind} "${wanted.metadata.name}"`));
    assert.equal(cluster.condition('Reconciling'), undefined);
    assert.equal(cluster.condition('Ready').status, 'False');
  });
}

test('a field that this operator does not know is said, and moves nothing', () => {
  const cluster = settled(spec());
  cluster.edit({ ...spec(), autoscaling: { maxReplicas: 3 } } as InferenceServiceSpec);
  const plan = cluster.reconcile();
  assert.deepEqual(plan.actions, []);
  assert.equal(cluster.condition('SpecUnderstood').status, 'False');
  assert.match(cluster.condition('SpecUnderstood').message, /spec\.autoscaling/);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('a value that this operator cannot read leaves everything as it is', () => {
  const cluster = settled(spec());
  cluster.edit({ ...spec({ replicas: 9 }), quantization: 'fp2' } as unknown as InferenceServiceSpec);
  const plan = cluster.reconcile();
  assert.deepEqual(plan.actions, []);
  assert.equal(cluster.condition('Stalled').reason, 'SpecNotUnderstood');
  assert.equal(cluster.condition('Available').status, 'True');
  assert.ok(plan.status.currentRevision);
});

test('a lost pod is Degraded, and its replacement settles it', () => {
  const cluster = settled(spec());
  const [pod] = cluster.podsOf(cluster.service.status.currentRevision);
  cluster.pods.delete(pod!.metadata.name);
  const deployment = cluster.child('Deployment', cluster.service.status.currentRevision)!;
  cluster.put({ ...deployment, status: { ...deployment.status, availableReplicas: 1, replicas: 1 } });
  cluster.reconcile();
  assert.equal(cluster.condition('Reconciling').reason, 'Degraded');
  assert.equal(cluster.condition('Available').status, 'True');
  cluster.settle(3);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('at most five records are kept beside those in use', () => {
  const cluster = settled(spec());
  for (let index = 0; index < 12; index++) {
    cluster.edit(withPath(`/model-${index}`));
    cluster.settle(6);
    assert.equal(cluster.condition('Ready').status, 'True');
  }
  const records = [...cluster.children.values()].filter((each) => each.kind === 'ControllerRevision');
  assert.equal(records.length, 6);
  assert.deepEqual(
    records.map((each) => each.revision).sort((a, b) => a - b),
    [8, 9, 10, 11, 12, 13],
  );
});

test('without its memory of what served, a plan keeps what is seen to serve', () => {
  const cluster = settled(spec());
  const old = cluster.service.status.currentRevision;
  cluster.service = { ...cluster.service, status: {} };
  cluster.edit(withPath(badPath));
  cluster.settle(10);
  assert.ok(cluster.child('Deployment', old));
  assert.equal(cluster.readyPods, 2);
});

test('whatever is edited, changed by hand or cut off, it ends settled', () => {
  const edit = fc.record({
    kind: fc.constant('edit' as const),
    path: fc.constantFrom('/a', '/b', badPath),
    replicas: fc.integer({ min: 1, max: 3 }),
    gpus: fc.constantFrom(0, 2),
  });
  const step = fc.oneof(
    edit,
    fc.record({ kind: fc.constant('reconcile' as const) }),
    fc.record({ kind: fc.constant('crash' as const), after: fc.integer({ min: 0, max: 4 }) }),
    fc.record({ kind: fc.constant('turn' as const), seconds: fc.constantFrom(1, 60, 200) }),
    fc.record({ kind: fc.constant('delete' as const), which: fc.nat(20) }),
    fc.record({ kind: fc.constant('deface' as const), which: fc.nat(20) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), fc.constantFrom(6, 7, 12), (steps, gpus) => {
      const cluster = new SimulatedCluster(withPath('/a', { gpus: 2 }), gpus);
      for (const each of steps) {
        if (each.kind === 'edit')
          cluster.edit(withPath(each.path, { replicas: each.replicas, gpus: each.gpus }));
        else if (each.kind === 'reconcile') cluster.reconcile();
        else if (each.kind === 'crash') cluster.reconcile(each.after);
        else if (each.kind === 'turn') cluster.turn(each.seconds);
        else meddle(cluster, each.kind, each.which);
      }
      cluster.edit(withPath('/last', { replicas: 3, gpus: 2 }));
      cluster.settle(80);
      assert.equal(cluster.condition('Ready')?.status, 'True', JSON.stringify(cluster.service.status));
      assert.equal(cluster.readyPods, 3);
      assert.equal(cluster.podsOf(cluster.service.status.currentRevision).length, cluster.pods.size);
      assert.deepEqual(cluster.plan().actions, []);
    }),
    { numRuns: 100 },
  );
});

test('with room for both, edits and crashes never leave fewer ready pods than were asked for all along', () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('edit' as const), path: fc.constantFrom('/a', '/b', '/c', badPath) }),
    fc.record({ kind: fc.constant('crash' as const), after: fc.integer({ min: 0, max: 4 }) }),
    fc.record({ kind: fc.constant('reconcile' as const) }),
    fc.record({ kind: fc.constant('turn' as const) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const cluster = settled(spec({ gpus: 1 }), 100);
      for (const each of steps) {
        if (each.kind === 'edit') cluster.edit(withPath(each.path, { gpus: 1 }));
        else if (each.kind === 'crash') cluster.reconcile(each.after);
        else if (each.kind === 'reconcile') cluster.reconcile();
        else cluster.turn();
        assert.ok(cluster.readyPods >= 2, `${cluster.readyPods} ready after ${JSON.stringify(each)}`);
      }
    }),
    { numRuns: 100 },
  );
});

/** A hand that deletes a child, or changes a field of its spec and with it takes the field over. */
function meddle(cluster: SimulatedCluster, how: 'delete' | 'deface', which: number): void {
  const children = [...cluster.children.values()];
  const child = children[which % Math.max(1, children.length)];
  if (child === undefined) return;
  const { kind, metadata } = child;
  if (how === 'delete') cluster.children.delete(`${kind}/${metadata.name}`);
  else if (kind === 'Deployment')
    cluster.put({
      ...child,
      metadata: {
        ...metadata,
        generation: (metadata.generation ?? 0) + 1,
        managedFields: [
          ...(metadata.managedFields ?? []),
          { manager: 'kubectl', operation: 'Update', fieldsV1: { 'f:spec': fieldsOf({ paused: true }) } },
        ],
      },
      spec: { ...child.spec, paused: true },
    });
}

test('a template that the API server refuses opens no gap on a full node, and leaves no record', () => {
  const cluster = settled(spec({ gpus: 1 }), 2);
  cluster.seesNodes = true;
  const records = () => [...cluster.children.values()].filter(({ kind }) => kind === 'ControllerRevision');
  const before = records().length;
  cluster.refusals.set('/tiny2', 'spec.template.spec.priority: Invalid value: "high"');
  cluster.edit(withPath('/tiny2', { gpus: 1 }));
  for (let turn = 0; turn < 10; turn++) {
    cluster.reconcile();
    assert.equal(cluster.readyPods, 2);
    cluster.turn(60);
  }
  assert.equal(cluster.condition('Stalled').reason, 'TemplateInvalid');
  assert.equal(cluster.condition('PreflightPassed').status, 'False');
  assert.equal(records().length, before);
  cluster.refusals.clear();
  cluster.settle(20);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.condition('PreflightPassed'), undefined);
});
