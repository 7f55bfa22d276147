/** Manifests as people apply them, by kubectl on the real API server: what is refused, and that it says which field. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { stringify } from 'yaml';
import { controlPlane } from '../../support/control-plane.ts';
import { installCrd, manifest, minimalSpec } from '../../support/inference-services.ts';

const longest = 'a'.repeat(52);

const cases: Record<string, { spec: object; name?: string; refused?: RegExp[] }> = {
  'the smallest spec': { spec: minimalSpec },
  'every field': {
    spec: {
      model: { path: '/team-a/tiny', servedNames: ['chat', 'tiny'], weightFiles: ['w.safetensors'] },
      gpus: 2,
      gpuResource: 'nvidia.com/mig-1g.10gb',
      quantization: 'bfloat16',
      replicas: 3,
      image: 'registry.example/sluice-runtime@sha256:0123',
      runtime: { maxLength: 8192, kvCachePageSize: 16, extraArgs: ['--devices=cpu:0,1'] },
      storage: { persistentVolumeClaim: { claimName: 'models', subPath: 'a/b' } },
      template: {
        metadata: { labels: { team: 'a' }, annotations: { note: 'b' } },
        spec: {
          priorityClassName: 'high',
          imagePullSecrets: [{ name: 'registry' }],
          containers: [
            { name: 'runtime', resources: { requests: { cpu: '2' } } },
            { name: 'sidecar', image: 'side:1' },
          ],
        },
      },
    },
  },
  'the longest name': { name: longest, spec: minimalSpec },
  'no GPUs, written out': { spec: { ...minimalSpec, gpus: 0 } },
  'scaled to zero': { spec: { ...minimalSpec, replicas: 0 } },
  'gpus: -1': { spec: { ...minimalSpec, gpus: -1 }, refused: [/spec\.gpus/] },
  'gpus: two': { spec: { ...minimalSpec, gpus: 'two' }, refused: [/spec\.gpus/] },
  'gpus: 1.5': { spec: { ...minimalSpec, gpus: 1.5 }, refused: [/spec\.gpus/] },
  'replicas: -1': { spec: { ...minimalSpec, replicas: -1 }, refused: [/spec\.replicas/] },
  'an empty path': { spec: { ...minimalSpec, model: { path: '' } }, refused: [/spec\.model\.path/] },
  'no path': { spec: { ...minimalSpec, model: {} }, refused: [/spec\.model\.path: Required/] },
  'no model': { spec: { storage: minimalSpec.storage }, refused: [/spec\.model: Required/] },
  'a relative path': {
    spec: { ...minimalSpec, model: { path: 'tiny' } },
    refused: [/spec\.model\.path: Invalid value: "tiny": .*absolute path.*for example \/tiny/],
  },
  'a repository of the hub': {
    spec: {
      model: {
        path: 'Qwen/Qwen3-0.6B',
        revision: 'main',
        updatePolicy: 'Track',
        trackIntervalSeconds: 60,
        tokenSecretRef: { name: 'hub', key: 'token' },
        endpoint: 'https://hub.example',
      },
    },
  },
  'a repository with a path in it': {
    spec: { model: { path: 'a/b/c' } },
    refused: [/spec\.model\.path: Invalid value: "a\/b\/c".*org\/name/],
  },
  'a branch of a folder': {
    spec: { ...minimalSpec, model: { path: '/tiny', revision: 'main' } },
    refused: [/spec\.model: .*revision.*hub/],
  },
  'an interval without Track': {
    spec: { model: { path: 'a/b', trackIntervalSeconds: 60 } },
    refused: [/spec\.model\.trackIntervalSeconds: .*updatePolicy: Track/],
  },
  'every field of a rollout': {
    spec: {
      ...minimalSpec,
      suspend: true,
      revisionHistoryLimit: 0,
      rollout: {
        strategy: 'Surge',
        maxSurge: '25%',
        maxUnavailable: 0,
        progressDeadlineSeconds: 60,
        paused: true,
        rollbackTo: 'chat-abc',
        onFailure: 'Hold',
        promotion: 'Manual',
        capacity: { mode: 'MayGrow', whenInsufficient: 'Wait', waitSeconds: 5 },
      },
    },
  },
  'no surge and nothing unavailable': {
    spec: { ...minimalSpec, rollout: { maxSurge: '0%', maxUnavailable: 0 } },
    refused: [/spec\.rollout: .*may not both be 0/],
  },
  'a surge that is no percentage': {
    spec: { ...minimalSpec, rollout: { maxSurge: 'half' } },
    refused: [/spec\.rollout\.maxSurge: .*25%/],
  },
  'a surge below nothing': {
    spec: { ...minimalSpec, rollout: { maxSurge: -1 } },
    refused: [/spec\.rollout\.maxSurge/],
  },
  'a path out of the storage': {
    spec: { ...minimalSpec, model: { path: '/../etc' } },
    refused: [/spec\.model\.path: Invalid value: "\/\.\.\/etc"/],
  },
  'a path without storage': {
    spec: { model: { path: '/tiny' } },
    refused: [/spec\.storage: Required value: .*model\.path needs spec\.storage/],
  },
  'storage without a member': {
    spec: { ...minimalSpec, storage: {} },
    refused: [/spec\.storage: .*exactly one member/],
  },
  'a claim without a name': {
    spec: { ...minimalSpec, storage: { persistentVolumeClaim: {} } },
    refused: [/spec\.storage\.persistentVolumeClaim\.claimName: Required/],
  },
  'an absolute subPath': {
    spec: { ...minimalSpec, storage: { persistentVolumeClaim: { claimName: 'm', subPath: '/a' } } },
    refused: [/spec\.storage\.persistentVolumeClaim\.subPath/],
  },
  'an unknown field': { spec: { ...minimalSpec, gpuCount: 1 }, refused: [/unknown field "spec\.gpuCount"/] },
  'an unknown field further down': {
    spec: { ...minimalSpec, runtime: { maxBatch: 1 } },
    refused: [/unknown field "spec\.runtime\.maxBatch"/],
  },
  'an unknown quantization': {
    spec: { ...minimalSpec, quantization: 'int3' },
    refused: [/spec\.quantization: Unsupported value: "int3"/, /float32/],
  },
  'a page size that is no power of two': {
    spec: { ...minimalSpec, runtime: { kvCachePageSize: 24 } },
    refused: [/spec\.runtime\.kvCachePageSize/],
  },
  'an argument that has a field': {
    spec: { ...minimalSpec, runtime: { extraArgs: ['--max-length=1'] } },
    refused: [/spec\.runtime\.extraArgs/, /--max-length/],
  },
  'an argument that would break the probes': {
    spec: { ...minimalSpec, runtime: { extraArgs: ['--port', '1'] } },
    refused: [/spec\.runtime\.extraArgs/],
  },
  "a label of the operator's": {
    spec: { ...minimalSpec, template: { metadata: { labels: { 'sluice.dev/role': 'x' } } } },
    refused: [/spec\.template\.metadata\.labels/],
  },
  'a GPU resource without a domain': {
    spec: { ...minimalSpec, gpuResource: 'gpu' },
    refused: [/spec\.gpuResource/],
  },
  'a name that is too long': { name: `${longest}a`, spec: minimalSpec, refused: [/metadata\.name/] },
  'a name that no Service can have': { name: '1st', spec: minimalSpec, refused: [/metadata\.name/] },
};

test('manifests', async (t) => {
  const plane = await controlPlane(t);
  await installCrd(plane.client);
  const namespace = await plane.namespace(t);
  for (const [what, { spec, name = 'chat', refused }] of Object.entries(cases)) {
    for (const mode of [[], ['--dry-run=server']]) {
      await t.test(`${what}: ${refused ? 'refused' : 'taken'}${mode.length ? ', dry run' : ''}`, () => {
        const { status, stderr } = spawnSync(plane.kubectl, ['apply', '-f', '-', ...mode], {
          input: stringify(manifest(namespace, name, spec)),
          encoding: 'utf8',
          env: { KUBECONFIG: plane.kubeconfig, HOME: plane.directory },
        });
        assert.equal(status, refused ? 1 : 0, stderr);
        for (const pattern of refused ?? []) assert.match(stderr, pattern);
      });
    }
  }
});

test('what kubectl prints of a service', async (t) => {
  const plane = await controlPlane(t);
  await installCrd(plane.client);
  const namespace = await plane.namespace(t);
  const kubectl = (args: string[], input?: string) =>
    spawnSync(plane.kubectl, ['-n', namespace, ...args], {
      ...(input === undefined ? {} : { input }),
      encoding: 'utf8',
      env: { KUBECONFIG: plane.kubeconfig, HOME: plane.directory },
    });
  const spec = { ...minimalSpec, gpus: 2, quantization: 'float16' };
  assert.equal(kubectl(['apply', '-f', '-'], stringify(manifest(namespace, 'chat', spec))).status, 0);
  const [head = '', row = ''] = kubectl(['get', 'infer']).stdout.split('\n');
  assert.deepEqual(head.trim().split(/\s+/), [
    'NAME',
    'MODEL',
    'REVISION',
    'GPUS',
    'QUANTIZATION',
    'READY',
    'REPLICAS',
    'AGE',
  ]);
  assert.match(row, /^chat\s+\/tiny\s+2\s+float16\s/);
  assert.equal(kubectl(['scale', 'infer/chat', '--replicas=4']).status, 0);
  assert.equal(kubectl(['get', 'infer/chat', '-o=jsonpath={.spec.replicas}']).stdout, '4');
  assert.match(kubectl(['get', 'all']).stdout, /inferenceservice\.sluice\.dev\/chat/);
});
