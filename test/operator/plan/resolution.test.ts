/** Models of the hub: what a branch stands for, when that is looked up, and what a lookup stands in the way of. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import { crashCommit, SimulatedCluster } from './simulated-cluster.ts';

const commit = (digit: string) => digit.repeat(40);
const facts = {
  architecture: 'LlamaForCausalLM',
  ...{ hidden: 256, heads: 8, kvHeads: 4, headDim: 32, intermediate: 512, layers: 4, vocabulary: 2048 },
  quantization: 'bfloat16',
  bytes: 5_771_776,
};

const spec = (
  model: Partial<InferenceServiceSpec['model']> = {},
  more: Partial<InferenceServiceSpec> = {},
) => ({
  model: { path: 'org/tiny', ...model },
  replicas: 1,
  ...more,
});

const asked = (revision?: string) =>
  revision === undefined ? 'org/tiny' : `org/tiny --huggingface-revision=${revision}`;

function run(cluster: SimulatedCluster, turns: number, seconds = 10): void {
  for (let turn = 0; turn < turns; turn++) {
    cluster.reconcile();
    cluster.turn(seconds);
  }
  cluster.reconcile();
}

const argsOf = (cluster: SimulatedCluster): string[] =>
  cluster.child('Deployment', cluster.service.status.currentRevision)!.spec.template.spec.containers[0].args;
const jobs = (cluster: SimulatedCluster) =>
  [...cluster.children.values()].filter(({ kind }) => kind === 'Job');

function serving(answer: object, model: Partial<InferenceServiceSpec['model']> = {}): SimulatedCluster {
  const cluster = new SimulatedCluster(spec(model));
  cluster.hub.set(asked(model.revision), answer);
  run(cluster, 10);
  assert.equal(cluster.condition('Ready').status, 'True');
  return cluster;
}

test('a branch is looked up before there are pods, frozen as a commit, and the Job goes', () => {
  const cluster = new SimulatedCluster(
    spec({ revision: 'main', tokenSecretRef: { name: 'hub', key: 'token' } }),
  );
  cluster.reconcile();
  assert.equal(cluster.condition('Reconciling').reason, 'Resolving');
  assert.equal(cluster.condition('Resolved').status, 'False');
  assert.equal([...cluster.children.values()].filter(({ kind }) => kind === 'Deployment').length, 0);
  const [job] = jobs(cluster);
  const [container] = job!.spec.template.spec.containers;
  assert.deepEqual(container.env.find(({ name }: { name: string }) => name === 'HF_TOKEN').valueFrom, {
    secretKeyRef: { name: 'hub', key: 'token' },
  });
  cluster.hub.set(asked('main'), { commit: commit('a'), ...facts });
  run(cluster, 10);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.condition('Resolved').message, `org/tiny@main is ${commit('a')}`);
  assert.equal(cluster.condition('PreflightPassed').status, 'True');
  assert.deepEqual(argsOf(cluster), [
    'serve',
    '--model-path=org/tiny',
    `--huggingface-revision=${commit('a')}`,
  ]);
  assert.equal(cluster.service.status.revisions[0].commit, commit('a'));
  assert.deepEqual(jobs(cluster), []);
});

test('Pinned: a branch that moves moves nothing, whatever is lost of the status', () => {
  const cluster = serving({ commit: commit('a'), ...facts });
  cluster.hub.set(asked(), { commit: commit('b'), ...facts });
  run(cluster, 100, 60);
  assert.equal(cluster.service.status.revisions[0].commit, commit('a'));
  cluster.service = { ...cluster.service, status: {} };
  run(cluster, 10);
  assert.equal(cluster.service.status.revisions[0].commit, commit('a'));
  assert.deepEqual(jobs(cluster), []);
});

test('Track: a branch that moves is rolled out; an undo returns although it has moved', () => {
  const model = { updatePolicy: 'Track', trackIntervalSeconds: 60 } as const;
  const cluster = serving({ commit: commit('a'), ...facts }, model);
  const first = cluster.service.status.currentRevision;
  cluster.hub.set(asked(), { commit: commit('b'), ...facts });
  run(cluster, 20, 30);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.service.status.model.commit, commit('b'));
  assert.notEqual(cluster.service.status.currentRevision, first);
  cluster.edit(spec(model, { rollout: { rollbackTo: first } }));
  run(cluster, 20, 30);
  assert.equal(cluster.service.status.currentRevision, first);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.ok(argsOf(cluster).includes(`--huggingface-revision=${commit('a')}`));
});

test('Track: a commit that crashes is rolled back and not tried again; the one after it is', () => {
  const model = { updatePolicy: 'Track', trackIntervalSeconds: 60 } as const;
  const cluster = serving({ commit: commit('a'), ...facts }, model);
  const first = cluster.service.status.currentRevision;
  cluster.hub.set(asked(), { commit: crashCommit, ...facts });
  run(cluster, 20, 30);
  const failed = cluster.condition('Stalled');
  assert.equal(failed.reason, 'RolledBack');
  assert.equal(cluster.service.status.currentRevision, first);
  assert.equal(cluster.readyPods, 1);
  // The branch is looked up on, and is where it was.
  run(cluster, 40, 30);
  assert.deepEqual(cluster.condition('Stalled'), failed);
  cluster.hub.set(asked(), { commit: commit('b'), ...facts });
  run(cluster, 20, 30);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.service.status.revisions[0].commit, commit('b'));
});

test('Track: a hub that is away harms nobody', () => {
  const model = { updatePolicy: 'Track', trackIntervalSeconds: 60 } as const;
  const cluster = serving({ commit: commit('a'), ...facts }, model);
  cluster.hub.set(asked(), 'sluice: the hub cannot be reached');
  run(cluster, 20, 30);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.condition('Resolved').status, 'False');
  assert.match(cluster.condition('Resolved').message, /the hub cannot be reached/);
  cluster.hub.set(asked(), { commit: commit('a'), ...facts });
  run(cluster, 30, 30);
  assert.equal(cluster.condition('Resolved').status, 'True');
});

test('a repository that the hub refuses stalls the service with its line, and is asked for again', () => {
  const cluster = new SimulatedCluster(spec());
  cluster.hub.set(asked(), 'sluice: org/tiny: 401, a token is needed');
  run(cluster, 5);
  assert.equal(cluster.condition('Stalled').reason, 'ResolveFailed');
  assert.match(
    cluster.condition('Stalled').message,
    /org\/tiny@main cannot be looked up: .*a token is needed/,
  );
  cluster.hub.set(asked(), { commit: commit('a'), ...facts });
  run(cluster, 40);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('another token is tried at once, without the wait after a refusal', () => {
  const cluster = new SimulatedCluster(spec());
  cluster.hub.set(asked(), 'sluice: org/tiny: it is private and HF_TOKEN gives no access (401)');
  run(cluster, 5);
  assert.match(cluster.condition('Stalled').message, /\(401\); spec\.model\.tokenSecretRef is not set$/);
  cluster.edit(spec({ tokenSecretRef: { name: 'hub', key: 'token' } }));
  run(cluster, 5);
  assert.match(cluster.condition('Stalled').message, /HF_TOKEN is key "token" of Secret "hub"$/);
  cluster.hub.set(asked(), { commit: commit('a'), ...facts });
  cluster.edit(spec({ tokenSecretRef: { name: 'hub', key: 'better' } }));
  run(cluster, 5, 1);
  assert.equal(cluster.condition('Ready').status, 'True');
});

test('an edit to what cannot be looked up leaves what serves', () => {
  const cluster = serving({ commit: commit('a'), ...facts });
  cluster.edit(spec({ revision: 'nope' }));
  cluster.hub.set(asked('nope'), 'sluice: org/tiny@nope: no such revision');
  run(cluster, 5);
  assert.equal(cluster.condition('Stalled').reason, 'ResolveFailed');
  assert.equal(cluster.condition('Available').status, 'True');
  assert.equal(cluster.readyPods, 1);
});

test('what the checkpoint cannot give is said before a pod is made, and the one that serves stays', () => {
  const cluster = serving({ commit: commit('a'), ...facts });
  cluster.edit(spec({ revision: 'odd' }, { gpus: 64 }));
  cluster.hub.set(asked('odd'), { commit: commit('c'), ...facts });
  run(cluster, 5);
  assert.equal(cluster.condition('Stalled').reason, 'PreflightFailed');
  assert.match(cluster.condition('PreflightPassed').message, /64 ranks: .*at most 32 ranks/);
  assert.equal(cluster.readyPods, 1);
  assert.equal([...cluster.children.values()].filter(({ kind }) => kind === 'Deployment').length, 1);
});

test('a folder is looked up when a policy is given, and its digest is part of the revision', () => {
  const cluster = new SimulatedCluster({
    ...spec({ path: '/tiny', updatePolicy: 'Pinned' }),
    storage: { persistentVolumeClaim: { claimName: 'models' } },
  });
  cluster.hub.set('/models/tiny', { commit: 'sha256:1', ...facts });
  run(cluster, 10);
  assert.equal(cluster.condition('Ready').status, 'True');
  assert.equal(cluster.service.status.revisions[0].commit, 'sha256:1');
  assert.ok(!argsOf(cluster).some((each) => each.includes('revision')));
});

test('what the checkpoint is bounds what its pods may write, and their start; what is not known bounds nothing', () => {
  const limitsOf = (cluster: SimulatedCluster) => {
    const { progressDeadlineSeconds, template } = cluster.child(
      'Deployment',
      cluster.service.status.currentRevision,
    )!.spec;
    const { periodSeconds, failureThreshold } = template.spec.containers[0].startupProbe;
    const startupSeconds = periodSeconds * failureThreshold;
    assert.ok(progressDeadlineSeconds > startupSeconds);
    const { emptyDir } = template.spec.volumes.find(({ name }: { name: string }) => name === 'cache');
    return [emptyDir, startupSeconds];
  };
  const bytes = 16 * 2 ** 30;
  // 16 GiB of files, 8 bytes for each of their weights, and 1 GiB; 10 MiB a second, and an hour.
  const rows: [quantization: string, sizeLimit: string][] = [
    ['bfloat16', '81Gi'],
    ['float32', '49Gi'],
    ['gptq', '273Gi'],
  ];
  for (const [quantization, sizeLimit] of rows)
    assert.deepEqual(limitsOf(serving({ commit: commit('a'), ...facts, quantization, bytes })), [
      { sizeLimit },
      5240,
    ]);
  assert.deepEqual(limitsOf(serving({ commit: commit('a') })), [{}, 3600]);
  const inStorage = new SimulatedCluster({
    ...spec({ path: '/tiny' }),
    storage: { persistentVolumeClaim: { claimName: 'models' } },
  });
  run(inStorage, 10);
  assert.deepEqual(limitsOf(inStorage), [{}, 3600]);
});
