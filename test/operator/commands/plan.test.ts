// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * What `plan` says is what the audit log then shows: random edits of one service on a real control plane with one node of
 * four GPUs, of which a neighbour holds some. SLUICE_TEST_SEED=n takes another fifty.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { stringify } from 'yaml';
import { commandOptions } from '../../../operator/cli/command-line.ts';
import { planCommand } from '../../../operator/cli/commands/plan.ts';
import { type KubeClient, type KubeObject, resources } from '../../../operator/kube/client.ts';
import { controlPlane, writeVerbs } from '../../support/control-plane.ts';
import { gpuNodes } from '../../support/gpu-nodes.ts';
import { installCrd, manifest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';

const seed = Number(process.env.SLUICE_TEST_SEED ?? 20260101);
const operatorUser = 'sluice-operator';
const image = 'runtime:test';

/** Edits of one field, by its path; the first value is the one to begin with. */
const fields: Readonly<Record<string, readonly unknown[]>> = {
  'model.path': ['/tiny', '/tiny2', '/tiny3'],
  gpus: [1, 2, 4, 0],
  replicas: [2, 1, 3, 0],
  'runtime.maxBatchSize': [undefined, 4, 8],
  'template.metadata.labels.team': [undefined, 'a', 'b'],
  'rollout.paused': [undefined, true],
  'rollout.strategy': [undefined, 'Recreate', 'Surge'],
  'rollout.maxUnavailable': [undefined, 1],
  'rollout.maxSurge': [undefined, 2],
  'rollout.promotion': [undefined, 'Manual'],
  'rollout.capacity.whenInsufficient': [undefined, 'Wait'],
  'rollout.capacity.mode': [undefined, 'MayGrow'],
  suspend: [undefined, true],
};

type Choice = Readonly<Record<string, unknown>>;

function specOf(choice: Choice): object {
  const spec: any = {
    storage: { persistentVolumeClaim: { claimName: 'models' } },
    rollout: { capacity: { waitSeconds: 2 } },
  };
  for (const [field, value] of Object.entries(choice)) {
    if (value === undefined) continue;
    const keys = field.split('.');
    const last = keys.pop()!;
    let at = spec;
    for (const key of keys) at = at[key] ??= {};
    at[last] = value;
  }
  return spec;
}

/** As many as asked for, the same for each seed: each changes one field, and a pause or a suspension does not stay for long. */
function editsOf(seed: number, count: number): Choice[] {
  const names = Object.keys(fields);
  const pick = fc.sample(fc.tuple(fc.nat(), fc.nat()), { seed, numRuns: count });
  let choice: Choice = Object.fromEntries(names.map((name) => [name, fields[name]![0]]));
  return pick.map(([a, b]) => {
    const held = ['rollout.paused', 'suspend'].find((name) => choice[name] === true);
    const name = held !== undefined && a % 2 === 0 ? held : names[a % names.length]!;
    const others = fields[name]!.filter((each) => each !== choice[name]);
    choice = { ...choice, [name]: others[b % others.length] };
    return choice;
  });
}

/** How many pods of each. */
function byReplicaSet(pods: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of pods.map((pod) => pod.slice(0, pod.lastIndexOf('-'))))
    counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}

async function planned(t: TestContext, client: KubeClient, object: KubeObject): Promise<any> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-test-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = path.join(folder, 'manifest.yaml');
  writeFileSync(file, stringify(object));
  const options = {
    ...Object.fromEntries(
      Object.entries(commandOptions).map(([key, each]) => [
        key,
        'default' in each ? each.default : undefined,
      ]),
    ),
    file: [file],
    output: 'json',
    runtimeImage: image,
  } as any;
  const text = await planCommand(options, { client, namespace: object.metadata.namespace!, now: new Date() });
  return JSON.parse(text).services[0];
}

const kinds: Readonly<Record<string, string>> = Object.fromEntries(
  Object.values(resources).map(({ plural, kind }) => [plural, kind]),
);

/** A claim `models` that is bound: the scheduler asks for it. */
async function modelsVolume(t: TestContext, client: KubeClient, namespace: string): Promise<void> {
  const size = { storage: '1Gi' };
  const accessModes = ['ReadOnlyMany'];
  const volume = `models-${namespace}`;
  await client.create(resources.persistentVolumes, {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: volume },
    spec: {
      capacity: size,
      accessModes,
      storageClassName: '',
      hostPath: { path: '/models' },
      claimRef: { namespace, name: 'models' },
    },
  });
  t.after(() => client.remove(resources.persistentVolumes, { name: volume }));
  await client.create(resources.persistentVolumeClaims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'models', namespace },
    spec: { accessModes, storageClassName: '', volumeName: volume, resources: { requests: size } },
  });
}

test('fifty random edits: the objects, verbs and pods of the plan are those of the audit log', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  await gpuNodes(t, client, { 'node-a': 4 });
  await modelsVolume(t, client, namespace);
  // A neighbour: with it four GPUs in one pod fit nowhere.
  await client.create(resources.pods, {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'neighbour', namespace },
    spec: {
      containers: [{ name: 'main', image: 'x', resources: { limits: { 'nvidia.com/gpu': '1' } } }],
    },
  });
  const operator = await startOperator(
    t,
    plane.kubeconfigFor({ name: operatorUser, groups: ['system:masters'] }),
    [`--namespace=${namespace}`, `--runtime-image=${image}`],
  );

  const childWrites = async (since: number): Promise<string[]> => {
    const events = await plane.auditEvents({ verbs: writeVerbs, username: operatorUser, namespace, since });
    const found = events
      .filter(
        ({ objectRef: { resource = '' } = {} }) =>
          !['leases', 'events', 'inferenceservices'].includes(resource),
      )
      .filter(
        ({ requestURI, responseStatus }) =>
          !requestURI.includes('dryRun=All') && (responseStatus?.code ?? 0) < 300,
      )
      .map(({ verb, objectRef: { resource = '', name } = {} }) => `${verb} ${kinds[resource]} ${name}`);
    return [...new Set(found)].sort();
  };
  const podNames = async (): Promise<string[]> => {
    const { items } = await client.list(resources.pods, {
      namespace,
      labelSelector: 'sluice.dev/service=chat',
    });
    return items
      .filter((pod) => pod.metadata.deletionTimestamp === undefined)
      .map((pod) => pod.metadata.name);
  };

  const edits: Choice[] = [
    Object.fromEntries(Object.entries(fields).map(([name, values]) => [name, values[0]])),
    ...editsOf(seed, 50),
  ];
  for (const [index, choice] of edits.entries()) {
    const object = manifest(namespace, 'chat', specOf(choice));
    const plan = await planned(t, client, object);
    assert.equal(plan.gpus.perPod, choice.gpus, 'the GPUs that a pod needs, also while there is none');
    const before = await podNames();
    const mark = await plane.auditMark();
    await client.apply(resources.inferenceServices, object, { fieldManager: 'kubectl', force: true });
    const expected = plan.writes.map((each: any) => `${each.verb} ${each.kind} ${each.name}`).sort();
    const what = `seed ${seed}, edit ${index} (${JSON.stringify(choice)})`;
    const gone = async (): Promise<string[]> => {
      const now = await podNames();
      return before.filter((name) => !now.includes(name));
    };
    let seen: unknown;
    await until(`${what} comes to rest as planned`, async () => {
      const { metadata, status } = (await client.get(resources.inferenceServices, {
        namespace,
        name: 'chat',
      }))!;
      const ready = status?.conditions?.find((each: any) => each.type === 'Ready');
      seen = { ready, writes: await childWrites(mark), gone: await gone() };
      return (
        status?.observedGeneration === metadata.generation &&
        (ready.status === 'True') === plan.outcome.ready &&
        ready.reason === plan.outcome.reason &&
        (await childWrites(mark)).length >= expected.length &&
        // A pod without a node is waited for before further ones end for it.
        (await gone()).length >= plan.pods.ended.length
      );
    }).catch((error) =>
      assert.fail(
        `${error.message}\nplanned: ${JSON.stringify(plan, undefined, 1)}\nseen: ${JSON.stringify(seen, undefined, 1)}`,
      ),
    );
    await operator.idle();
    assert.deepEqual(await childWrites(mark), expected, what);
    // Which one of several alike ends when there are to be fewer is the ReplicaSet controller's choice.
    assert.deepEqual(byReplicaSet(await gone()), byReplicaSet(plan.pods.ended), `${what}: pods that end`);
  }
});
