/**
 * The Node object and its lease: registered, renewed, and at the end marked as gone. In: what the node has; out: what
 * the API server shows. Must not know pods.
 */
import os from 'node:os';
import { type KubeClient, KubeError, resources } from '../../operator/kube/client.ts';
import { podLimit } from './addresses.ts';
import { gpuResource } from './gpus.ts';
import { pause } from './wait.ts';

export interface NodeDescription {
  readonly name: string;
  readonly hostIP: string;
  readonly kubeletPort: number;
  readonly gpus: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly onFailure: (error: unknown) => void;
}

const leaseNamespace = 'kube-node-lease';
const leaseSeconds = 40;
const renewMs = 10_000;
const retryMs = 1_000;
const statusMs = 5 * 60_000;
const leaveTimeoutMs = 1_000;
const gpuProduct = 'Sluice-Process-GPU';

export class NodeObject {
  readonly #client: KubeClient;
  readonly #description: NodeDescription;
  readonly #controller = new AbortController();
  readonly capacity: Readonly<Record<string, string>>;
  #beating: Promise<void> = Promise.resolve();
  #uid: string | undefined;
  #readySince = timestamp();

  constructor(client: KubeClient, description: NodeDescription) {
    this.#client = client;
    this.#description = description;
    this.capacity = {
      cpu: String(os.availableParallelism()),
      memory: `${Math.floor(os.totalmem() / 1024)}Ki`,
      'ephemeral-storage': '100Gi',
      pods: String(podLimit),
      ...(description.gpus > 0 ? { [gpuResource]: String(description.gpus) } : {}),
    };
  }

  /** The object is there and Ready; the lease is renewed from now on. */
  async register(): Promise<void> {
    await this.#writeMetadata();
    await this.#writeStatus('True');
    await this.#renewLease();
    this.#beating = this.#beat();
  }

  /** Says that the node is gone, if the API server still listens. The object stays, as a kubelet's does. */
  async leave(): Promise<void> {
    this.#controller.abort();
    await this.#beating;
    await Promise.race([this.#writeStatus('False').catch(() => {}), pause(leaveTimeoutMs)]);
  }

  async #beat(): Promise<void> {
    const { signal } = this.#controller;
    let delayMs = renewMs;
    let statusAt = Date.now();
    for (;;) {
      await pause(delayMs, signal);
      if (signal.aborted) return;
      try {
        // A lease goes with its Node object: somebody has deleted it.
        const vanished = await this.#renewLease();
        if (vanished) await this.#writeMetadata();
        if (vanished || Date.now() - statusAt > statusMs) {
          await this.#writeStatus('True');
          statusAt = Date.now();
        }
        delayMs = renewMs;
      } catch (error) {
        this.#description.onFailure(error);
        delayMs = retryMs;
      }
    }
  }

  async #writeMetadata(): Promise<void> {
    const { name, gpus } = this.#description;
    const labels = {
      'kubernetes.io/hostname': name,
      'kubernetes.io/os': 'linux',
      'kubernetes.io/arch': os.arch() === 'x64' ? 'amd64' : os.arch(),
      'sluice.dev/process-node': 'true',
      ...(gpus > 0
        ? {
            'nvidia.com/gpu.present': 'true',
            'nvidia.com/gpu.count': String(gpus),
            'nvidia.com/gpu.product': gpuProduct,
          }
        : { 'nvidia.com/gpu.present': null, 'nvidia.com/gpu.count': null, 'nvidia.com/gpu.product': null }),
      ...this.#description.labels,
    };
    const present = Object.fromEntries(
      Object.entries(labels).filter((label): label is [string, string] => label[1] !== null),
    );
    try {
      const created = await this.#client.create(resources.nodes, {
        apiVersion: 'v1',
        kind: 'Node',
        metadata: { name, labels: present },
        spec: {},
      });
      this.#uid = created.metadata.uid;
    } catch (error) {
      if (!(error instanceof KubeError && error.reason === 'AlreadyExists')) throw error;
      const node = await this.#client.mergePatch(resources.nodes, { name }, { metadata: { labels } });
      this.#uid = node.metadata.uid;
    }
  }

  async #writeStatus(ready: 'True' | 'False'): Promise<void> {
    const { name, hostIP, kubeletPort, gpus } = this.#description;
    const now = timestamp();
    if (ready === 'False') this.#readySince = now;
    const condition = (type: string, status: string, reason: string, message: string) => ({
      type,
      status,
      reason,
      message,
      lastHeartbeatTime: now,
      lastTransitionTime: this.#readySince,
    });
    const amounts = gpus > 0 ? this.capacity : { ...this.capacity, [gpuResource]: null };
    await this.#client.mergePatch(
      resources.nodes,
      { name },
      {
        status: {
          capacity: amounts,
          allocatable: amounts,
          addresses: [{ type: 'InternalIP', address: hostIP }],
          daemonEndpoints: { kubeletEndpoint: { Port: kubeletPort } },
          nodeInfo: {
            architecture: os.arch() === 'x64' ? 'amd64' : os.arch(),
            operatingSystem: 'linux',
            osImage: 'processes of this machine',
            kernelVersion: os.release(),
            kubeletVersion: 'v1.36.3-process',
            kubeProxyVersion: '',
            containerRuntimeVersion: `process://${process.version.slice(1)}`,
            bootID: '',
            machineID: '',
            systemUUID: '',
          },
          conditions: [
            condition('MemoryPressure', 'False', 'ProcessNode', 'not watched'),
            condition('DiskPressure', 'False', 'ProcessNode', 'not watched'),
            condition('PIDPressure', 'False', 'ProcessNode', 'not watched'),
            ready === 'True'
              ? condition('Ready', 'True', 'ProcessNodeReady', 'pods run as processes of this machine')
              : condition('Ready', 'False', 'ProcessNodeStopped', 'the process node was stopped'),
          ],
        },
      },
      { subresource: 'status' },
    );
  }

  /** True when there was none. */
  async #renewLease(): Promise<boolean> {
    const { name } = this.#description;
    const spec = {
      holderIdentity: name,
      leaseDurationSeconds: leaseSeconds,
      renewTime: new Date().toISOString().replace('Z', '000Z'),
    };
    try {
      await this.#client.mergePatch(resources.leases, { namespace: leaseNamespace, name }, { spec });
      return false;
    } catch (error) {
      if (!(error instanceof KubeError && error.status === 404)) throw error;
      await this.#client.create(resources.leases, {
        apiVersion: 'coordination.k8s.io/v1',
        kind: 'Lease',
        metadata: {
          name,
          namespace: leaseNamespace,
          ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name, uid: this.#uid! }],
        },
        spec,
      });
      return true;
    }
  }
}

function timestamp(): string {
  return new Date().toISOString().replace(/\.\d+Z$/, 'Z');
}
