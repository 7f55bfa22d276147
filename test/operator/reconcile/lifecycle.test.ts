// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * The operator's program on a real API server with the real controller manager: apply, scale, edit every field, hands,
 * strangers, restarts, deletion. Pods' status is written by the test, as scheduler and kubelet would.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { fieldEffects } from '../../../operator/api/field-effects.ts';
import { specSchema } from '../../../operator/api/inference-service.ts';
import { revisionInputs, revisionName } from '../../../operator/api/revision.ts';
import { type KubeObject, type ResourceType, resources } from '../../../operator/kube/client.ts';
import { controlPlane, type TestControlPlane, writeVerbs } from '../../support/control-plane.ts';
import {
  enforceRestricted,
  installCrd,
  minimalSpec,
  ServiceUnderTest,
} from '../../support/inference-services.ts';
import { type OperatorProcess, startOperator, until } from '../../support/operator-process.ts';
import {
  crashing,
  imageMissing,
  pretendKubelet,
  ready,
  unschedulable,
} from '../../support/pretend-kubelet.ts';

const operatorUser = 'sluice-operator';

interface Stage {
  readonly plane: TestControlPlane;
  readonly namespace: string;
  readonly kubeconfig: string;
}

async function stage(t: TestContext): Promise<Stage> {
  const plane = await controlPlane(t, { controllerManager: true });
  await installCrd(plane.client);
  const kubeconfig = plane.kubeconfigFor({ name: operatorUser, groups: ['system:masters'] });
  return { plane, namespace: await plane.namespace(t), kubeconfig };
}

/** One operator for the namespace of one test. */
function operate(
  t: TestContext,
  { kubeconfig, namespace }: Stage,
  args: string[] = [],
  image = 'runtime:test',
): Promise<OperatorProcess> {
  const own = [`--watch-namespaces=${namespace}`, `--namespace=${namespace}`, `--runtime-image=${image}`];
  return startOperator(t, kubeconfig, [...own, ...args]);
}

/** What the operator wrote since the mark: verb, resource and name, without leases, Events and questions. */
async function writes({ plane, namespace }: Stage, since: number): Promise<string[]> {
  const events = await plane.auditEvents({ verbs: writeVerbs, username: operatorUser, namespace, since });
  return events
    .filter((event) => !['leases', 'events'].includes(event.objectRef?.resource ?? ''))
    .filter((event) => !event.requestURI.includes('dryRun=All'))
    .map(({ verb, objectRef: { resource, subresource, name } = {} }) =>
      [verb, subresource === undefined ? resource : `${resource}/${subresource}`, name].join(' '),
    );
}

test('apply, scale, delete, in a namespace that enforces the Pod Security Standard "restricted"', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  await enforceRestricted(client, on.namespace);
  pretendKubelet(t, client, on.namespace);
  await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat', {
    model: { path: '/tiny', servedNames: ['chat'] },
    gpus: 2,
    storage: { persistentVolumeClaim: { claimName: 'models', subPath: 'a' } },
  });
  const status = await service.ready();
  assert.equal(status.currentRevision, status.updateRevision);
  assert.equal(status.url, `http://chat.${on.namespace}.svc`);
  assert.deepEqual([status.replicas, status.readyReplicas], [1, 1]);

  const deployment = await service.deployment();
  assert.equal(deployment.metadata.name, status.currentRevision);
  const [container] = deployment.spec.template.spec.containers;
  assert.equal(container.image, 'runtime:test');
  assert.deepEqual(container.args, ['serve', '--model-path=/models/tiny', '--served-model-name=chat']);
  assert.deepEqual(container.resources.limits, { 'nvidia.com/gpu': '2' });
  const [cluster] = await service.children('services');
  assert.equal(cluster!.metadata.name, 'chat');
  assert.deepEqual(
    cluster!.spec.ports.map((port: any) => [port.port, port.targetPort]),
    [[80, 'http']],
  );

  const scale = await client.get(resources.inferenceServices, service);
  assert.equal(scale?.spec.replicas, 1);
  await client.mergePatch(
    resources.inferenceServices,
    service,
    { spec: { replicas: 3 } },
    { subresource: 'scale' },
  );
  await service.ready();
  assert.equal((await service.deployment()).metadata.uid, deployment.metadata.uid, 'in place');
  assert.equal((await service.get()).status.readyReplicas, 3);

  await service.edit({ replicas: 0 });
  await service.ready();
  await service.condition('Available', 'False', 'ScaledToZero');
  await service.edit({ replicas: 1 });
  await service.ready();

  await service.remove();
  await until('nothing is left', async () => {
    for (const kind of ['pods', 'replicaSets', 'deployments', 'services', 'controllerRevisions'] as const)
      if ((await service.children(kind)).length > 0) return false;
    return true;
  });
});

/** A value for each leaf of the schema, and how the pods show it. */
const edits: Record<string, { patch: object; shows?: (template: any) => unknown; as?: unknown }> = {
  'model.path': arg({ model: { path: '/tiny2' } }, '--model-path=/models/tiny2'),
  'model.servedNames': arg({ model: { servedNames: ['other'] } }, '--served-model-name=other'),
  'model.weightFiles': arg(
    { model: { weightFiles: ['w.safetensors'] } },
    '--weight-path=/models/tiny2/w.safetensors',
  ),
  gpus: {
    patch: { gpus: 1 },
    shows: (template) => template.spec.containers[0].resources.limits,
    as: { 'nvidia.com/gpu': '1' },
  },
  gpuResource: {
    patch: { gpuResource: 'amd.com/gpu' },
    shows: (template) => template.spec.containers[0].resources.limits,
    as: { 'amd.com/gpu': '1' },
  },
  quantization: arg({ quantization: 'float32' }, '--quantization-encoding=float32'),
  replicas: { patch: { replicas: 2 } },
  image: {
    patch: { image: 'runtime:other' },
    shows: (template) => template.spec.containers[0].image,
    as: 'runtime:other',
  },
  'runtime.quantizationBlockSize': arg(
    { runtime: { quantizationBlockSize: 64 } },
    '--quantization-block-size=64',
  ),
  'runtime.quantizedCompute': arg(
    { runtime: { quantizedCompute: 'float32' } },
    '--quantized-compute=float32',
  ),
  'runtime.prefillWeights': arg({ runtime: { prefillWeights: 'none' } }, '--prefill-weights=none'),
  'runtime.threads': arg({ runtime: { threads: 1 } }, '--threads=1'),
  'runtime.maxBatchSize': arg({ runtime: { maxBatchSize: 4 } }, '--max-batch-size=4'),
  'runtime.maxLength': arg({ runtime: { maxLength: 128 } }, '--max-length=128'),
  'runtime.maxBatchInputTokens': arg({ runtime: { maxBatchInputTokens: 64 } }, '--max-batch-input-tokens=64'),
  'runtime.kvCachePageSize': arg({ runtime: { kvCachePageSize: 16 } }, '--kv-cache-page-size=16'),
  'runtime.kvCacheMemoryBytes': arg(
    { runtime: { kvCacheMemoryBytes: 1048576 } },
    '--kv-cache-memory=1048576',
  ),
  'runtime.kvCacheDtype': arg({ runtime: { kvCacheDtype: 'int8' } }, '--kv-cache-dtype=int8'),
  'runtime.enablePrefixCaching': arg(
    { runtime: { enablePrefixCaching: false } },
    '--enable-prefix-caching=false',
  ),
  'runtime.enablePrefixAwareScheduling': arg(
    { runtime: { enablePrefixAwareScheduling: false } },
    '--enable-prefix-aware-scheduling=false',
  ),
  'runtime.enableInFlightBatch': arg(
    { runtime: { enableInFlightBatch: false } },
    '--enable-in-flight-batch=false',
  ),
  'runtime.enableChunkedPrefill': arg(
    { runtime: { enableChunkedPrefill: false } },
    '--enable-chunked-prefill=false',
  ),
  'runtime.maxNumSteps': arg({ runtime: { maxNumSteps: 2 } }, '--max-num-steps=2'),
  'runtime.maxQueueSize': arg({ runtime: { maxQueueSize: 9 } }, '--max-queue-size=9'),
  'runtime.cacheDir': arg({ runtime: { cacheDir: '/cache/a' } }, '--cache-dir=/cache/a'),
  'runtime.maxBodyBytes': arg({ runtime: { maxBodyBytes: 4096 } }, '--max-body-bytes=4096'),
  'runtime.requestTimeoutSeconds': arg({ runtime: { requestTimeoutSeconds: 9 } }, '--request-timeout=9'),
  'runtime.shutdownDelaySeconds': arg({ runtime: { shutdownDelaySeconds: 1 } }, '--shutdown-delay=1'),
  'runtime.shutdownGraceSeconds': arg({ runtime: { shutdownGraceSeconds: 9 } }, '--shutdown-grace=9'),
  'runtime.logLevel': arg({ runtime: { logLevel: 'debug' } }, '--log-level=debug'),
  'runtime.extraArgs': arg({ runtime: { extraArgs: ['--devices=cpu:0'] } }, '--devices=cpu:0'),
  'storage.persistentVolumeClaim.claimName': {
    patch: { storage: { persistentVolumeClaim: { claimName: 'other' } } },
    shows: (template) => template.spec.volumes[0].persistentVolumeClaim.claimName,
    as: 'other',
  },
  'storage.persistentVolumeClaim.subPath': {
    patch: { storage: { persistentVolumeClaim: { subPath: 'a' } } },
    shows: (template) => template.spec.containers[0].volumeMounts[0].subPath,
    as: 'a',
  },
  'template.metadata.labels': {
    patch: { template: { metadata: { labels: { team: 'a' } } } },
    shows: (template) => template.metadata.labels.team,
    as: 'a',
  },
  'template.metadata.annotations': {
    patch: { template: { metadata: { annotations: { note: 'a' } } } },
    shows: (template) => template.metadata.annotations.note,
    as: 'a',
  },
  'template.spec': {
    patch: { template: { spec: { priorityClassName: 'system-node-critical' } } },
    shows: (template) => template.spec.priorityClassName,
    as: 'system-node-critical',
  },
  revisionHistoryLimit: { patch: { revisionHistoryLimit: 3 } },
  'rollout.strategy': { patch: { rollout: { strategy: 'Surge' } } },
  'rollout.maxSurge': { patch: { rollout: { maxSurge: '50%' } } },
  'rollout.maxUnavailable': { patch: { rollout: { maxUnavailable: 1 } } },
  'rollout.progressDeadlineSeconds': { patch: { rollout: { progressDeadlineSeconds: 600 } } },
  'rollout.paused': { patch: { rollout: { paused: true } } },
  'rollout.rollbackTo': { patch: { rollout: { rollbackTo: '' } } },
  'rollout.onFailure': { patch: { rollout: { onFailure: 'Hold' } } },
  'rollout.promotion': { patch: { rollout: { promotion: 'Manual' } } },
  'rollout.capacity.mode': { patch: { rollout: { capacity: { mode: 'MayGrow' } } } },
  'rollout.capacity.whenInsufficient': { patch: { rollout: { capacity: { whenInsufficient: 'Wait' } } } },
  'rollout.capacity.waitSeconds': { patch: { rollout: { capacity: { waitSeconds: 9 } } } },
  suspend: { patch: { suspend: true } },
};

/** These make a lookup on the hub, which resolve.test.ts is about. */
const aboutTheHub = [
  'model.revision',
  'model.updatePolicy',
  'model.trackIntervalSeconds',
  'model.tokenSecretRef.name',
  'model.tokenSecretRef.key',
  'model.endpoint',
];

function arg(patch: object, expected: string): (typeof edits)[string] {
  return { patch, shows: (template) => template.spec.containers[0].args.includes(expected), as: true };
}

test('an edit of each field of the schema does what the table of effects says', async (t) => {
  const rows = [...Object.keys(edits), ...aboutTheHub];
  assert.deepEqual(rows.sort(), Object.keys(fieldEffects).sort(), 'a row for each');
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  const operator = await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
  let { currentRevision } = await service.ready();
  let deployment = await service.deployment();
  for (const [field, { patch, shows, as }] of Object.entries(edits)) {
    await service.edit(patch);
    const status = await service.ready();
    const now = await service.deployment();
    const replaced = now.metadata.uid !== deployment.metadata.uid;
    assert.equal(status.currentRevision !== currentRevision, replaced, field);
    const effect = replaced
      ? 'new revision'
      : now.metadata.generation === deployment.metadata.generation
        ? 'policy'
        : 'in place';
    assert.equal(effect, fieldEffects[field], field);
    if (shows !== undefined) assert.deepEqual(shows(now.spec.template), as, field);
    ({ currentRevision } = status);
    deployment = now;
  }
  await operator.idle();
  const mark = await on.plane.auditMark();
  await client.mergePatch(resources.inferenceServices, service, {
    metadata: { labels: { team: 'a' }, annotations: { note: 'b' } },
  });
  await operator.idle();
  assert.deepEqual(await writes(on, mark), [], 'labels and annotations of the object move nothing');
});

test('what hands do to children is put right', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
  const { currentRevision: name } = await service.ready();
  const ofDeployment = { type: resources.deployments, name };
  const ofService = { type: resources.services, name: 'chat' };
  const container = (more: object) => ({
    spec: { template: { spec: { containers: [{ name: 'runtime', image: 'runtime:test', ...more }] } } },
  });
  const hands: Record<string, { type: ResourceType; name: string; patch: object | 'delete' }> = {
    'replicas of the Deployment': { ...ofDeployment, patch: { spec: { replicas: 4 } } },
    'its image': { ...ofDeployment, patch: container({ image: 'evil:1' }) },
    'a variable more': { ...ofDeployment, patch: container({ env: [{ name: 'EVIL', value: '1' }] }) },
    'a field that nobody had set': { ...ofDeployment, patch: { spec: { paused: true } } },
    'a field that had a default': { ...ofDeployment, patch: { spec: { minReadySeconds: 7 } } },
    'a label': { ...ofDeployment, patch: { metadata: { labels: { 'sluice.dev/role': null } } } },
    'the label that it is found by': {
      ...ofDeployment,
      patch: { metadata: { labels: { 'sluice.dev/service': null } } },
    },
    'the Deployment as a whole': { ...ofDeployment, patch: 'delete' },
    "the Service's selector": { ...ofService, patch: { spec: { selector: { app: 'other' } } } },
    "the Service's ports": { ...ofService, patch: { spec: { ports: [{ port: 81, targetPort: 1 }] } } },
    'the Service as a whole': { ...ofService, patch: 'delete' },
    'the record': { type: resources.controllerRevisions, name, patch: 'delete' },
  };
  const specOf = async ({ type, name: child }: { type: ResourceType; name: string }) => {
    const object = await client.get(type, { namespace: on.namespace, name: child });
    return object && { labels: object.metadata.labels, ...withoutServerFields(object) };
  };
  for (const [what, hand] of Object.entries(hands)) {
    const before = await specOf(hand);
    const ref = { namespace: on.namespace, name: hand.name };
    if (hand.patch === 'delete') await client.remove(hand.type, ref, { propagationPolicy: 'Background' });
    else await client.mergePatch(hand.type, ref, hand.patch);
    await until(`repaired: ${what}`, async () => {
      const now = await specOf(hand);
      return now !== undefined && JSON.stringify(now) === JSON.stringify(before);
    });
    await service.ready();
  }
});

/** Spec or data, without what differs between an object and one made anew. */
function withoutServerFields(object: KubeObject): object {
  const { clusterIP: _, clusterIPs: __, ...spec } = object.spec ?? {};
  return { spec, data: object.data };
}

for (const kind of ['services', 'deployments'] as const) {
  test(`a foreign one of ${kind} in a child's place is left alone, reported, and the way is free when it goes`, async (t) => {
    const on = await stage(t);
    const { client } = on.plane;
    pretendKubelet(t, client, on.namespace);
    const inputs = revisionInputs(specSchema.parse(minimalSpec));
    const name = kind === 'services' ? 'chat' : revisionName('chat', inputs);
    const foreign = await client.create(resources[kind], {
      apiVersion: kind === 'services' ? 'v1' : 'apps/v1',
      kind: resources[kind].kind,
      metadata: { namespace: on.namespace, name },
      spec:
        kind === 'services'
          ? { ports: [{ port: 1 }], selector: { app: 'x' } }
          : {
              replicas: 0,
              selector: { matchLabels: { app: 'x' } },
              template: {
                metadata: { labels: { app: 'x' } },
                spec: { containers: [{ name: 'x', image: 'x' }] },
              },
            },
    });
    const operator = await operate(t, on);
    const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
    const stalled = await service.condition('Stalled', 'True', 'NameConflict');
    assert.ok(stalled.message.includes(`${resources[kind].kind} "${name}"`), stalled.message);
    await service.condition('Ready', 'False', 'NameConflict');
    await operator.idle();
    const now = await client.get(resources[kind], { namespace: on.namespace, name });
    assert.deepEqual(now!.spec, foreign.spec);
    assert.equal(now!.metadata.ownerReferences, undefined);
    assert.equal(now!.metadata.labels, undefined);

    await client.remove(resources[kind], { namespace: on.namespace, name });
    await service.ready();
    assert.equal(
      (await service.get()).status.conditions.some((each: any) => each.type === 'Stalled'),
      false,
    );
  });
}

test('an operator killed and started again writes nothing that was right, and finishes what was not', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  const first = await operate(t, on, ['--no-leader-elect']);
  const spec = {
    model: { path: '/tiny' },
    storage: { persistentVolumeClaim: { claimName: 'models' } },
    // Quantities that the API server writes in another way.
    template: {
      spec: { containers: [{ name: 'runtime', resources: { requests: { memory: '1024Mi', cpu: '0.5' } } }] },
    },
  };
  const services: ServiceUnderTest[] = [];
  for (const name of ['one', 'two', 'three'])
    services.push(await ServiceUnderTest.create(client, on.namespace, name, spec));
  for (const service of services) await service.ready();
  await first.idle();
  await first.end('SIGKILL');
  const mark = await on.plane.auditMark();
  const second = await operate(t, on, ['--no-leader-elect']);
  await second.idle();
  assert.deepEqual(await writes(on, mark), []);

  await second.end('SIGKILL');
  await services[1]!.edit({ model: { path: '/tiny2' } });
  await client.remove(resources.services, { namespace: on.namespace, name: 'three' });
  const third = await operate(t, on, ['--no-leader-elect']);
  await services[1]!.ready();
  await until('the Service is back', async () => (await services[2]!.children('services')).length === 1);
  await third.idle();
  assert.deepEqual(
    (await writes(on, mark)).filter((line) => line.includes(' one')),
    [],
    'only what was edited moved',
  );
});

test('a new default image reaches only revisions made from then on', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  const first = await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
  await service.ready();
  await first.idle();
  assert.equal(await first.end(), 0);
  const mark = await on.plane.auditMark();
  const second = await operate(t, on, [], 'runtime:newer');
  await second.idle();
  assert.deepEqual(await writes(on, mark), []);
  const image = async () => (await service.deployment()).spec.template.spec.containers[0].image;
  assert.equal(await image(), 'runtime:test');
  await service.edit({ model: { path: '/tiny2' } });
  await service.ready();
  assert.equal(await image(), 'runtime:newer');
});

const troubles = {
  'no GPU is free': { look: unschedulable, reason: 'Unschedulable', says: /Insufficient nvidia\.com\/gpu/ },
  'the image is not there': {
    look: imageMissing,
    reason: 'ImagePullFailed',
    says: /"runtime:test".*not found/,
  },
  'the runtime crashes': {
    look: crashing(1, '{"level":30,"msg":"loading"}\nsegmentation of the mind'),
    reason: 'CrashLoop',
    says: /exit code 1: segmentation of the mind/,
  },
  'the runtime refuses its flags': {
    look: crashing(2, 'sluice: --max-length "0": the form is an integer from 1'),
    reason: 'RuntimeConfigRejected',
    says: /--max-length "0": the form is an integer from 1/,
  },
};
test('why a pod cannot start is said, and no longer when it can', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  const kubelet = pretendKubelet(t, client, on.namespace);
  await operate(t, on);
  for (const [name, { look, reason, says }] of Object.entries(troubles)) {
    await t.test(name, async () => {
      kubelet.look = look;
      const service = await ServiceUnderTest.create(client, on.namespace, reason.toLowerCase());
      const { message } = await service.condition('Reconciling', 'True', reason);
      assert.match(message, says);
      await service.condition('Available', 'False');
      kubelet.look = ready;
      await service.ready();
      assert.equal(
        (await service.get()).status.conditions.some((each: any) => each.type === 'Reconciling'),
        false,
      );
      const events = await client.list(resources.events, {
        namespace: on.namespace,
        fieldSelector: `involvedObject.name=${service.name}`,
      });
      assert.ok(events.items.some((event) => event.reason === reason && event.type === 'Warning'));
      await service.remove();
    });
  }
});

test('a template that the API server refuses is told by path and value before anything moves for it', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  const operator = await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
  const { currentRevision } = await service.ready();
  for (const [spec, says] of [
    [
      { nodeSelector: { 'not a label': 'x' } },
      /spec\.template\.spec\.nodeSelector: Invalid value: "not a label"/,
    ],
    [{ tolerations: 'all' }, /spec\.template\.spec\.tolerations: expected list, got/],
    [{ noSuchField: 1 }, /spec\.template\.spec\.noSuchField: field not declared in schema/],
    [
      { containers: [{ name: 'runtime', imagePullPolicy: 'Sometimes' }] },
      /spec\.template\.spec\.containers\[0\]\.imagePullPolicy: Unsupported value: "Sometimes": supported values/,
    ],
    [
      { containers: [{ name: 'runtime', volumeMounts: [{ name: 'none', mountPath: '/none' }] }] },
      /spec\.template\.spec\.containers\[0\]\.volumeMounts\[\d\]\.name: Not found: "none"/,
    ],
  ] as const) {
    await service.edit({ template: { spec: null } });
    await operator.idle();
    const mark = await on.plane.auditMark();
    await service.edit({ template: { spec } });
    const { message } = await service.condition('Stalled', 'True', 'TemplateInvalid');
    assert.match(message, says);
    assert.match((await service.condition('PreflightPassed', 'False', 'TemplateInvalid')).message, says);
    await service.condition('Available', 'True');
    await operator.idle();
    const { name } = service;
    assert.deepEqual([...new Set(await writes(on, mark))], [`patch inferenceservices/status ${name}`]);
    const records = await service.children('controllerRevisions');
    assert.deepEqual(
      records.map((each) => each.metadata.name),
      [currentRevision],
    );
  }
  // What serves is looked after meanwhile.
  await service.edit({ replicas: 2 });
  await until('there is another pod of it', async () => (await service.children('pods')).length === 2);
  await service.edit({ template: null });
  assert.equal((await service.ready()).currentRevision, currentRevision);
});

test('a first template that is refused makes no pod, and a correction makes it whole', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  pretendKubelet(t, client, on.namespace);
  await operate(t, on);
  const wrong = { ...minimalSpec, template: { spec: { priority: 'high' } } };
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat', wrong);
  const { message } = await service.condition('Stalled', 'True', 'TemplateInvalid');
  assert.match(message, /spec\.template\.spec\.priority/);
  await service.condition('Available', 'False');
  assert.deepEqual(await service.children('deployments'), []);
  assert.deepEqual(await service.children('controllerRevisions'), []);
  await service.edit({ template: null });
  await service.ready();
});

test('a new revision comes up beside the old one, and the Service selects both meanwhile', async (t) => {
  const on = await stage(t);
  const { client } = on.plane;
  const kubelet = pretendKubelet(t, client, on.namespace);
  await operate(t, on);
  const service = await ServiceUnderTest.create(client, on.namespace, 'chat');
  const { currentRevision: old } = await service.ready();
  kubelet.look = (pod) => (pod.metadata.labels?.['sluice.dev/revision'] === old ? ready(pod) : undefined);
  await service.edit({ model: { path: '/tiny2' } });
  await service.condition('Reconciling', 'True', 'RollingOut');
  await service.condition('Available', 'True');
  const [selected] = await service.children('services');
  await until('both have a pod', async () => (await service.children('pods')).length === 2);
  const selector = Object.entries(selected!.spec.selector).map(([key, value]) => `${key}=${value}`);
  const { items } = await client.list(resources.pods, {
    namespace: on.namespace,
    labelSelector: selector.join(','),
  });
  assert.equal(items.length, 2);
  assert.equal((await service.get()).status.currentRevision, old);
  kubelet.look = ready;
  const { currentRevision } = await service.ready();
  assert.notEqual(currentRevision, old);
  assert.deepEqual(
    (await service.children('controllerRevisions')).map((each) => each.metadata.name).sort(),
    [old, currentRevision].sort(),
  );
});
