// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * What an author adds to the pods, on a real API server with the operator's program: strict validation takes all of it, and
 * what others' admission adds to it afterwards is left alone.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { type ResourceType, resources } from '../../../operator/kube/client.ts';
import { controlPlane, writeVerbs } from '../../support/control-plane.ts';
import { installCrd, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { pretendKubelet } from '../../support/pretend-kubelet.ts';

const operatorUser = 'sluice-operator';
const queue = 'kueue.x-k8s.io/queue-name';

async function stage(t: TestContext) {
  const plane = await controlPlane(t, { controllerManager: true });
  await installCrd(plane.client);
  const namespace = await plane.namespace(t);
  pretendKubelet(t, plane.client, namespace);
  const operator = await startOperator(
    t,
    plane.kubeconfigFor({ name: operatorUser, groups: ['system:masters'] }),
    [`--watch-namespaces=${namespace}`, `--namespace=${namespace}`, '--runtime-image=runtime:test'],
  );
  return { plane, namespace, operator };
}

test('everything that a template may add is taken by the API server', async (t) => {
  const { plane, namespace } = await stage(t);
  const priority = {
    apiVersion: 'scheduling.k8s.io/v1',
    kind: 'PriorityClass',
    metadata: { name: `high-${namespace}` },
    value: 1000,
  };
  await plane.client.create(priorityClasses, priority);
  t.after(() => plane.client.remove(priorityClasses, priority.metadata));
  const service = await ServiceUnderTest.create(plane.client, namespace, 'chat', {
    ...minimalSpec,
    template: {
      metadata: { labels: { team: 'a' }, annotations: { 'example.com/note': 'b' } },
      spec: {
        priorityClassName: priority.metadata.name,
        imagePullSecrets: [{ name: 'registry' }],
        schedulerName: 'volcano',
        tolerations: [{ key: 'nvidia.com/gpu', operator: 'Exists' }],
        resourceClaims: [{ name: 'gpus', resourceClaimTemplateName: 'two-gpus' }],
        volumes: [{ name: 'shm', emptyDir: { medium: 'Memory', sizeLimit: '1Gi' } }],
        initContainers: [{ name: 'logs', image: 'logs:1', restartPolicy: 'Always' }],
        containers: [
          {
            name: 'runtime',
            resources: { claims: [{ name: 'gpus' }], requests: { cpu: '2' } },
            volumeMounts: [{ name: 'shm', mountPath: '/dev/shm' }],
          },
          { name: 'proxy', image: 'proxy:1' },
        ],
      },
    },
  });
  await service.ready();
  const [pod] = await service.children('pods');
  const { priority: value, schedulerName, imagePullSecrets, resourceClaims, containers } = pod!.spec;
  assert.deepEqual(
    [value, schedulerName, imagePullSecrets, resourceClaims[0].resourceClaimTemplateName],
    [1000, 'volcano', [{ name: 'registry' }], 'two-gpus'],
  );
  assert.deepEqual(
    [...pod!.spec.initContainers, ...containers].map((each: any) => each.name),
    ['logs', 'runtime', 'proxy'],
  );
  assert.deepEqual([pod!.metadata.labels?.team, pod!.metadata.annotations?.['example.com/note']], ['a', 'b']);
});

test("Kueue's queue is named at the Deployment and its pods alone, and what Kueue adds there is no drift", async (t) => {
  const { plane, namespace, operator } = await stage(t);
  await kueue(t, plane.client, namespace);
  const service = await ServiceUnderTest.create(plane.client, namespace, 'chat', {
    ...minimalSpec,
    replicas: 2,
    template: { metadata: { labels: { [queue]: 'models', team: 'a' } } },
  });
  await service.ready();
  await operator.idle();
  const deployment = await service.deployment();
  const { template } = deployment.spec;
  assert.equal(deployment.metadata.labels?.[queue], 'models');
  assert.equal(template.metadata.labels[queue], 'models');
  assert.equal(template.metadata.annotations[suspendingParent], 'deployment', 'admission has been there');
  assert.equal(deployment.metadata.labels?.team, undefined);
  for (const kind of ['services', 'controllerRevisions'] as const)
    for (const { metadata } of await service.children(kind))
      assert.equal(metadata.labels?.[queue], undefined);

  const applies = async () =>
    (
      await plane.auditEvents({
        verbs: writeVerbs,
        username: operatorUser,
        namespace,
        resource: 'deployments',
      })
    ).filter(({ requestURI }) => !requestURI.includes('dryRun')).length;
  assert.equal(await applies(), 1);
  await service.edit({ replicas: 3 });
  await service.ready();
  await operator.idle();
  assert.equal(await applies(), 2);
  assert.equal((await service.children('replicaSets')).length, 1);
  // Another queue is another Deployment: of one whose pods are ready, Kueue lets nobody change it.
  await service.edit({ template: { metadata: { labels: { [queue]: 'others' } } } });
  await service.ready();
  const after = (await service.children('deployments')).filter(({ spec }) => spec.replicas > 0);
  assert.deepEqual(
    after.map(({ metadata }) => [metadata.name !== deployment.metadata.name, metadata.labels?.[queue]]),
    [[true, 'others']],
  );
});

const suspendingParent = 'kueue.x-k8s.io/pod-suspending-parent';
const priorityClasses: ResourceType = {
  group: 'scheduling.k8s.io',
  version: 'v1',
  kind: 'PriorityClass',
  plural: 'priorityclasses',
  namespaced: false,
};
const admission = (kind: string, plural: string): ResourceType => ({
  group: 'admissionregistration.k8s.io',
  version: 'v1',
  kind,
  plural,
  namespaced: false,
});

/** What Kueue's webhook does to a Deployment with a queue, by a policy of the API server's own. */
async function kueue(t: TestContext, client: any, namespace: string): Promise<void> {
  const name = `kueue-${namespace}`;
  const policies = admission('MutatingAdmissionPolicy', 'mutatingadmissionpolicies');
  const bindings = admission('MutatingAdmissionPolicyBinding', 'mutatingadmissionpolicybindings');
  const apiVersion = 'admissionregistration.k8s.io/v1';
  const annotated = `Object{spec: Object.spec{template: Object.spec.template{metadata: Object.spec.template.metadata{annotations: {"${suspendingParent}": "deployment"}}}}}`;
  await client.create(policies, {
    apiVersion,
    kind: policies.kind,
    metadata: { name },
    spec: {
      matchConstraints: {
        namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': namespace } },
        resourceRules: [
          {
            apiGroups: ['apps'],
            apiVersions: ['v1'],
            operations: ['CREATE', 'UPDATE'],
            resources: ['deployments'],
          },
        ],
      },
      matchConditions: [{ name: 'queued', expression: `'${queue}' in object.metadata.?labels.orValue({})` }],
      failurePolicy: 'Fail',
      reinvocationPolicy: 'Never',
      mutations: [{ patchType: 'ApplyConfiguration', applyConfiguration: { expression: annotated } }],
    },
  });
  t.after(() => client.remove(policies, { name }));
  await client.create(bindings, {
    apiVersion,
    kind: bindings.kind,
    metadata: { name },
    spec: { policyName: name },
  });
  t.after(() => client.remove(bindings, { name }));
  // A policy takes its time to be seen.
  const labels = { app: 'x', [queue]: 'models' };
  const deployment = {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { namespace, name: 'probe', labels },
    spec: {
      selector: { matchLabels: { app: 'x' } },
      template: { metadata: { labels }, spec: { containers: [{ name: 'x', image: 'x' }] } },
    },
  };
  await until('the policy is in force', async () => {
    const { spec } = await client.create(resources.deployments, deployment, { dryRun: true });
    return spec.template.metadata.annotations?.[suspendingParent] !== undefined;
  });
}
