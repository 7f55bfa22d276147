/**
 * A Kubernetes node whose pods run as processes of this machine. In: a client, a name, a number of pretended GPUs; out:
 * a Node object, kept alive, and whatever is bound to it. What it honours of a pod is in supported-fields.ts.
 */
import { mkdirSync, mkdtempSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type KubeClient, type KubeObject, resources } from '../../operator/kube/client.ts';
import { type CertificateAuthority, createCertificateAuthority } from '../certificates.ts';
import { type Guard, startGuard } from '../guard.ts';
import { createAddressPool } from './addresses.ts';
import { EventRecorder } from './event-recorder.ts';
import { removeTree } from './files.ts';
import { follow } from './follow.ts';
import { GpuPool } from './gpus.ts';
import { type ImageTable, toolImages } from './images.ts';
import { KeyedObjects } from './keyed-objects.ts';
import { startKubeletServer } from './kubelet-server.ts';
import { NodeObject } from './node-object.ts';
import type { Pod } from './pod-types.ts';
import { type NodeContext, PodWorker } from './pod-worker.ts';
import { PortClaims } from './port-claims.ts';
import { detectSandbox, type SandboxKind } from './sandbox.ts';

export interface ProcessNodeOptions {
  readonly client: KubeClient;
  readonly name: string;
  /** 0 to 8. */
  readonly gpus: number;
  readonly labels?: Readonly<Record<string, string>>;
  /** For pods' files; without one a temporary folder is made, and removed by stop(). */
  readonly rootDir?: string;
  /** Beside toolImages. */
  readonly images?: ImageTable;
  /** The cluster's own: it signs the certificate that the API server meets when it asks for logs. */
  readonly authority?: CertificateAuthority;
  /** Told to pods as KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT. */
  readonly apiServer?: string;
  readonly guard?: Guard;
  /** The first wait of a crashing container; kubelets take 10,000. */
  readonly backoffBaseMs?: number;
  /** All pods share the machine's address, as when the right to add addresses is missing. */
  readonly sharedAddress?: boolean;
  /** One line worth showing a person. */
  readonly onMessage?: (line: string) => void;
  /** A request that failed and will be tried again. */
  readonly onFailure?: (error: unknown) => void;
}

export interface ProcessNode {
  readonly name: string;
  readonly hostIP: string;
  readonly sandbox: SandboxKind;
  readonly kubeletPort: number;
  /** Ends the pods' processes, which stay in the API server, and leaves nothing on this machine. */
  stop(options?: { readonly graceSeconds?: number }): Promise<void>;
}

const maximumGpus = 8;
const stopGraceSeconds = 5;

/** Rejects when the node cannot be registered. */
export async function startProcessNode(options: ProcessNodeOptions): Promise<ProcessNode> {
  const { client, name, gpus } = options;
  if (!Number.isInteger(gpus) || gpus < 0 || gpus > maximumGpus) {
    throw new RangeError(`gpus ${gpus}: the form is an integer from 0 to ${maximumGpus}, for example 4`);
  }
  const onMessage = options.onMessage ?? (() => {});
  const onFailure = options.onFailure ?? (() => {});
  const guard = options.guard ?? startGuard();
  const folder = options.rootDir ?? mkdtempSync(path.join(os.tmpdir(), 'sluice-node-'));
  if (options.rootDir === undefined) guard.add('folder', folder);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  // What a predecessor left: its processes ended with it.
  await removeTree(path.join(folder, 'pods'));

  const addresses = await createAddressPool(name, guard, {
    ...(options.sharedAddress ? { sharedBecause: 'asked for' } : {}),
  });
  const sandbox = await detectSandbox(folder, guard);
  if (addresses.sharedBecause !== undefined) {
    onMessage(
      `node ${name}: all pods have the address ${addresses.hostIP}, and each port can have one pod, since addresses ` +
        `cannot be added to the loopback interface: ${addresses.sharedBecause}`,
    );
  }
  if (sandbox.kind === 'plain') {
    onMessage(
      `node ${name}: cannot make mount namespaces, so volumes are not at their mount paths; these paths are replaced ` +
        'in command lines and environments',
    );
  }

  const workers = new Map<string, PodWorker>();
  const authority = options.authority ?? createCertificateAuthority(`process-node-${name}`);
  const kubeletHost = addresses.hostIP;
  const server = await startKubeletServer({
    host: kubeletHost,
    authority,
    requireClientCertificate: options.authority !== undefined,
    findLog: ({ namespace, pod, container, previous }) => {
      const worker = [...workers.values()].findLast((candidate) => candidate.isNamed(namespace, pod));
      return worker?.log(container, previous) ?? { missing: `pod "${pod}" is not known to node ${name}` };
    },
  });

  const node = new NodeObject(client, {
    name,
    hostIP: addresses.hostIP,
    kubeletPort: server.port,
    gpus,
    labels: options.labels ?? {},
    onFailure,
  });
  const context: NodeContext = {
    client,
    nodeName: name,
    folder,
    sandbox,
    addresses,
    ports: new PortClaims(),
    gpus: new GpuPool(name, gpus),
    images: { ...toolImages, ...options.images },
    allocatable: node.capacity,
    refusals: new Map(),
    keyedObjects: new KeyedObjects(client, onFailure),
    events: new EventRecorder(client, name, onFailure),
    environment: apiServerEnvironment(options.apiServer),
    backoffBaseMs: options.backoffBaseMs ?? 10_000,
    onFailure,
  };

  const controller = new AbortController();
  const upsert = (object: KubeObject) => {
    const pod = object as Pod;
    const known = workers.get(pod.metadata.uid!);
    if (known) {
      known.update(pod);
      return;
    }
    const worker = new PodWorker(pod, context);
    workers.set(worker.uid, worker);
  };
  /** Only now: events from before its deletion may still come when all its work is done. */
  const forget = (worker: PodWorker | undefined) => {
    if (!worker) return;
    worker.removed();
    void worker.done.then(() => workers.delete(worker.uid));
  };
  const release = async () => {
    await server.close();
    await addresses.close();
    await removeTree(options.rootDir === undefined ? folder : path.join(folder, 'pods'));
    if (options.rootDir === undefined) guard.remove('folder', folder);
    if (options.guard === undefined) await guard.close();
  };

  let following: Promise<void>;
  try {
    await node.register();
    following = follow(client, resources.pods, {
      fieldSelector: `spec.nodeName=${name}`,
      signal: controller.signal,
      onList: (objects) => {
        const present = new Set(objects.map((object) => object.metadata.uid));
        for (const worker of workers.values()) {
          if (!present.has(worker.uid)) forget(worker);
        }
        for (const object of objects) upsert(object);
      },
      onEvent: (type, object) => {
        if (type === 'DELETED') forget(workers.get(object.metadata.uid!));
        else upsert(object);
      },
      onFailure,
    });
  } catch (error) {
    await release();
    throw error;
  }

  let stopped: Promise<void> | undefined;
  return {
    name,
    hostIP: addresses.hostIP,
    sandbox: sandbox.kind,
    kubeletPort: server.port,
    stop({ graceSeconds = stopGraceSeconds } = {}) {
      stopped ??= (async () => {
        controller.abort();
        const ending = [...workers.values()];
        for (const worker of ending) worker.abandon(graceSeconds);
        await Promise.all([following, node.leave(), ...ending.map((worker) => worker.done)]);
        await release();
      })();
      return stopped;
    },
  };
}

function apiServerEnvironment(url: string | undefined): Record<string, string> {
  if (url === undefined) return {};
  const { hostname, port, protocol } = new URL(url);
  return {
    KUBERNETES_SERVICE_HOST: hostname,
    KUBERNETES_SERVICE_PORT: port || (protocol === 'https:' ? '443' : '80'),
  };
}
