/**
 * A cluster that really serves, for tests: a control plane with scheduler and controllers, a process node with pretended
 * GPUs whose pods are the real runtime, the service proxy, the operator's program, and a volume with two small models that
 * answer differently, all of it in a namespace that enforces the standard "restricted". Ends with the test.
 */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { type Guard, startGuard } from '../../local/guard.ts';
import { loopbackProblem } from '../../local/loopback.ts';
import { runtimeImage } from '../../local/node/images.ts';
import { startProcessNode } from '../../local/node/process-node.ts';
import { startServiceProxy } from '../../local/service-proxy.ts';
import { resources } from '../../operator/kube/client.ts';
import { ServeProcess } from '../runtime/cli/program.ts';
import { controlPlane, type TestControlPlane } from './control-plane.ts';
import { enforceRestricted, installCrd, ServiceUnderTest } from './inference-services.ts';
import { type OperatorProcess, startOperator, until } from './operator-process.ts';
import { type Answers, answersOf } from './traffic.ts';

const checkout = path.resolve(import.meta.dirname, '../..');
const runtimeImageName = 'sluice-runtime:test';
/** Checkpoints with a chat template that four ranks can cut. */
export const models = {
  tiny: path.join(checkout, 'examples/models/tiny'),
  other: path.join(checkout, 'test/goldens/mistral'),
};

/** Each pod of a rollout needs an address of its own. */
export const servingProblem = await loopbackProblem();

export interface ServingCluster {
  readonly plane: TestControlPlane;
  readonly namespace: string;
  readonly operator: OperatorProcess;
  /** Another process in the operator's place, which has ended. */
  startOperator(): Promise<OperatorProcess>;
  create(name: string, spec: object): Promise<ServiceUnderTest>;
  /** Where a client reaches the service. */
  urlOf(service: ServiceUnderTest): Promise<string>;
}

/** A revision of the models' volume: 4 GPUs by default, which are ranks of the CPU. */
export function servingSpec(more: object = {}): object {
  return {
    model: { path: '/tiny', servedNames: ['chat'] },
    storage: { persistentVolumeClaim: { claimName: 'models' } },
    gpus: 4,
    // The machine's two cores are shared by all pods.
    runtime: { extraArgs: ['--devices=cpu:0'] },
    ...more,
  };
}

export async function servingCluster(t: TestContext, gpus: number): Promise<ServingCluster> {
  const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  await enforceRestricted(client, namespace);
  /** The last first: the guard removes what is left of the others. */
  const undo: (() => Promise<unknown>)[] = [];
  t.after(async () => {
    for (const each of undo.reverse()) await each();
  });
  const guard = startGuard();
  undo.push(() => guard.close());
  undo.push(await modelVolume(plane, namespace, guard));
  const nodeName = `${namespace}-node`;
  const node = await startProcessNode({
    client,
    name: nodeName,
    gpus,
    guard,
    authority: plane.authority,
    apiServer: plane.url,
    images: { [runtimeImageName]: runtimeImage() },
    backoffBaseMs: 1000,
  });
  undo.push(async () => {
    await node.stop({ graceSeconds: 0 });
    await client.remove(resources.nodes, { name: nodeName });
  });
  const proxy = await startServiceProxy({ client, guard });
  undo.push(() => proxy.stop());
  const start = async () => {
    const operator = await startOperator(t, plane.kubeconfig, [
      '--no-leader-elect',
      `--runtime-image=${runtimeImageName}`,
    ]);
    undo.push(() => operator.end('SIGKILL'));
    return operator;
  };
  return {
    plane,
    namespace,
    operator: await start(),
    startOperator: start,
    create: (name, spec) => ServiceUnderTest.create(client, namespace, name, spec),
    async urlOf({ name }) {
      const key = `${namespace}/${name}`;
      const address = await until(`the address of ${key}`, () => proxy.addressOf(key, 80));
      return `http://${address}`;
    },
  };
}

/** The claim "models", with each model in a folder of its name; the result removes it. */
async function modelVolume(
  { client }: TestControlPlane,
  namespace: string,
  guard: Guard,
): Promise<() => Promise<void>> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-models-'));
  guard.add('folder', folder);
  for (const [name, source] of Object.entries(models)) {
    mkdirSync(path.join(folder, name));
    cpSync(source, path.join(folder, name), { recursive: true });
  }
  const volume = `${namespace}-models`;
  const spec = { accessModes: ['ReadOnlyMany'], storageClassName: '' };
  await client.create(resources.persistentVolumes, {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: volume },
    spec: {
      ...spec,
      capacity: { storage: '1Gi' },
      persistentVolumeReclaimPolicy: 'Retain',
      hostPath: { path: folder, type: 'Directory' },
      claimRef: { namespace, name: 'models' },
    },
  });
  await client.create(resources.persistentVolumeClaims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { namespace, name: 'models' },
    spec: { ...spec, volumeName: volume, resources: { requests: { storage: '1Gi' } } },
  });
  return async () => {
    await client.remove(resources.persistentVolumes, { name: volume });
    rmSync(folder, { recursive: true, force: true });
  };
}

/** What each model answers when a server of its own runs it. */
export async function modelAnswers(): Promise<Readonly<Record<keyof typeof models, Answers>>> {
  const alone = async (folder: string) => {
    await using server = await ServeProcess.ready([
      `--model-path=${folder}`,
      '--served-model-name=chat',
      '--devices=cpu:0',
    ]);
    return await answersOf(server.url);
  };
  const [tiny, other] = await Promise.all([alone(models.tiny), alone(models.other)]);
  assert.notDeepEqual(tiny, other);
  return { tiny, other };
}
