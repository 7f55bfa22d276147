// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * What a person says by command line, on a real API server with the operator's program: explain, history, undo, pause,
 * resume, promote, abort, retry.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { readCommandLine } from '../../../operator/cli/command-line.ts';
import { runCommand } from '../../../operator/cli/run-command.ts';
import { resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { installCrd, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import {
  crashing,
  type PretendKubelet,
  pending,
  pretendKubelet,
  ready,
} from '../../support/pretend-kubelet.ts';

interface Stage {
  readonly service: ServiceUnderTest;
  readonly kubelet: PretendKubelet;
  /** Says what a person would, and gives the answer. */
  say(text: string): Promise<{ said: string; warnings: readonly string[] }>;
}

async function stage(t: TestContext, spec: object = minimalSpec): Promise<Stage> {
  const plane = await controlPlane(t, { controllerManager: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  const kubelet = pretendKubelet(t, client, namespace);
  await startOperator(t, plane.kubeconfigFor({ name: 'sluice-operator', groups: ['system:masters'] }), [
    `--watch-namespaces=${namespace}`,
    `--namespace=${namespace}`,
    '--runtime-image=runtime:test',
  ]);
  const service = await ServiceUnderTest.create(client, namespace, 'chat', spec);
  await service.ready();
  const say = (text: string) =>
    runCommand(readCommandLine([...text.split(' '), `--kubeconfig=${plane.kubeconfig}`, '-n', namespace])!);
  return { service, kubelet, say };
}

const path = (value: string) => ({ model: { path: value } });
const newOnly =
  (look: (pod: any) => object | undefined, from: string): PretendKubelet['look'] =>
  (pod) =>
    pod.metadata.labels?.['sluice.dev/revision'] === from ? ready(pod) : look(pod);

test('undo returns to the revision before and stays there; --off follows the spec again', async (t) => {
  const { service, say } = await stage(t);
  const { currentRevision: first } = (await service.get()).status;
  await service.edit(path('/tiny2'));
  const { currentRevision: second } = await service.ready();
  assert.notEqual(second, first);
  const { said: history } = await say('history chat');
  const lines = history.split('\n').map((line) => line.split(/\s{2,}/));
  assert.deepEqual(
    lines.slice(1).map(([name, state, , model, , changed]) => [name, state, model, changed]),
    [
      [second, 'serves', '/tiny2', 'model.path'],
      [first, '-', '/tiny', '-'],
    ],
  );

  assert.match((await say('undo chat')).said, new RegExp(`returns to revision ${first}`));
  await until(
    'the first revision serves again',
    async () => (await service.ready()).currentRevision === first,
  );
  await service.condition('Paused', 'True', 'PinnedToRevision');
  await say('undo chat --off');
  await until('the spec is followed', async () => (await service.ready()).currentRevision === second);
  assert.equal((await service.get()).spec.model.path, '/tiny2', 'the spec itself was never changed');
  await say(`undo chat --to=${first}`);
  await until(
    'the first revision serves again',
    async () => (await service.ready()).currentRevision === first,
  );
});

test('a rollout waits for promote where promotion is Manual', async (t) => {
  const { service, say } = await stage(t, { ...minimalSpec, rollout: { promotion: 'Manual' } });
  const { currentRevision: first } = (await service.get()).status;
  await service.edit(path('/tiny2'));
  await service.condition('Reconciling', 'True', 'ManualPause');
  const { said } = await say('explain chat');
  assert.match(said, /It is not Ready yet \(ManualPause\): .* promote/);
  assert.match(said, new RegExp(`Revision ${first} serves`));
  assert.doesNotMatch(said, /\n/, 'one paragraph');
  assert.match((await say('promote chat')).said, /its rollout goes on/);
  assert.notEqual((await service.ready()).currentRevision, first);
  assert.match((await say('explain chat')).said, /It is Ready: All pods of the wanted revision are ready/);
});

test('pause holds a rollout, resume lets it go on, abort ends it, and a GitOps tool is warned of', async (t) => {
  const { service, kubelet, say } = await stage(t);
  const { currentRevision: first } = (await service.get()).status;
  kubelet.look = newOnly(pending, first);
  await service.edit(path('/tiny2'));
  await service.condition('Reconciling', 'True');
  assert.deepEqual((await say('pause chat')).warnings, []);
  await service.condition('Paused', 'True', 'ManualPause');
  assert.match((await say('resume chat')).said, /its rollout goes on/);
  await until('it is paused no more', async () =>
    (await service.get()).status.conditions.every((each: any) => each.type !== 'Paused'),
  );
  assert.match((await say('resume chat')).said, /is not paused/);

  await service.client.mergePatch(resources.inferenceServices, service, {
    metadata: {
      annotations: { 'argocd.argoproj.io/tracking-id': 'models:sluice.dev/InferenceService:a/chat' },
    },
  });
  const { warnings } = await say('abort chat');
  assert.match(warnings[0]!, /Argo CD keeps .*chat: its next change of the spec ends this/);
  await service.condition('Stalled', 'True', 'RolledBack');
  assert.equal((await service.get()).status.currentRevision, first);
});

test('a revision that crashed is tried again by retry, and not before', async (t) => {
  const { service, kubelet, say } = await stage(t);
  const { currentRevision: first } = (await service.get()).status;
  kubelet.look = newOnly(crashing(1, 'out of luck'), first);
  await service.edit(path('/tiny2'));
  await service.condition('Stalled', 'True', 'RolledBack');
  const { said } = await say('explain chat');
  assert.match(said, /not Ready, and waiting will not help \(RolledBack\): .*out of luck/);
  assert.match(said, /sluice-operator retry/);
  assert.match((await say('history chat')).said, /failed/);
  kubelet.look = ready;
  assert.match((await say('retry chat')).said, /tried once more/);
  assert.notEqual((await service.ready()).currentRevision, first);
});

test('what would do nothing, or cannot be done, is refused in one line', async (t) => {
  const { service, say } = await stage(t);
  const cases: [string, RegExp][] = [
    ['promote chat', /no rollout is under way; history chat lists its revisions/],
    ['abort chat', /no rollout is under way/],
    ['retry chat', /nothing has failed that could be tried again/],
    ['undo chat', /there is no earlier revision to return to/],
    ['undo chat --to=chat-nonsense', /undo --to "chat-nonsense": .* has no such revision; it has chat-/],
    ['explain other', /there is no InferenceService "other" in the namespace/],
  ];
  for (const [text, says] of cases)
    await assert.rejects(say(text), (error: Error) => {
      assert.match(error.message, says, text);
      assert.doesNotMatch(error.message, /\n/);
      return true;
    });
  await service.edit({ rollout: { paused: true } });
  await assert.rejects(say('resume chat'), /set spec\.rollout\.paused to false, in Git/);
});
