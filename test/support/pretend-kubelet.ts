// biome-ignore-all lint/suspicious/noExplicitAny: pods are as open as their schema.
/**
 * Writes pods' status as scheduler and kubelet would, for tests that are about controllers and need no processes. Enters:
 * what each pod is to look like. Ends with the test.
 */
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type KubeClient, KubeError, type KubeObject, resources } from '../../operator/kube/client.ts';

/** The status to write; undefined leaves the pod as it is. */
export type PodLook = (pod: KubeObject) => object | undefined;

export const ready: PodLook = () => ({
  phase: 'Running',
  conditions: [
    { type: 'PodScheduled', status: 'True' },
    { type: 'Ready', status: 'True' },
  ],
  containerStatuses: [containerStatus({ state: { running: {} }, ready: true, started: true })],
});

/** Pods are ready; those of Jobs have looked a model up and found this. */
export const readyAndLookedUp =
  (found: object = { commit: 'sha256:0' }): PodLook =>
  (pod) =>
    pod.metadata.labels?.['sluice.dev/role'] === 'resolve'
      ? {
          phase: 'Succeeded',
          containerStatuses: [
            containerStatus({ state: { terminated: { exitCode: 0, message: JSON.stringify(found) } } }),
          ],
        }
      : ready(pod);

export const pending: PodLook = () => undefined;

export const crashing =
  (exitCode: number, message: string): PodLook =>
  () => ({
    phase: 'Running',
    conditions: [
      { type: 'PodScheduled', status: 'True' },
      { type: 'Ready', status: 'False' },
    ],
    containerStatuses: [
      containerStatus({
        restartCount: 3,
        state: {
          waiting: { reason: 'CrashLoopBackOff', message: 'back-off 40s restarting failed container' },
        },
        lastState: { terminated: { exitCode, message } },
      }),
    ],
  });

export const imageMissing: PodLook = (pod) => ({
  phase: 'Pending',
  conditions: [{ type: 'PodScheduled', status: 'True' }],
  containerStatuses: [
    containerStatus({
      state: {
        waiting: {
          reason: 'ImagePullBackOff',
          message: `Back-off pulling image "${pod.spec.containers[0].image}": ErrImagePull: not found`,
        },
      },
    }),
  ],
});

export const unschedulable: PodLook = () => ({
  phase: 'Pending',
  conditions: [
    {
      type: 'PodScheduled',
      status: 'False',
      reason: 'Unschedulable',
      message: '0/1 nodes are available: 1 Insufficient nvidia.com/gpu.',
    },
  ],
});

function containerStatus(more: object): object {
  return { name: 'runtime', image: 'x', imageID: '', ready: false, restartCount: 0, ...more };
}

export interface PretendKubelet {
  look: PodLook;
}

export function pretendKubelet(
  t: TestContext,
  client: KubeClient,
  namespace: string,
  look: PodLook = ready,
): PretendKubelet {
  const kubelet: PretendKubelet = { look };
  const written = new Map<string, string>();
  let over = false;
  const work = async (): Promise<void> => {
    while (!over) {
      const { items } = await client.list(resources.pods, { namespace });
      for (const pod of items) {
        const status = kubelet.look(pod);
        const text = JSON.stringify(status);
        if (status === undefined || written.get(pod.metadata.uid!) === text) continue;
        try {
          await client.mergePatch(
            resources.pods,
            { namespace, name: pod.metadata.name },
            { status },
            { subresource: 'status' },
          );
          written.set(pod.metadata.uid!, text);
        } catch (error) {
          if (!(error instanceof KubeError) || ![404, 409].includes(error.status)) throw error;
        }
      }
      await sleep(100);
    }
  };
  const working = work();
  t.after(async () => {
    over = true;
    await working;
  });
  return kubelet;
}
