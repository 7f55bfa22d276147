/**
 * One pod on this node, from the moment it is bound to its final deletion: admission, address, volumes, init
 * containers, sidecars, containers, and the end. In: the pod as the watch brings it; out: its status at the API server.
 * What its containers do is container.ts's, what their states mean pod-status.ts's.
 */
import { mkdirSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type KubeClient, KubeError, resources } from '../../operator/kube/client.ts';
import type { PodAddressPool } from './addresses.ts';
import { RestartBackoff } from './backoff.ts';
import { Container, type ContainerRole } from './container.ts';
import type { ContainerLog } from './container-log.ts';
import { buildEnvironment, ContainerConfigError, expand } from './environment.ts';
import type { EventRecorder, PodEvent } from './event-recorder.ts';
import { type GpuPool, gpuEnvironment, gpuResource } from './gpus.ts';
import { commandLine, type Image, type ImageTable } from './images.ts';
import type { KeyedObjects } from './keyed-objects.ts';
import { computePodStatus, isSidecar } from './pod-status.ts';
import type { ContainerSpec, Pod, SecurityContext } from './pod-types.ts';
import type { PortClaims } from './port-claims.ts';
import { type LaunchOptions, removeTree, type Sandbox } from './sandbox.ts';
import { inspectFields } from './supported-fields.ts';
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

interface Failure {
  readonly reason: string;
  readonly message: string;
}

const defaultGraceSeconds = 30;
/** For a pod whose object is gone already. */
const forcedGraceSeconds = 2;
const volumeRetryLimitMs = 15_000;
const writeRetryMs = 1_000;

export class PodWorker {
  readonly #node: NodeContext;
  #pod: Pod;
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
  /** The node is going: the API server is left alone. */
  #abandoned = false;
  #objectGone = false;
  #deadline = Number.POSITIVE_INFINITY;
  #dirty = false;
  #writing: Promise<void> | undefined;
  #volumeChange = new AbortController();
  #gpuSlices = new Map<string, readonly string[]>();
  /** Resolves when nothing of the pod is left. */
  readonly done: Promise<void>;

  constructor(pod: Pod, node: NodeContext) {
    this.#pod = pod;
    this.#node = node;
    this.#folder = path.join(node.folder, 'pods', pod.metadata.uid!);
    this.#startTime = pod.status?.startTime ?? timestamp();
    this.done = this.#run();
    if (pod.metadata.deletionTimestamp) this.#beginDeletion();
  }

  get uid(): string {
    return this.#pod.metadata.uid!;
  }

  /** The object as it is now. */
  update(pod: Pod): void {
    if (isNewer(pod, this.#pod)) this.#pod = pod;
    for (const container of this.#containers) {
      const spec = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])].find(
        ({ name }) => name === container.name,
      );
      if (spec) container.updateSpec(spec);
    }
    this.#volumes?.refresh();
    if (pod.spec.readinessGates) this.#changed();
    if (pod.metadata.deletionTimestamp) this.#beginDeletion();
  }

  /** The object is gone, by force. */
  removed(): void {
    this.#objectGone = true;
    this.#deletion.abort();
    this.#stop(forcedGraceSeconds);
  }

  /** The node ends: the containers with it, the object stays. */
  abandon(graceSeconds: number): void {
    this.#abandoned = true;
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
        this.#changed();
        await this.#flush();
      }
    } catch (error) {
      this.#node.onFailure(error);
      this.#fail('NodeError', error instanceof Error ? error.message : String(error));
      await this.#flush();
    }
    // A pod that is over holds nothing but its logs.
    await this.#releaseResources();
    await aborted(this.#deletion.signal);
    if (!this.#abandoned && !this.#objectGone) await this.#deleteObject();
    this.#objectGone = true;
    await removeTree(this.#folder);
    this.#node.events.forget(this.#pod);
  }

  async #live(): Promise<void> {
    const refusal = this.#admit();
    if (refusal) {
      await this.#refuse(refusal);
      return;
    }
    const deadlineSeconds = this.#pod.spec.activeDeadlineSeconds;
    const timer =
      deadlineSeconds === undefined
        ? undefined
        : setTimeout(
            () => this.#exceedDeadline(),
            Math.max(0, Date.parse(this.#startTime) + deadlineSeconds * 1000 - Date.now()),
          );
    try {
      if (!(await this.#prepare())) return;
      this.#sandboxReady = true;
      this.#createContainers();
      this.#changed();
      await this.#runContainers();
    } finally {
      clearTimeout(timer);
    }
  }

  /** Why the pod fails before anything is made for it. */
  #admit(): Failure | undefined {
    const { spec } = this.#pod;
    const { warned, unsupported } = inspectFields(spec);
    if (unsupported.length > 0) {
      const fields = unsupported.map((field) => `spec.${field}`).join(', ');
      return { reason: 'UnsupportedField', message: `a process node does not support ${fields}` };
    }
    const notEnforced = [...warned, ...this.#usersThatCannotBe()];
    if (notEnforced.length > 0) {
      const fields = notEnforced.map((field) => `spec.${field}`).join(', ');
      this.#record({
        type: 'Warning',
        reason: 'NotEnforced',
        message: `a process node accepts but does not enforce ${fields}`,
      });
    }
    if (this.#node.sandbox.kind === 'plain' && spec.volumes?.length) {
      this.#record({
        type: 'Warning',
        reason: 'NoMountNamespace',
        message:
          'this machine allows no mount namespaces: volumes are not at their mount paths, which are replaced by ' +
          'the paths of their folders in command lines and environments',
      });
    }
    return this.#allocateGpus();
  }

  /** runAsUser and runAsGroup where this program may not change users. */
  #usersThatCannotBe(): string[] {
    if (this.#node.sandbox.kind !== 'user-namespaces' && process.getuid?.() === 0) return [];
    const { spec } = this.#pod;
    const isSet = (context: SecurityContext | undefined) =>
      context?.runAsUser !== undefined || context?.runAsGroup !== undefined;
    return [
      ...(isSet(spec.securityContext) ? ['securityContext.runAsUser'] : []),
      ...spec.containers.flatMap(({ securityContext }, index) =>
        isSet(securityContext) ? [`containers[${index}].securityContext.runAsUser`] : [],
      ),
    ];
  }

  #allocateGpus(): Failure | undefined {
    const { spec } = this.#pod;
    const sidecars = (spec.initContainers ?? []).filter(({ name }) => isSidecar(this.#pod, name));
    const inits = (spec.initContainers ?? []).filter(({ name }) => !isSidecar(this.#pod, name));
    const together = [...sidecars, ...spec.containers];
    const sum = together.reduce((total, container) => total + gpuCount(container), 0);
    // Init containers run before the others and use the same devices.
    const count = Math.max(sum, ...inits.map(gpuCount));
    const available = this.#node.gpus.freeCount;
    const ids = this.#node.gpus.take(this.uid, count);
    if (!ids) {
      return {
        reason: 'UnexpectedAdmissionError',
        message:
          'Allocate failed due to requested number of devices unavailable for ' +
          `${gpuResource}. Requested: ${count}, Available: ${available}, which is unexpected`,
      };
    }
    let from = 0;
    for (const container of together) {
      this.#gpuSlices.set(container.name, ids.slice(from, from + gpuCount(container)));
      from += gpuCount(container);
    }
    for (const container of inits) this.#gpuSlices.set(container.name, ids.slice(0, gpuCount(container)));
    return undefined;
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
        this.#changed();
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
          prepare: (current, image) => this.#prepareContainer(current, image),
          record: (event) =>
            this.#record({
              ...event,
              container: { name: container.name, kind: role === 'main' ? 'containers' : 'initContainers' },
            }),
          onChange: () => this.#changed(),
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
      this.#changed();
      const stopMains = () => void Promise.all(mains.map((container) => container.stop(this.#deadline)));
      signal.addEventListener('abort', stopMains, { once: true });
      await Promise.all(mains.map((container) => container.run()));
    }
    if (!Number.isFinite(this.#deadline)) this.#deadline = Date.now() + this.#graceMs;
    await finish();
    await Promise.all(running);
  }

  async #prepareContainer(container: ContainerSpec, image: Image): Promise<Omit<LaunchOptions, 'folder'>> {
    const { metadata, spec } = this.#pod;
    const { addresses, allocatable, keyedObjects } = this.#node;
    const hostname = spec.hostname || metadata.name;
    const user = container.securityContext?.runAsUser ?? spec.securityContext?.runAsUser;
    const group = container.securityContext?.runAsGroup ?? spec.securityContext?.runAsGroup;
    const environment = await buildEnvironment(container, {
      pod: this.#pod,
      addresses: { podIP: this.#podIP!, hostIP: addresses.hostIP },
      allocatable,
      read: (kind, name) => keyedObjects.readOnce(kind, metadata.namespace!, name),
      base: {
        HOME: user === undefined || user === 0 ? os.homedir() : '/',
        ...image.environment,
        HOSTNAME: hostname,
        ...this.#node.environment,
        // The runtime would listen on every address of the machine, where another pod wants the same port.
        SLUICE_HOST: this.#podIP!,
        ...gpuEnvironment(this.#gpuSlices.get(container.name) ?? []),
      },
    });
    const expanded = (words: readonly string[] | undefined) =>
      words?.map((word) => expand(word, environment));
    let mounts: LaunchOptions['mounts'];
    try {
      mounts = (await this.#volumes?.mounts(container, environment)) ?? [];
    } catch (cause) {
      throw new ContainerConfigError((cause as Error).message, { cause });
    }
    return {
      hostname,
      environment,
      mounts,
      commandLine: commandLine(image, expanded(container.command), expanded(container.args)),
      workingDirectory: container.workingDir || image.workingDirectory || '/',
      readOnlyRoot: container.securityContext?.readOnlyRootFilesystem === true,
      user: user === undefined && group === undefined ? undefined : { uid: user ?? 0, gid: group ?? 0 },
    };
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
      if ('running' in container.status.state && container.role !== 'sidecar')
        void container.stop(this.#deadline);
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
    this.#changed();
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

  #changed(): void {
    this.#dirty = true;
    if (this.#abandoned || this.#objectGone) return;
    this.#writing ??= this.#writeStatus().finally(() => {
      this.#writing = undefined;
      if (this.#dirty && !this.#abandoned && !this.#objectGone) this.#changed();
    });
  }

  /** Resolves when the API server has the status of now. */
  async #flush(): Promise<void> {
    while (this.#writing) await this.#writing;
  }

  async #writeStatus(): Promise<void> {
    // What changes together is written together.
    await Promise.resolve();
    const ref = { namespace: this.#pod.metadata.namespace!, name: this.#pod.metadata.name };
    while (this.#dirty && !this.#objectGone && !this.#abandoned) {
      this.#dirty = false;
      const { uid, resourceVersion } = this.#pod.metadata;
      try {
        const written = await this.#node.client.mergePatch(
          resources.pods,
          ref,
          // Of this very object, and of no other writer's conditions.
          { metadata: { uid, resourceVersion }, status: this.#status() },
          { subresource: 'status' },
        );
        if (isNewer(written as Pod, this.#pod)) this.#pod = written as Pod;
      } catch (error) {
        this.#dirty = true;
        if (error instanceof KubeError && error.status === 409) {
          const current = await this.#node.client.get(resources.pods, ref).catch(() => this.#pod);
          if (current === undefined || current.metadata.uid !== uid) this.#objectGone = true;
          else this.#pod = current as Pod;
        } else if (error instanceof KubeError && error.status === 404) {
          this.#objectGone = true;
        } else {
          this.#node.onFailure(error);
          await pause(writeRetryMs);
        }
      }
    }
  }

  #status() {
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

  async #deleteObject(): Promise<void> {
    const { namespace, name, uid } = this.#pod.metadata;
    for (;;) {
      try {
        await this.#node.client.remove(
          resources.pods,
          { namespace: namespace!, name },
          { gracePeriodSeconds: 0, uid: uid! },
        );
        return;
      } catch (error) {
        // 409: another object has the name by now.
        if (error instanceof KubeError && error.status === 409) return;
        if (this.#abandoned) return;
        this.#node.onFailure(error);
        await pause(writeRetryMs);
      }
    }
  }
}

function gpuCount(container: ContainerSpec): number {
  return Number(container.resources?.limits?.[gpuResource] ?? 0);
}

function portNumbers(pod: Pod): number[] {
  const containers = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])];
  return containers.flatMap(({ ports }) => (ports ?? []).map(({ containerPort }) => containerPort));
}

/** Resource versions of one resource are numbers that grow. */
function isNewer(candidate: Pod, current: Pod): boolean {
  const version = (pod: Pod) => BigInt(pod.metadata.resourceVersion ?? '0');
  return version(candidate) >= version(current);
}

function timestamp(): string {
  return new Date().toISOString().replace(/\.\d+Z$/, 'Z');
}
