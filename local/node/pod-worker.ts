/**
 * One pod on this node, from the moment it is bound to its final deletion: admission, address, volumes, init
 * containers, sidecars, containers, and the end. In: the pod as the watch brings it; out: its status at the API server.
 * What its containers do is container.ts's, what their states mean pod-status.ts's.
 */
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { type KubeClient, KubeError } from '../../operator/kube/client.ts';
import type { PodAddressPool } from './addresses.ts';
import { RestartBackoff } from './backoff.ts';
import { Container, type ContainerRole } from './container.ts';
import { prepareLaunch } from './container-launch.ts';
import type { ContainerLog } from './container-log.ts';
import type { EventRecorder, PodEvent } from './event-recorder.ts';
import { removeTree } from './files.ts';
import type { GpuPool } from './gpus.ts';
import type { ImageTable } from './images.ts';
import type { KeyedObjects } from './keyed-objects.ts';
import { admitPod, type Failure } from './pod-admission.ts';
import { PodObject } from './pod-object.ts';
import { computePodStatus, isSidecar } from './pod-status.ts';
import type { ContainerSpec, Pod, PodStatus } from './pod-types.ts';
import type { PortClaims } from './port-claims.ts';
import type { Sandbox } from './sandbox.ts';
import { PodVolumes, VolumeError } from './volumes.ts';
import { aborted, pause } from './wait.ts';

/** What the pods of a node share. */
export interface NodeContext {
  readonly client: KubeClient;
  readonly nodeName: string;
  readonly folder: string;
  readonly sandbox: Sandbox;
  readonly addresses: PodAddressPool;
  readonly ports: PortClaims;
  readonly gpus: GpuPool;
  readonly images: ImageTable;
  readonly allocatable: Readonly<Record<string, string>>;
  readonly keyedObjects: KeyedObjects;
  /** By the controller whose pods cannot be admitted here, which makes a new one at once for each that fails. */
  readonly refusals: Map<string, RestartBackoff>;
  readonly events: EventRecorder;
  /** Given to every container: how to reach the API server. */
  readonly environment: Readonly<Record<string, string>>;
  readonly backoffBaseMs: number;
  readonly onFailure: (error: unknown) => void;
}

const defaultGraceSeconds = 30;
/** For a pod whose object is gone already. */
const forcedGraceSeconds = 2;
const volumeRetryLimitMs = 15_000;
const longestTimerMs = 2 ** 31 - 1;

export class PodWorker {
  readonly #node: NodeContext;
  readonly #object: PodObject;
  readonly #folder: string;
  readonly #startTime: string;
  #containers: Container[] = [];
  #volumes: PodVolumes | undefined;
  #podIP: string | undefined;
  #initialized = false;
  #sandboxReady = false;
  #failure: Failure | undefined;
  #ended = false;
  /** Aborted when the containers are to end: deletion, a deadline, the node's own end. */
  readonly #stopping = new AbortController();
  /** Aborted when the object's deletion has been asked for, or it is gone. */
  readonly #deletion = new AbortController();
  #deadline = Number.POSITIVE_INFINITY;
  #volumeChange = new AbortController();
  #gpuIds: ReadonlyMap<string, readonly string[]> = new Map();
  /** Resolves when nothing of the pod is left. */
  readonly done: Promise<void>;

  constructor(pod: Pod, node: NodeContext) {
    this.#node = node;
    this.#object = new PodObject(pod, {
      client: node.client,
      computeStatus: () => this.#status(),
      onFailure: node.onFailure,
    });
    this.#folder = path.join(node.folder, 'pods', pod.metadata.uid!);
    this.#startTime = pod.status?.startTime ?? timestamp();
    this.done = this.#run();
    if (pod.metadata.deletionTimestamp) this.#beginDeletion();
  }

  get #pod(): Pod {
    return this.#object.current;
  }

  get uid(): string {
    return this.#pod.metadata.uid!;
  }

  /** The object as it is now. */
  update(pod: Pod): void {
    this.#object.observe(pod);
    for (const container of this.#containers) {
      const spec = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])].find(
        ({ name }) => name === container.name,
      );
      if (spec) container.updateSpec(spec);
    }
    this.#volumes?.refresh();
    if (pod.spec.readinessGates) this.#object.changed();
    if (pod.metadata.deletionTimestamp) this.#beginDeletion();
  }

  /** The object is gone, by force. */
  removed(): void {
    this.#object.close();
    this.#deletion.abort();
    this.#stop(forcedGraceSeconds);
  }

  /** The node ends: the containers with it, the object stays. */
  abandon(graceSeconds: number): void {
    this.#object.close();
    this.#deletion.abort();
    this.#stop(graceSeconds);
  }

  /** Or why there is none. */
  log(containerName: string, previous: boolean): ContainerLog | { readonly missing: string } {
    const where = `container "${containerName}" in pod "${this.#pod.metadata.name}"`;
    const container = this.#containers.find(({ name }) => name === containerName);
    const log = container?.log(previous);
    if (log) return log;
    if (previous) return { missing: `previous terminated ${where} not found` };
    const state = container?.status.state;
    const reason = state && 'waiting' in state ? state.waiting.reason : 'ContainerCreating';
    return { missing: `${where} is waiting to start: ${reason}` };
  }

  isNamed(namespace: string, name: string): boolean {
    return this.#pod.metadata.namespace === namespace && this.#pod.metadata.name === name;
  }

  async #run(): Promise<void> {
    try {
      const { phase } = this.#pod.status ?? {};
      if (phase !== 'Succeeded' && phase !== 'Failed') {
        await this.#live();
        this.#ended = true;
        this.#object.changed();
        await this.#object.flush();
      }
    } catch (error) {
      this.#node.onFailure(error);
      this.#fail('NodeError', error instanceof Error ? error.message : String(error));
      const deadline = Date.now() + this.#graceMs;
      await Promise.all(this.#containers.map((container) => container.stop(deadline)));
      await this.#object.flush();
    }
    // A pod that is over holds nothing but its logs.
    await this.#releaseResources();
    await aborted(this.#deletion.signal);
    await this.#object.delete();
    await removeTree(this.#folder);
    this.#node.events.forget(this.#pod);
  }

  async #live(): Promise<void> {
    const { refusal, warnings, gpus } = admitPod(this.#pod, {
      sandboxKind: this.#node.sandbox.kind,
      isRoot: process.getuid?.() === 0,
      gpus: this.#node.gpus,
    });
    for (const warning of warnings) this.#record({ type: 'Warning', ...warning });
    if (refusal) {
      await this.#refuse(refusal);
      return;
    }
    this.#gpuIds = gpus;
    const deadlineSeconds = this.#pod.spec.activeDeadlineSeconds;
    const timer =
      deadlineSeconds === undefined
        ? undefined
        : setTimeout(
            () => this.#exceedDeadline(),
            clamp(Date.parse(this.#startTime) + deadlineSeconds * 1000 - Date.now()),
          );
    try {
      if (!(await this.#prepare())) return;
      this.#sandboxReady = true;
      this.#createContainers();
      this.#object.changed();
      await this.#runContainers();
    } finally {
      clearTimeout(timer);
    }
  }

  /** The first at once, the next ones of the same controller ever later. */
  async #refuse({ reason, message }: Failure): Promise<void> {
    const owner = this.#pod.metadata.ownerReferences?.find(({ controller }) => controller)?.uid;
    if (owner !== undefined) {
      const { refusals, backoffBaseMs } = this.#node;
      const backoff = refusals.get(owner) ?? new RestartBackoff(backoffBaseMs / 10);
      refusals.set(owner, backoff);
      await pause(backoff.next(0), this.#stopping.signal);
    }
    this.#fail(reason, message);
  }

  /** An address and volumes, tried until they are there. False: the pod is to stop. */
  async #prepare(): Promise<boolean> {
    const { addresses, ports, client, keyedObjects, allocatable } = this.#node;
    const { spec } = this.#pod;
    const { signal } = this.#stopping;
    mkdirSync(this.#folder, { recursive: true });
    const shared = spec.hostNetwork === true || addresses.sharedBecause !== undefined;
    if (shared) {
      const claimed = await ports.claim(this.uid, this.#label, portNumbers(this.#pod), signal, (message) =>
        this.#record({ type: 'Warning', reason: 'PortInUse', message }),
      );
      if (!claimed) return false;
    }
    this.#podIP = shared ? addresses.hostIP : await addresses.take();
    const volumes = new PodVolumes({
      client,
      keyedObjects,
      allocatable,
      folder: path.join(this.#folder, 'volumes'),
      addresses: { podIP: this.#podIP, hostIP: addresses.hostIP },
      pod: () => this.#pod,
      onFailure: this.#node.onFailure,
      onChange: () => this.#volumeChange.abort(),
    });
    this.#volumes = volumes;
    let delayMs = 200;
    while (!signal.aborted) {
      this.#volumeChange = new AbortController();
      try {
        await volumes.prepare();
        return true;
      } catch (error) {
        const { message } = error as Error;
        if (!(error instanceof VolumeError || error instanceof KubeError || 'code' in (error as Error)))
          throw error;
        this.#record({
          type: 'Warning',
          reason: 'FailedMount',
          message: `MountVolume.SetUp failed: ${message}`,
        });
        this.#object.changed();
        await pause(delayMs, AbortSignal.any([signal, this.#volumeChange.signal]));
        delayMs = Math.min(delayMs * 2, volumeRetryLimitMs);
      }
    }
    return false;
  }

  #createContainers(): void {
    const { spec, status } = this.#pod;
    const previous = [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])];
    const create = (container: ContainerSpec, role: ContainerRole) =>
      new Container(
        role,
        container,
        {
          sandbox: this.#node.sandbox,
          images: this.#node.images,
          folder: path.join(this.#folder, 'containers', container.name),
          podIP: this.#podIP!,
          podLabel: `${this.#pod.metadata.name}_${this.#pod.metadata.namespace}(${this.uid})`,
          restartPolicy: spec.restartPolicy ?? 'Always',
          backoffBaseMs: this.#node.backoffBaseMs,
          gracePeriodSeconds: spec.terminationGracePeriodSeconds ?? defaultGraceSeconds,
          prepare: (current, image) =>
            prepareLaunch(current, image, {
              pod: this.#pod,
              addresses: { podIP: this.#podIP!, hostIP: this.#node.addresses.hostIP },
              allocatable: this.#node.allocatable,
              read: (kind, name) =>
                this.#node.keyedObjects.readOnce(kind, this.#pod.metadata.namespace!, name),
              environment: this.#node.environment,
              gpuIds: this.#gpuIds.get(container.name) ?? [],
              volumes: this.#volumes!,
            }),
          record: (event) =>
            this.#record({
              ...event,
              container: { name: container.name, kind: role === 'main' ? 'containers' : 'initContainers' },
            }),
          onChange: () => this.#object.changed(),
        },
        previous.find(({ name }) => name === container.name),
      );
    this.#containers = [
      ...(spec.initContainers ?? []).map((container) =>
        create(container, isSidecar(this.#pod, container.name) ? 'sidecar' : 'init'),
      ),
      ...spec.containers.map((container) => create(container, 'main')),
    ];
  }

  async #runContainers(): Promise<void> {
    const { signal } = this.#stopping;
    const mains = this.#containers.filter(({ role }) => role === 'main');
    const sidecars = this.#containers.filter(({ role }) => role === 'sidecar');
    const running: Promise<unknown>[] = [];
    const finish = async () => {
      await Promise.all(mains.map((container) => container.stop(this.#deadline)));
      // The last started first, within what is left of the grace.
      for (const sidecar of sidecars.toReversed()) await sidecar.stop(this.#deadline);
    };
    // A pod that is never restarted and whose containers were lost with an earlier node has nothing to initialize.
    const over =
      this.#pod.spec.restartPolicy === 'Never' && mains.some(({ status }) => 'terminated' in status.state);
    for (const container of this.#containers) {
      if (signal.aborted) break;
      if (container.role === 'sidecar' && !over) {
        running.push(container.run());
        const stop = () => void container.stop(this.#deadline);
        signal.addEventListener('abort', stop, { once: true });
        await container.waitUntilStarted();
        signal.removeEventListener('abort', stop);
      } else if (container.role === 'init' && !over) {
        const stop = () => void container.stop(this.#deadline);
        signal.addEventListener('abort', stop, { once: true });
        const outcome = await container.run();
        signal.removeEventListener('abort', stop);
        if (outcome === 'failed') {
          this.#fail('', `Init container "${container.name}" failed`);
          this.#deadline = Date.now() + this.#graceMs;
          break;
        }
      }
    }
    if (!signal.aborted && !this.#failure) {
      this.#initialized = true;
      this.#object.changed();
      const stopMains = () => void Promise.all(mains.map((container) => container.stop(this.#deadline)));
      signal.addEventListener('abort', stopMains, { once: true });
      await Promise.all(mains.map((container) => container.run()));
    }
    if (!Number.isFinite(this.#deadline)) this.#deadline = Date.now() + this.#graceMs;
    await finish();
    await Promise.all(running);
  }

  #beginDeletion(): void {
    this.#deletion.abort();
    this.#stop(Number(this.#pod.metadata.deletionGracePeriodSeconds ?? defaultGraceSeconds));
  }

  #exceedDeadline(): void {
    this.#fail('DeadlineExceeded', 'Pod was active on the node longer than the specified deadline');
    this.#stop(this.#graceMs / 1000);
  }

  /** Asked again, the end may only come earlier. */
  #stop(graceSeconds: number): void {
    this.#deadline = Math.min(this.#deadline, Date.now() + graceSeconds * 1000);
    if (!this.#stopping.signal.aborted) {
      this.#stopping.abort();
      return;
    }
    for (const container of this.#containers) {
      if (container.isStopping) void container.stop(this.#deadline);
    }
  }

  get #graceMs(): number {
    return (this.#pod.spec.terminationGracePeriodSeconds ?? defaultGraceSeconds) * 1000;
  }

  get #label(): string {
    return `${this.#pod.metadata.namespace}/${this.#pod.metadata.name}`;
  }

  #fail(reason: string, message: string): void {
    this.#failure ??= { reason, message };
    if (reason !== '') this.#record({ type: 'Warning', reason, message });
    this.#object.changed();
  }

  #record(event: PodEvent): void {
    this.#node.events.record(this.#pod, event);
  }

  async #releaseResources(): Promise<void> {
    await this.#volumes?.close();
    this.#node.gpus.release(this.uid);
    this.#node.ports.release(this.uid);
    if (this.#podIP !== undefined) await this.#node.addresses.release(this.#podIP);
    await removeTree(path.join(this.#folder, 'volumes'));
  }

  #status(): PodStatus {
    const statuses = (role: (containerRole: ContainerRole) => boolean) =>
      this.#containers.filter((container) => role(container.role)).map(({ status }) => status);
    return computePodStatus({
      pod: this.#pod,
      hostIP: this.#node.addresses.hostIP,
      podIP: this.#podIP,
      startTime: this.#startTime,
      initStatuses: statuses((role) => role !== 'main'),
      statuses: statuses((role) => role === 'main'),
      sandboxReady: this.#sandboxReady && !this.#ended,
      initialized: this.#initialized,
      failure: this.#failure,
      ended: this.#ended,
      now: timestamp(),
    });
  }
}

function portNumbers(pod: Pod): number[] {
  const containers = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])];
  return containers.flatMap(({ ports }) => (ports ?? []).map(({ containerPort }) => containerPort));
}

function clamp(ms: number): number {
  return Math.min(Math.max(ms, 0), longestTimerMs);
}

function timestamp(): string {
  return new Date().toISOString().replace(/\.\d+Z$/, 'Z');
}
