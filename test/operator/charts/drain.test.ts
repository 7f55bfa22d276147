// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * A node is drained through the eviction API, on a real control plane with the real scheduler: the budget is respected, a
 * single replica moves with a word about it, and all of it in a namespace that enforces the standard "restricted".
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KubeError, type KubeObject, resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { gpuNodes } from '../../support/gpu-nodes.ts';
import { enforceRestricted, installCrd, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { pending, ready } from '../../support/pretend-kubelet.ts';

test('a drain takes one pod of two at a time, and the only pod of another service with a word about it', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  await enforceRestricted(client, namespace);
  const nodes = await gpuNodes(t, client, { 'drain-a': 4, 'drain-b': 4 });
  await startOperator(t, plane.kubeconfigFor({ name: 'sluice-operator', groups: ['system:masters'] }), [
    `--watch-namespaces=${namespace}`,
    `--namespace=${namespace}`,
    '--runtime-image=runtime:test',
  ]);
  const spec = (replicas: number) => ({
    model: { path: '/tiny' },
    gpus: 1,
    replicas,
    storage: { persistentVolumeClaim: { claimName: 'models' } },
    // Any volume will do: no container runs here.
    template: { spec: { volumes: [{ name: 'models', emptyDir: {} }] } },
  });
  const pair = await ServiceUnderTest.create(client, namespace, 'pair', spec(2));
  const single = await ServiceUnderTest.create(client, namespace, 'single', spec(1));
  await pair.ready();
  await single.ready();
  const evict = async (pod: KubeObject): Promise<number> => {
    const { name } = pod.metadata;
    try {
      await client.create(
        resources.pods,
        { apiVersion: 'policy/v1', kind: 'Eviction', metadata: { namespace, name } },
        { subresource: 'eviction' },
      );
      return 201;
    } catch (error) {
      if (error instanceof KubeError) return error.status;
      throw error;
    }
  };
  // The budget has to know of the pods first.
  await until('the budget allows one to go', async () => {
    const found = await client.get(resources.podDisruptionBudgets, { namespace, name: 'pair' });
    return found?.status?.disruptionsAllowed === 1;
  });

  // Nothing becomes ready for now, so that the budget stays used.
  nodes.look = pending;
  const [first, second] = await pair.children('pods');
  assert.equal(await evict(first!), 201);
  assert.equal(await evict(second!), 429, 'the second one has to wait');
  nodes.look = ready;
  await pair.ready();
  await until('the second one may go', async () => (await evict(second!)) === 201);
  await pair.ready();

  nodes.look = pending;
  const [only] = await single.children('pods');
  assert.equal(await evict(only!), 201, 'a budget would only block the drain of a single replica');
  const { message } = await single.condition('Ready', 'False');
  assert.match(message, /evicted|drained/);
  await until('an Event says it too', async () => {
    const { items } = await client.list(resources.events, {
      namespace,
      fieldSelector: 'involvedObject.name=single,reason=Degraded',
    });
    return items.some((each) => each.message === message);
  });
  nodes.look = ready;
  const status = await single.ready();
  assert.equal(status.readyReplicas, 1);
  const after = (await single.children('pods')).find((pod) => pod.metadata.deletionTimestamp === undefined);
  assert.notEqual(after?.metadata.uid, only!.metadata.uid);
});
