/**
 * For tests of the process node: pods bound to a node of the test's own (no scheduler between), and ways to wait for
 * what becomes of them. A wait has no clock of its own but a very long one: tests fail by what they see.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { ContainerSpec, ContainerStatus, Pod, PodSpec } from '../../local/node/pod-types.ts';
import {
  type KubeClient,
  type KubeObject,
  type ResourceType,
  resources,
} from '../../operator/kube/client.ts';

const run = promisify(execFile);
const waitLimitMs = 60_000;

export class Pods {
  readonly client: KubeClient;
  readonly namespace: string;
  readonly nodeName: string;

  constructor(client: KubeClient, namespace: string, nodeName: string) {
    this.client = client;
    this.namespace = namespace;
    this.nodeName = nodeName;
  }

  async create(name: string, spec: Partial<PodSpec> & Record<string, unknown>, metadata = {}): Promise<Pod> {
    return (await this.client.create(resources.pods, {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name, namespace: this.namespace, ...metadata },
      spec: { nodeName: this.nodeName, terminationGracePeriodSeconds: 5, ...spec },
    })) as Pod;
  }

  async put(type: ResourceType, name: string, fields: Record<string, unknown>): Promise<KubeObject> {
    return await this.client.apply(
      type,
      {
        apiVersion: type.group === '' ? type.version : `${type.group}/${type.version}`,
        kind: type.kind,
        metadata: { name, ...(type.namespaced ? { namespace: this.namespace } : {}) },
        ...fields,
      },
      { fieldManager: 'test', force: true },
    );
  }

  get(name: string): Promise<Pod | undefined> {
    return this.client.get(resources.pods, { namespace: this.namespace, name }) as Promise<Pod | undefined>;
  }

  /** The pod once the condition holds; what it was at last is in the failure's message. */
  async until(name: string, what: string, condition: (pod: Pod) => unknown): Promise<Pod> {
    const deadline = Date.now() + waitLimitMs;
    for (;;) {
      const pod = await this.get(name);
      assert(pod, `pod ${name} vanished while waiting until ${what}`);
      if (condition(pod)) return pod;
      assert(Date.now() < deadline, `pod ${name}: not ${what}: ${JSON.stringify(pod.status, null, 1)}`);
      await sleep(50);
    }
  }

  untilReady(name: string): Promise<Pod> {
    return this.until(name, 'ready', (pod) => conditionOf(pod, 'Ready') === 'True');
  }

  untilPhase(name: string, phase: string): Promise<Pod> {
    return this.until(name, phase, (pod) => pod.status?.phase === phase);
  }

  remove(name: string, gracePeriodSeconds?: number): Promise<void> {
    return this.client.remove(
      resources.pods,
      { namespace: this.namespace, name },
      gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds },
    );
  }

  async untilGone(name: string): Promise<void> {
    const deadline = Date.now() + waitLimitMs;
    while (await this.get(name)) {
      assert(Date.now() < deadline, `pod ${name} is still there`);
      await sleep(50);
    }
  }

  /** Events about a pod, once the condition holds for them. */
  async events(
    name: string,
    condition: (events: readonly KubeObject[]) => unknown,
  ): Promise<readonly KubeObject[]> {
    const deadline = Date.now() + waitLimitMs;
    for (;;) {
      const { items } = await this.client.list(resources.events, {
        namespace: this.namespace,
        fieldSelector: `involvedObject.name=${name}`,
      });
      if (condition(items)) return items;
      const seen = items.map(({ reason, message }) => `${reason}: ${message}`).join('\n');
      assert(Date.now() < deadline, `events of pod ${name}:\n${seen}`);
      await sleep(100);
    }
  }
}

export function conditionOf(pod: Pod, type: string): string | undefined {
  return pod.status?.conditions?.find((condition) => condition.type === type)?.status;
}

export function containerOf(pod: Pod, name: string): ContainerStatus {
  const all = [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])];
  const found = all.find((status) => status.name === name);
  assert(found, `no status of container ${name}: ${JSON.stringify(pod.status)}`);
  return found;
}

/** A container that runs a Node program; `print(value)` in it writes one line of JSON. */
export function program(name: string, code: string, more: Partial<ContainerSpec> = {}): ContainerSpec {
  const prelude =
    "const fs = require('node:fs'), http = require('node:http'), host = process.env.SLUICE_HOST;" +
    'const print = (value) => console.log(JSON.stringify(value));';
  return { name, image: 'sluice.dev/node', args: ['-e', prelude + code], ...more };
}

export function shell(name: string, script: string, more: Partial<ContainerSpec> = {}): ContainerSpec {
  return { name, image: 'sluice.dev/shell', args: ['-c', script], ...more };
}

export async function kubectl(
  plane: { readonly kubectl: string; readonly kubeconfig: string },
  ...args: readonly string[]
): Promise<string> {
  const { stdout } = await run(plane.kubectl, [`--kubeconfig=${plane.kubeconfig}`, ...args]);
  return stdout;
}

export async function get(url: string): Promise<string> {
  const response = await fetch(url);
  return await response.text();
}

/** Whether any process of this machine has this text in its command line. */
export async function isRunning(marker: string): Promise<boolean> {
  const { stdout } = await run('ps', ['-eo', 'args']);
  return stdout.includes(marker);
}

export async function untilTrue(what: string, condition: () => Promise<boolean> | boolean): Promise<void> {
  const deadline = Date.now() + waitLimitMs;
  while (!(await condition())) {
    assert(Date.now() < deadline, what);
    await sleep(50);
  }
}
