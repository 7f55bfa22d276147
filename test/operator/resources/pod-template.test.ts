// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/** What a pod looks like for what its author wrote. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import { revisionInputs } from '../../../operator/api/revision.ts';
import { podTemplate } from '../../../operator/resources/pod-template.ts';
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
  assert.ok(startupProbe.periodSeconds * startupProbe.failureThreshold >= 1800);
  // The last pod that ends is sent to until it is unready; then it still takes requests for --shutdown-delay.
  assert.ok(
    2 * readinessProbe.periodSeconds * readinessProbe.failureThreshold <=
      runtimeOptions.shutdownDelay.default,
  );
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
