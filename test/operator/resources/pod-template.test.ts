// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/** What a pod looks like for what its author wrote. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import { revisionInputs } from '../../../operator/api/revision.ts';
import { podTemplate, startupSecondsOf } from '../../../operator/resources/pod-template.ts';
import { resolveJob } from '../../../operator/resources/resolve-job.ts';
import { loadConfig, runtimeOptions } from '../../../runtime/config.ts';

const render = (spec: Partial<InferenceServiceSpec>): any =>
  podTemplate(
    revisionInputs({
      model: { path: '/tiny' },
      replicas: 1,
      storage: { persistentVolumeClaim: { claimName: 'models' } },
      ...spec,
    }),
    { serviceName: 'chat', revision: 'chat-abc', defaultImage: 'runtime:default' },
  );
const containerOf = (spec: Partial<InferenceServiceSpec>) => render(spec).spec.containers[0];

const args: Record<string, [Partial<InferenceServiceSpec>, string[]]> = {
  'a bare spec: where the model is, and nothing else': [{}, ['serve', '--model-path=/models/tiny']],
  'GPUs make no argument: the runtime takes what the container is given': [
    { gpus: 2 },
    ['serve', '--model-path=/models/tiny'],
  ],
  'everything, in a fixed order': [
    {
      model: {
        path: '/a/b',
        servedNames: ['chat', 'b'],
        weightFiles: ['w.safetensors', '/other/w.safetensors'],
      },
      quantization: 'float16',
      runtime: {
        maxLength: 4096,
        logLevel: 'debug',
        shutdownGraceSeconds: 7,
        extraArgs: ['--devices=cpu:0,1'],
      },
    },
    [
      'serve',
      '--model-path=/models/a/b',
      '--weight-path=/models/a/b/w.safetensors',
      '--weight-path=/models/other/w.safetensors',
      '--served-model-name=chat',
      '--served-model-name=b',
      '--quantization-encoding=float16',
      '--max-length=4096',
      '--shutdown-grace=7',
      '--log-level=debug',
      '--devices=cpu:0,1',
    ],
  ],
};
for (const [name, [spec, expected]] of Object.entries(args)) {
  test(`args of ${name}`, () => {
    assert.deepEqual(containerOf(spec).args, expected);
    const env = Object.fromEntries(containerOf(spec).env.map((each: any) => [each.name, each.value]));
    assert.doesNotThrow(() => loadConfig({ argv: expected.slice(1), env }), 'the runtime takes them');
  });
}

test('without GPUs there is no limit, with them there is one of the resource asked for', () => {
  assert.equal(containerOf({}).resources, undefined);
  assert.equal(containerOf({ gpus: 0 }).resources, undefined);
  assert.deepEqual(containerOf({ gpus: 2 }).resources, { limits: { 'nvidia.com/gpu': '2' } });
  assert.deepEqual(containerOf({ gpus: 1, gpuResource: 'nvidia.com/mig-1g.10gb' }).resources, {
    limits: { 'nvidia.com/mig-1g.10gb': '1' },
  });
});

test('the claim is mounted read-only at /models, at its subPath where one is given', () => {
  const spec = { storage: { persistentVolumeClaim: { claimName: 'models', subPath: 'team-a' } } };
  assert.deepEqual(render(spec).spec.volumes[0], {
    name: 'models',
    persistentVolumeClaim: { claimName: 'models', readOnly: true },
  });
  assert.deepEqual(containerOf(spec).volumeMounts[0], {
    name: 'models',
    mountPath: '/models',
    readOnly: true,
    subPath: 'team-a',
  });
});

test("the author's image, or else the operator's", () => {
  assert.equal(containerOf({}).image, 'runtime:default');
  assert.equal(containerOf({ image: 'mine:1' }).image, 'mine:1');
});

test('the kubelet waits as long as the runtime may take to end', () => {
  const grace = (runtime: InferenceServiceSpec['runtime']) => {
    const { spec } = render(runtime === undefined ? {} : { runtime });
    const sleep = spec.containers[0].lifecycle.preStop.sleep.seconds;
    return spec.terminationGracePeriodSeconds - sleep;
  };
  assert.ok(grace(undefined) > 5 + 20);
  assert.ok(grace({ shutdownDelaySeconds: 10, shutdownGraceSeconds: 300 }) > 310);
});

test('the probes ask what the runtime answers, on the port named http', () => {
  const { startupProbe, readinessProbe, livenessProbe, ports } = containerOf({});
  const paths = [startupProbe, readinessProbe, livenessProbe].map((probe) => probe.httpGet);
  assert.deepEqual(paths, [
    { path: '/health', port: 'http', scheme: 'HTTP' },
    { path: '/readyz', port: 'http', scheme: 'HTTP' },
    { path: '/livez', port: 'http', scheme: 'HTTP' },
  ]);
  assert.deepEqual(ports, [{ name: 'http', containerPort: 8000, protocol: 'TCP' }]);
  // The last pod that ends is sent to until it is unready; then it still takes requests for --shutdown-delay.
  assert.ok(
    2 * readinessProbe.periodSeconds * readinessProbe.failureThreshold <=
      runtimeOptions.shutdownDelay.default,
  );
});

const probe = (startupProbe: object | null): Partial<InferenceServiceSpec> => ({
  template: { spec: { containers: [{ name: 'runtime', startupProbe }] } },
});
const startupTimes: Record<string, [Partial<InferenceServiceSpec>, number | undefined]> = {
  'nothing is known of the checkpoint: an hour': [{}, 3600],
  "the author's own": [probe({ initialDelaySeconds: 7, periodSeconds: 5, failureThreshold: 10 }), 57],
  'the author wants no end': [probe(null), undefined],
};
for (const [name, [spec, seconds]] of Object.entries(startupTimes))
  test(`time to start: ${name}`, () => {
    assert.equal(startupSecondsOf(render(spec).spec), seconds);
  });

test('the template of the author wins, but never over the labels that the selectors need', () => {
  const { metadata, spec } = render({
    template: {
      metadata: { labels: { team: 'a', 'sluice.dev/role': 'other' }, annotations: { note: 'x' } },
      spec: { nodeSelector: { gpu: 'h200' }, containers: [{ name: 'runtime', imagePullPolicy: 'Always' }] },
    },
  });
  assert.deepEqual(metadata.labels, {
    'sluice.dev/service': 'chat',
    'sluice.dev/role': 'runtime',
    'sluice.dev/revision': 'chat-abc',
    team: 'a',
  });
  assert.equal(metadata.annotations.note, 'x');
  assert.deepEqual(spec.nodeSelector, { gpu: 'h200' });
  assert.equal(spec.containers[0].imagePullPolicy, 'Always');
});

const own = (spec: object): any => {
  const rendered = render({ template: { spec: spec as any } }).spec;
  return { ...rendered, runtime: rendered.containers.find((each: any) => each.name === 'runtime') };
};
const names = (list: any[]) => list.map((each) => each.name);

const additions: Record<string, [template: object, at: (spec: any) => unknown, gives: unknown]> = {
  'a priority class': [{ priorityClassName: 'high' }, (spec) => spec.priorityClassName, 'high'],
  'secrets of a registry': [
    { imagePullSecrets: [{ name: 'registry' }] },
    (spec) => spec.imagePullSecrets,
    [{ name: 'registry' }],
  ],
  'another scheduler': [{ schedulerName: 'volcano' }, (spec) => spec.schedulerName, 'volcano'],
  tolerations: [
    { tolerations: [{ key: 'nvidia.com/gpu', operator: 'Exists' }] },
    (spec) => spec.tolerations,
    [{ key: 'nvidia.com/gpu', operator: 'Exists' }],
  ],
  'a service account with its token': [
    { serviceAccountName: 'models', automountServiceAccountToken: true },
    (spec) => [spec.serviceAccountName, spec.automountServiceAccountToken],
    ['models', true],
  ],
  'a container beside the runtime, wherever it stands in the list': [
    {
      containers: [
        { name: 'proxy', image: 'proxy:1' },
        { name: 'runtime', tty: true },
      ],
    },
    (spec) => [names(spec.containers), spec.runtime.tty, spec.runtime.image],
    [['runtime', 'proxy'], true, 'runtime:default'],
  ],
  'a sidecar that starts before': [
    { initContainers: [{ name: 'logs', image: 'logs:1', restartPolicy: 'Always' }] },
    (spec) => names(spec.initContainers),
    ['logs'],
  ],
  'claimed devices, and the runtime as who gets them': [
    {
      resourceClaims: [{ name: 'gpus', resourceClaimTemplateName: 'two-gpus' }],
      containers: [{ name: 'runtime', resources: { claims: [{ name: 'gpus' }] } }],
    },
    (spec) => [spec.resourceClaims, spec.runtime.resources],
    [[{ name: 'gpus', resourceClaimTemplateName: 'two-gpus' }], { claims: [{ name: 'gpus' }] }],
  ],
  'a volume and its mount, beside the models and the cache': [
    {
      volumes: [{ name: 'shm', emptyDir: { medium: 'Memory' } }],
      containers: [{ name: 'runtime', volumeMounts: [{ name: 'shm', mountPath: '/dev/shm' }] }],
    },
    (spec) => [names(spec.volumes), names(spec.runtime.volumeMounts)],
    [
      ['models', 'cache', 'shm'],
      ['models', 'cache', 'shm'],
    ],
  ],
  'a cache that outlives the pod': [
    { volumes: [{ name: 'cache', persistentVolumeClaim: { claimName: 'fast' } }] },
    (spec) => spec.volumes[1],
    { name: 'cache', persistentVolumeClaim: { claimName: 'fast' } },
  ],
  'a security context: what it says, and the rest of ours': [
    { containers: [{ name: 'runtime', securityContext: { runAsUser: 1000 } }] },
    (spec) => spec.runtime.securityContext,
    {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
      runAsUser: 1000,
    },
  ],
  'environment and resources of the runtime': [
    {
      containers: [
        { name: 'runtime', env: [{ name: 'A', value: '1' }], resources: { requests: { memory: '8Gi' } } },
      ],
    },
    (spec) => [spec.runtime.env.at(-1), spec.runtime.resources],
    [{ name: 'A', value: '1' }, { requests: { memory: '8Gi' } }],
  ],
  'fewer of ours: no spread': [
    { topologySpreadConstraints: null },
    (spec) => spec.topologySpreadConstraints,
    undefined,
  ],
};
for (const [name, [template, at, gives]] of Object.entries(additions)) {
  test(`the template adds ${name}`, () => {
    assert.deepEqual(at(own(template)), gives);
  });
}

test('the cache has a limit where it is known what it may come to hold, and the author may set another', () => {
  const cacheOf = (spec: Partial<InferenceServiceSpec>, bytes?: number): any =>
    podTemplate(revisionInputs({ model: { path: 'org/tiny' }, replicas: 1, ...spec }), {
      ...{ serviceName: 'chat', revision: 'chat-abc', defaultImage: 'runtime:default' },
      ...(bytes === undefined ? {} : { cacheBytes: bytes }),
    } as any).spec;
  assert.deepEqual(cacheOf({}).volumes, [{ name: 'cache', emptyDir: {} }]);
  assert.deepEqual(cacheOf({}, 2 ** 30 + 1).volumes, [{ name: 'cache', emptyDir: { sizeLimit: '2Gi' } }]);
  const template = { spec: { volumes: [{ name: 'cache', emptyDir: { sizeLimit: '9Gi' } }] } };
  assert.deepEqual(cacheOf({ template }, 2 ** 30).volumes, [
    { name: 'cache', emptyDir: { sizeLimit: '9Gi' } },
  ]);
});

test('a lookup runs where the pods would, without their devices, gates and neighbours', () => {
  const service: any = {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'InferenceService',
    metadata: { name: 'chat', namespace: 'prod', uid: 'u' },
  };
  const inputs = revisionInputs({
    model: { path: 'org/tiny' },
    replicas: 1,
    gpus: 2,
    template: {
      metadata: { labels: { 'kueue.x-k8s.io/queue-name': 'models' } },
      spec: {
        nodeSelector: { zone: 'a' },
        priorityClassName: 'high',
        imagePullSecrets: [{ name: 'registry' }],
        schedulingGates: [{ name: 'example.com/later' }],
        resourceClaims: [{ name: 'gpus', resourceClaimTemplateName: 'two-gpus' }],
        containers: [{ name: 'proxy', image: 'proxy:1' }],
        initContainers: [{ name: 'logs', image: 'logs:1' }],
      },
    },
  });
  const { metadata, spec } = resolveJob(service, 'source', inputs, {
    runtimeImage: 'runtime:default',
  }) as any;
  const pod = spec.template.spec;
  assert.deepEqual(
    [pod.nodeSelector, pod.priorityClassName, pod.imagePullSecrets, names(pod.containers)],
    [{ zone: 'a' }, 'high', [{ name: 'registry' }], ['runtime']],
  );
  for (const absent of ['resourceClaims', 'schedulingGates', 'initContainers', 'topologySpreadConstraints'])
    assert.ok(!(absent in pod), absent);
  assert.equal(pod.containers[0].resources, undefined);
  assert.deepEqual(pod.volumes, [{ name: 'cache', emptyDir: { sizeLimit: '1Gi' } }]);
  const labels = [metadata.labels, spec.template.metadata.labels].flatMap(Object.keys);
  assert.ok(!labels.some((each) => each.includes('kueue')), 'a lookup stands in no queue');
});
