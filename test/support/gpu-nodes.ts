// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * Nodes with GPUs for tests that need the real scheduler and no processes: heartbeats, pods that become ready once they are
 * bound and go when they are deleted. Ends with the test.
 */
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type KubeClient, KubeError, type KubeObject, resources } from '../../operator/kube/client.ts';
import { type PodLook, ready } from './pretend-kubelet.ts';

export interface GpuNodes {
  /** How pods that are bound look; undefined leaves one as it is. */
  look: PodLook;
  /** A container takes its time to end: so many looks at it, about 100 ms apart. */
  turnsToEnd: number;
}

/** `gpus` by the node's name. */
export async function gpuNodes(
  t: TestContext,
  client: KubeClient,
  gpus: Readonly<Record<string, number>>,
): Promise<GpuNodes> {
  const nodes: GpuNodes = { look: ready, turnsToEnd: 5 };
  for (const [name, count] of Object.entries(gpus)) {
    await client.create(resources.nodes, { apiVersion: 'v1', kind: 'Node', metadata: { name } });
    await heartbeat(client, name, count);
  }
  const seen = new Map<string, string>();
  const ending = new Map<string, number>();
  let over = false;
  const work = async (): Promise<void> => {
    for (let turn = 1; !over; turn++) {
      if (turn % 50 === 0)
        for (const [name, count] of Object.entries(gpus)) await heartbeat(client, name, count);
      const { items } = await client.list(resources.pods);
      for (const pod of items)
        if (pod.spec.nodeName in gpus) await ignoringLosses(() => step(client, pod, nodes, seen, ending));
      await sleep(100);
    }
  };
  const working = work();
  t.after(async () => {
    over = true;
    await working;
    for (const name of Object.keys(gpus)) await client.remove(resources.nodes, { name });
  });
  return nodes;
}

async function step(
  client: KubeClient,
  pod: KubeObject,
  { look, turnsToEnd }: GpuNodes,
  seen: Map<string, string>,
  ending: Map<string, number>,
): Promise<void> {
  const { name, namespace = '', uid = '', deletionTimestamp } = pod.metadata;
  if (deletionTimestamp !== undefined) {
    const turns = (ending.get(uid) ?? 0) + 1;
    ending.set(uid, turns);
    if (turns < turnsToEnd) return;
    await client.remove(resources.pods, { namespace, name }, { gracePeriodSeconds: 0, uid });
    return;
  }
  const status = look(pod);
  const text = JSON.stringify(status);
  if (status === undefined || seen.get(uid) === text) return;
  await client.mergePatch(resources.pods, { namespace, name }, { status }, { subresource: 'status' });
  seen.set(uid, text);
}

async function ignoringLosses(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof KubeError) || ![404, 409].includes(error.status)) throw error;
  }
}

async function heartbeat(client: KubeClient, name: string, gpus: number): Promise<void> {
  const lastHeartbeatTime = new Date().toISOString();
  const amounts = { cpu: '64', memory: '256Gi', pods: '110', 'nvidia.com/gpu': String(gpus) };
  const status = {
    capacity: amounts,
    allocatable: amounts,
    conditions: [{ type: 'Ready', status: 'True', reason: 'Ready', message: '', lastHeartbeatTime }],
  };
  await client.mergePatch(resources.nodes, { name }, { status }, { subresource: 'status' });
  const node = await client.get(resources.nodes, { name });
  const taints = (node?.spec.taints ?? []).filter(
    (each: any) => !each.key.startsWith('node.kubernetes.io/not-ready'),
  );
  if (taints.length !== (node?.spec.taints ?? []).length)
    await ignoringLosses(async () => {
      await client.mergePatch(resources.nodes, { name }, { spec: { taints } });
    });
}
