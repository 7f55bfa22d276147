/**
 * The cluster of the operator's benchmark: the real control plane, nodes and pods of kwok, the chart's rights, what the
 * services need. Enters: counts. Leaves: clients, the audit log, and what is made on request.
 */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startChild } from '../../local/child.ts';
import { childEnvironment } from '../../local/config.ts';
import { type ControlPlane, startControlPlane } from '../../local/control-plane.ts';
import { createOperatorAccount } from '../../local/operator-account.ts';
import { type KubeClient, type KubeObject, resources } from '../../operator/kube/client.ts';
import { type ConnectedKubeClient, createKubeClient } from '../../operator/kube/rest-client.ts';
import { goProgram } from '../../test/support/go-program.ts';
import { installCrd } from '../../test/support/inference-services.ts';
import { until } from '../../test/support/operator-process.ts';

export const system = 'sluice-system';
const gpusPerNode = 16;
const namespaces = 10;

export interface BenchCluster {
  readonly plane: ControlPlane;
  readonly client: ConnectedKubeClient;
  /** Of the operator: with the rights that the chart gives, and no others. */
  readonly account: string;
  readonly operatorKubeconfig: string;
}

export async function startCluster(
  services: number,
  progress: (line: string) => void,
  after: (end: () => Promise<void>) => void,
): Promise<BenchCluster> {
  const kwok = goProgram({ name: 'kwok', package: 'sigs.k8s.io/kwok/cmd/kwok', version: 'v0.8.0' }, progress);
  const plane = await startControlPlane({ onProgress: progress });
  after(() => plane.stop());
  const client = createKubeClient({ kubeconfig: plane.kubeconfig });
  after(async () => client.close());
  await installCrd(client);
  const operator = await createOperatorAccount(client, system, 'bench');
  for (let index = 0; index < namespaces; index++) await modelsIn(client, namespaceOf(index));
  const nodes = Math.ceil((services * 2) / gpusPerNode) + 1;
  for (let index = 0; index < nodes; index++) await client.create(resources.nodes, node(index));
  progress(`starting kwok with ${nodes} nodes`);
  const child = await startChild({
    name: 'kwok',
    command: kwok,
    args: [
      `--kubeconfig=${plane.kubeconfig}`,
      `--config=${path.join(import.meta.dirname, 'kwok.yaml')}`,
      '--manage-all-nodes',
      '--node-lease-duration-seconds=40',
    ],
    environment: childEnvironment(),
    logFile: path.join(plane.directory, 'logs', 'kwok.log'),
    guard: plane.guard,
  });
  after(() => child.stop());
  await until('all nodes are ready', async () => {
    const { items } = await client.list(resources.nodes);
    return items.every((each) => each.status?.conditions?.some(isTrue('Ready')) && !each.spec.taints?.length);
  });
  return {
    plane,
    client,
    account: operator.name,
    operatorKubeconfig: plane.kubeconfigFor(operator),
  };
}

export const isTrue =
  (type: string) =>
  (condition: { type: string; status: string }): boolean =>
    condition.type === type && condition.status === 'True';

async function namespace(client: KubeClient, name: string): Promise<void> {
  await client.create(resources.namespaces, { apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
  const type = {
    group: '',
    version: 'v1',
    kind: 'ServiceAccount',
    plural: 'serviceaccounts',
    namespaced: true,
  };
  await until(`pods may be made in ${name}`, async () =>
    client.get(type, { namespace: name, name: 'default' }),
  );
}

/** A namespace with a volume of checkpoints, of which nothing is ever read. */
async function modelsIn(client: KubeClient, name: string): Promise<void> {
  await namespace(client, name);
  const shared = { accessModes: ['ReadOnlyMany'], storageClassName: '' };
  await client.create(resources.persistentVolumes, {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: `models-${name}` },
    spec: {
      ...shared,
      capacity: { storage: '1Gi' },
      hostPath: { path: '/models' },
      claimRef: { namespace: name, name: 'models' },
    },
  });
  await client.create(resources.persistentVolumeClaims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { namespace: name, name: 'models' },
    spec: { ...shared, volumeName: `models-${name}`, resources: { requests: { storage: '1Gi' } } },
  });
}

function node(index: number): KubeObject {
  const amounts = { cpu: '1k', memory: '4Ti', pods: '100k', 'nvidia.com/gpu': String(gpusPerNode) };
  const labels = {
    'kubernetes.io/hostname': nodeName(index),
    'nvidia.com/gpu.product': 'NVIDIA-H100-80GB-HBM3',
  };
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: nodeName(index), labels },
    status: { capacity: amounts, allocatable: amounts },
  };
}

export const nodeName = (index: number): string => `node-${index}`;
const namespaceOf = (index: number): string => `team-${index % namespaces}`;

/** Services of several shapes: on CPUs and GPUs, one replica or two, from a volume or looked up on a hub. */
export function service(index: number): KubeObject {
  const inVolume = {
    model: { path: `/models/model-${index}`, servedNames: [`model-${index}`] },
    storage: { persistentVolumeClaim: { claimName: 'models' } },
  };
  const onHub = { model: { path: `example/model-${index}`, revision: 'main' } };
  return {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'InferenceService',
    metadata: { namespace: namespaceOf(index), name: `service-${index}` },
    spec: {
      ...(index % 2 === 0 ? inVolume : onHub),
      gpus: index % 3,
      replicas: index % 5 === 0 ? 2 : 1,
      runtime: { maxBatchSize: 8 },
    },
  };
}

/** Somebody else's pods, of usual size: two containers, some variables, volumes and labels. */
export async function foreignPods(
  { client }: BenchCluster,
  count: number,
  progress: (line: string) => void,
): Promise<void> {
  if (count === 0) return;
  await namespace(client, 'foreign');
  const env = Array.from({ length: 12 }, (_, index) => ({
    name: `SETTING_${index}`,
    value: `https://setting-${index}.example/some/path`,
  }));
  const mount = { name: 'config', mountPath: '/etc/config' };
  const container = (name: string) => ({
    name,
    image: `registry.example/team/${name}:1.2.3`,
    env,
    ports: [{ containerPort: 8080 }],
    resources: { requests: { cpu: '10m', memory: '32Mi' }, limits: { memory: '64Mi' } },
    livenessProbe: { httpGet: { path: '/live', port: 8080 } },
    volumeMounts: [mount],
  });
  await inParallel(count, async (index) => {
    await client.create(resources.pods, {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: {
        namespace: 'foreign',
        name: `app-${index}`,
        labels: { app: 'app', 'app.kubernetes.io/instance': `app-${index}`, tier: 'backend' },
        annotations: { 'example.com/checksum': 'a'.repeat(64), 'example.com/note': 'b'.repeat(200) },
      },
      spec: {
        nodeName: nodeName(0),
        containers: [container('app'), container('sidecar')],
        volumes: [{ name: 'config', emptyDir: {} }],
      },
    });
    if ((index + 1) % 1000 === 0) progress(`${index + 1} of ${count} foreign pods are made`);
  });
  for (;;) {
    const { items } = await client.list(resources.pods, {
      namespace: 'foreign',
      fieldSelector: 'status.phase!=Running',
    });
    if (items.length === 0) return;
    progress(`${items.length} foreign pods do not run yet`);
    await sleep(10_000);
  }
}

/** A few requests at a time. */
export async function inParallel(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: 8 }, worker));
}
