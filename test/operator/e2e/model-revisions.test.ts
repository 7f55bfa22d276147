// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * A branch on a hub moves, with every part real: a server that speaks the hub's API, Jobs of `sluice resolve` and pods of
 * the runtime on a process node, scheduled by the scheduler, in a namespace that enforces the standard "restricted". What
 * counts is the text that clients get.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { before, describe, type TestContext, test } from 'node:test';
import { readCommandLine } from '../../../operator/cli/command-line.ts';
import { runCommand } from '../../../operator/cli/run-command.ts';
import { type ResourceType, resources } from '../../../operator/kube/client.ts';
import { writeVerbs } from '../../support/control-plane.ts';
import { type HubServer, startHub } from '../../support/hub-server.ts';
import { until } from '../../support/operator-process.ts';
import { modelAnswers, models, servingCluster, servingProblem } from '../../support/serving-cluster.ts';
import { type Answers, ask } from '../../support/traffic.ts';

const skip = servingProblem === undefined ? false : `pods need addresses of their own: ${servingProblem}`;
const repository = 'org/chat';
const secrets: ResourceType = {
  group: '',
  version: 'v1',
  kind: 'Secret',
  plural: 'secrets',
  namespaced: true,
};

function filesOf(folder: string): Record<string, Uint8Array> {
  const names = readdirSync(folder).filter((name) => /\.(json|safetensors|jinja)$/.test(name));
  return Object.fromEntries(names.map((name) => [name, readFileSync(path.join(folder, name))]));
}

/** A hub that ends with the test. */
async function hubWith(t: TestContext, files: Record<string, Uint8Array>) {
  const hub = await startHub();
  t.after(() => hub.close());
  return { hub, first: hub.commit(repository, files) };
}

function hubSpec({ endpoint }: HubServer, model: object = {}): object {
  return {
    model: { path: repository, endpoint, servedNames: ['chat'], ...model },
    // The machine's two cores are shared by all pods.
    runtime: { extraArgs: ['--devices=cpu:0'] },
  };
}

/** How often the hub was asked what the branch stands for. */
function lookups(hub: HubServer): number {
  return hub.requests.filter(({ url }) => url.endsWith('/revision/main')).length;
}

describe('a model on a hub', { skip }, () => {
  let answers: Awaited<ReturnType<typeof modelAnswers>>;
  before(async () => {
    answers = await modelAnswers();
  });
  const says = async (url: string, expected: Answers): Promise<void> => {
    for (const route of ['chat', 'completion'] as const)
      assert.deepEqual(
        await ask(url, route),
        { route, stream: false, refused: false, text: expected[route] },
        route,
      );
  };

  test('a branch that moves changes nothing under Pinned, rolls out under Track, and an undo stays on the commit before', async (t) => {
    const { hub, first } = await hubWith(t, filesOf(models.tiny));
    const cluster = await servingCluster(t, 0);
    const { plane, namespace } = cluster;
    const { client } = plane;
    const say = (line: string) =>
      runCommand(readCommandLine([...line.split(' '), `--kubeconfig=${plane.kubeconfig}`, '-n', namespace])!);
    const service = await cluster.create('chat', hubSpec(hub));
    const commitOf = async (): Promise<string> => {
      const { currentRevision, revisions } = await service.ready();
      return revisions.find((each: any) => each.name === currentRevision).commit;
    };
    assert.equal(await commitOf(), first);
    const url = await cluster.urlOf(service);
    await says(url, answers.tiny);

    await cluster.operator.idle();
    const written = async (since: number) =>
      (await plane.auditEvents({ verbs: writeVerbs, namespace, since }))
        .filter(({ userAgent }) => userAgent === 'sluice-operator')
        .map(({ verb, requestURI }) => `${verb} ${requestURI}`);
    assert.ok((await written(0)).some((each) => each.includes('/jobs/')));
    const mark = await plane.auditMark();
    const asked = lookups(hub);
    const second = hub.commit(repository, filesOf(models.other));
    // Another operator, and another pod: neither knows anything but what was recorded.
    await cluster.operator.end();
    await (await cluster.startOperator()).idle();
    assert.deepEqual(await written(mark), []);
    const [lost] = await service.children('pods');
    await client.remove(resources.pods, { namespace, name: lost!.metadata.name });
    await until('another pod is there', async () => {
      const pods = await service.children('pods');
      return pods.length > 0 && pods.every(({ metadata }) => metadata.uid !== lost!.metadata.uid);
    });
    assert.equal(await commitOf(), first);
    await says(url, answers.tiny);
    assert.equal(lookups(hub), asked, 'under Pinned a branch is looked up once');

    await service.edit({ model: { updatePolicy: 'Track', trackIntervalSeconds: 1 } });
    await until('the branch is followed', async () => (await commitOf()) === second);
    await says(url, answers.other);

    const { said } = await say('undo chat');
    assert.match(said, /returns to revision chat-/);
    const third = hub.commit(repository, { ...filesOf(models.other), 'notes.json': Buffer.from('{}') });
    await until('the earlier commit serves', async () => (await commitOf()) === first);
    await says(url, answers.tiny);
    const { status } = await service.get();
    assert.equal(status.conditions.find((each: any) => each.type === 'Paused').reason, 'PinnedToRevision');

    await say('undo chat --off');
    await until('the branch is followed again', async () => (await commitOf()) === third);
    await says(url, answers.other);
  });

  test('a private repository: the Secret that lacks, the token that gives no access, and the one that does', async (t) => {
    const { hub, first } = await hubWith(t, filesOf(models.tiny));
    hub.repositories.get(repository)!.token = 'right';
    const { plane, namespace, create, urlOf } = await servingCluster(t, 0);
    const service = await create('chat', hubSpec(hub));
    const { message } = await service.condition('Stalled', 'True', 'ResolveFailed');
    assert.match(
      message,
      /org\/chat@main cannot be looked up: .*\(401\).*spec\.model\.tokenSecretRef is not set/,
    );

    await service.edit({ model: { tokenSecretRef: { name: 'hub', key: 'token' } } });
    const lacking = await service.condition('Stalled', 'True', 'ContainerConfigInvalid');
    assert.match(lacking.message, /secret "hub" not found/);

    const secret = (token: string) => ({
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { namespace, name: 'hub' },
      stringData: { token },
    });
    await plane.client.create(secrets, secret('wrong'));
    const refused = await service.condition('Stalled', 'True', 'ResolveFailed');
    assert.match(refused.message, /\(401\).*HF_TOKEN is key "token" of Secret "hub"/);

    await plane.client.mergePatch(secrets, { namespace, name: 'hub' }, secret('right'));
    // What failed is tried again after a while, or when it is asked for otherwise.
    await service.edit({ model: { updatePolicy: 'Track', trackIntervalSeconds: 1 } });
    const { model } = await service.ready();
    assert.equal(model.commit, first);
    await says(await urlOf(service), answers.tiny);
    const tokens = new Set(hub.requests.map(({ authorization }) => authorization));
    assert.deepEqual(tokens, new Set([undefined, 'Bearer wrong', 'Bearer right']));
  });
});
