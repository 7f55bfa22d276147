/**
 * Waits until an InferenceService is Ready and answers through its Service. In: a cluster, a name. Out: where it is
 * reached, or, when it takes too long, everything that tells why.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type KubeClient, type KubeObject, type ObjectRef, resources } from '../../operator/kube/client.ts';
import { SluiceError } from '../../runtime/errors.ts';
import { lastLines } from '../child.ts';
import type { Cluster } from '../cluster.ts';

export interface Served {
  readonly service: ObjectRef;
  /** http://host:port, without a path. */
  readonly url: string;
  readonly model: string;
}

const timeoutMs = 300_000;
const pollMs = 250;

interface Condition {
  readonly type: string;
  readonly status: string;
  readonly reason?: string;
  readonly message?: string;
}

export async function waitUntilServed(
  cluster: Cluster,
  service: ObjectRef,
  now: (detail: string) => void,
  signal: AbortSignal,
): Promise<Served> {
  const { client, proxy } = cluster;
  const deadline = Date.now() + timeoutMs;
  let last = '';
  const say = (detail: string) => {
    last = detail;
    now(detail);
  };
  for (;;) {
    signal.throwIfAborted();
    const object = await client.get(resources.inferenceServices, service);
    const conditions: readonly Condition[] = object?.status?.conditions ?? [];
    const current = conditions.every(
      (condition) =>
        (condition as { observedGeneration?: number }).observedGeneration === object?.metadata.generation,
    );
    if (current && isTrue(conditions, 'Ready')) {
      const address = proxy.addressOf(`${service.namespace}/${service.name}`, 80);
      const url = address === undefined ? undefined : `http://${address.replace(/:80$/, '')}`;
      const model = url === undefined ? undefined : await firstModel(url);
      if (url !== undefined && model !== undefined) return { service, url, model };
      say(address === undefined ? 'waiting for its Service' : `waiting for an answer from ${url}`);
    } else {
      say(trouble(conditions) ?? 'waiting for the operator');
    }
    if (Date.now() > deadline) {
      throw new SluiceError(
        'unavailable',
        `InferenceService ${service.namespace}/${service.name} was not served after ${timeoutMs / 1000} s: ${last}\n` +
          (await evidence(cluster, service)),
      );
    }
    await sleep(pollMs);
  }
}

function isTrue(conditions: readonly Condition[], type: string): boolean {
  return conditions.some((condition) => condition.type === type && condition.status === 'True');
}

function trouble(conditions: readonly Condition[]): string | undefined {
  const found =
    conditions.find(({ type, status }) => type === 'Stalled' && status === 'True') ??
    conditions.find(({ type, status }) => type === 'Reconciling' && status === 'True') ??
    conditions.find(({ type, status }) => type === 'Ready' && status !== 'True');
  return found === undefined ? undefined : `${found.reason}: ${found.message}`;
}

/** Undefined while nobody answers. */
async function firstModel(url: string): Promise<string | undefined> {
  try {
    const answer = await fetch(`${url}/v1/models`, { signal: AbortSignal.timeout(5_000) });
    if (!answer.ok) {
      await answer.body?.cancel();
      return undefined;
    }
    const { data } = (await answer.json()) as { data: { id: string }[] };
    return data[0]?.id;
  } catch {
    return undefined;
  }
}

async function evidence({ client, operator }: Cluster, { namespace = '' }: ObjectRef): Promise<string> {
  const parts: string[] = [];
  const { items } = await client.list(resources.pods, { namespace });
  if (items.length === 0) parts.push('There is no pod.');
  for (const pod of items) {
    const waiting = (pod.status?.conditions ?? []).find(({ status }: Condition) => status === 'False');
    parts.push(
      `Pod ${pod.metadata.name}: ${pod.status?.phase}, ${waiting?.reason ?? ''} ${waiting?.message ?? ''}`,
    );
    parts.push(await podLog(client, pod));
  }
  parts.push(`The end of ${operator.logFile}:\n${lastLines(operator.logFile)}`);
  return parts.join('\n');
}

async function podLog(client: KubeClient, { metadata }: KubeObject): Promise<string> {
  try {
    return await client.getText(
      `/api/v1/namespaces/${metadata.namespace}/pods/${metadata.name}/log?tailLines=12`,
    );
  } catch (error) {
    return `(no log: ${(error as Error).message})`;
  }
}
