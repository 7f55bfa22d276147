// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * Rollouts by the operator's program on a real API server, with the real scheduler, Deployment and Job controllers and
 * nodes with GPUs. What becomes of pods that are bound is written by the test, as a kubelet would.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { type GpuNodes, gpuNodes } from '../../support/gpu-nodes.ts';
import { installCrd, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { crashing, imageMissing, type PodLook, ready } from '../../support/pretend-kubelet.ts';
import { ServingPods } from '../../support/serving-pods.ts';

const spec = {
  ...minimalSpec,
  gpus: 4,
  rollout: { capacity: { waitSeconds: 5 } },
  // The scheduler would wait for the claim.
  template: { spec: { volumes: [{ name: 'models', emptyDir: {} }] } },
};

interface Stage {
  readonly nodes: GpuNodes;
  readonly service: ServiceUnderTest;
  readonly pods: ServingPods;
}

async function stage(
  t: TestContext,
  gpus: number,
  first: object = spec,
  look: PodLook = ready,
): Promise<Stage> {
  const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  const nodes = await gpuNodes(t, client, { [`${namespace}-node`]: gpus });
  nodes.look = look;
  // It looks after all namespaces: so it sees nodes, and pods of others.
  const operator = await startOperator(t, plane.kubeconfig, [
    '--no-leader-elect',
    '--runtime-image=runtime:test',
  ]);
  t.after(() => operator.end('SIGKILL'));
  const service = await ServiceUnderTest.create(client, namespace, 'chat', first);
  await service.ready();
  const pods = await ServingPods.watch(t, client, namespace);
  return { nodes, service, pods };
}

test('a full node: announced, recreated in place, no deadlock', async (t) => {
  const { service } = await stage(t, 4);
  await service.edit({ model: { path: '/tiny2' } });
  const { message } = await service.condition('Reconciling', 'True', 'CapacityGap');
  assert.match(message, /4 GPUs needed on one node, 0 of 4 free on .*-node: recreate in place/);
  const { rollout } = await service.ready();
  assert.equal(rollout.decision, 'Recreate');
  await until('one Deployment', async () => (await service.children('deployments')).length === 1);
  const events = await service.client.list(resources.events, {
    namespace: service.namespace,
    fieldSelector: 'involvedObject.name=chat',
  });
  assert.ok(events.items.some((event) => event.reason === 'RolloutRecreate'));
});

test('eight GPUs: a surge, and there is always a ready pod', async (t) => {
  const { service, pods } = await stage(t, 8);
  await service.edit({ model: { path: '/tiny2' } });
  const { rollout } = await service.ready();
  assert.equal(rollout.decision, 'Surge');
  assert.match(rollout.message, /4 of 8 free/);
  assert.ok(pods.fewest >= 1);
});

const failures: Record<string, { look: PodLook; reason: string; says: RegExp }> = {
  crashes: { look: crashing(1, 'segmentation of the mind'), reason: 'CrashLoop', says: /segmentation/ },
  'is refused by the runtime': {
    look: crashing(2, 'sluice: --max-length "0": the form is an integer'),
    reason: 'RuntimeConfigRejected',
    says: /--max-length "0"/,
  },
  'never becomes ready': {
    look: () => ({ phase: 'Running', conditions: [{ type: 'Ready', status: 'False' }] }),
    reason: 'ProgressDeadlineExceeded',
    says: /within 5 seconds/,
  },
};

test('a revision that fails is rolled back while the stable one serves, and a retry tries it again', async (t) => {
  const { service, nodes, pods } = await stage(t, 8);
  const { currentRevision: stable } = await service.ready();
  let look: PodLook = ready;
  nodes.look = (pod) => (pod.metadata.labels?.['sluice.dev/revision'] === stable ? ready(pod) : look(pod));
  for (const [name, failure] of Object.entries(failures)) {
    await t.test(name, async () => {
      look = failure.look;
      await service.edit({
        model: { path: `/${failure.reason.toLowerCase()}` },
        rollout: { progressDeadlineSeconds: failure.reason === 'ProgressDeadlineExceeded' ? 5 : 1800 },
      });
      const { message } = await service.condition('Stalled', 'True', 'RolledBack');
      assert.ok(message.includes(failure.reason), message);
      assert.match(message, failure.says);
      await service.condition('Available', 'True');
      const { status } = await service.get();
      assert.equal(status.currentRevision, stable);
      assert.equal((await service.children('deployments')).length, 1);
    });
  }
  assert.ok(pods.fewest >= 1);
  look = ready;
  await service.hold('Retry');
  const status = await service.ready();
  assert.notEqual(status.currentRevision, stable);
  assert.equal(status.rollout.hold, undefined, 'done, though another manager wrote it');
});

test('an image that is not there is rolled back', async (t) => {
  const { service, nodes, pods } = await stage(t, 8);
  nodes.look = (pod) => (pod.spec.containers[0].image === 'missing:1' ? imageMissing(pod) : ready(pod));
  await service.edit({ image: 'missing:1' });
  await service.condition('Reconciling', 'True', 'ImagePullFailed');
  const { message } = await service.condition('Stalled', 'True', 'RolledBack');
  assert.match(message, /ImagePullFailed: .*"missing:1"/);
  assert.ok(pods.fewest >= 1);
});

test('a branch of the hub: pinned by a Job, tracked when asked, and undone although it has moved', async (t) => {
  let commit = 'a'.repeat(40);
  const look: PodLook = (pod) => {
    if (pod.metadata.labels?.['sluice.dev/role'] !== 'resolve') return ready(pod);
    assert.deepEqual(pod.spec.containers[0].args.slice(0, 2), ['resolve', 'org/tiny']);
    const message = JSON.stringify({ commit, architecture: 'LlamaForCausalLM', bytes: 1 });
    const terminated = { exitCode: 0, message };
    return {
      phase: 'Succeeded',
      containerStatuses: [
        { name: 'runtime', image: 'x', imageID: '', ready: false, restartCount: 0, state: { terminated } },
      ],
    };
  };
  const model = { path: 'org/tiny' };
  const { service, pods } = await stage(t, 8, { model, gpus: 1 }, look);
  const { currentRevision: first } = await service.ready();
  const commitOf = async () => {
    const { status } = await service.get();
    return status.revisions.find((each: any) => each.name === status.currentRevision)?.commit;
  };
  assert.equal(await commitOf(), 'a'.repeat(40));
  commit = 'b'.repeat(40);
  await service.edit({ model: { updatePolicy: 'Track', trackIntervalSeconds: 2 } });
  await until('the new commit serves', async () => (await commitOf()) === 'b'.repeat(40));
  await service.edit({ rollout: { rollbackTo: first } });
  await until('the first serves again', async () => (await commitOf()) === 'a'.repeat(40));
  await service.ready();
  assert.ok(pods.fewest >= 1);
});
