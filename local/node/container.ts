/**
 * One container of a pod over its whole life: image, start, probes, restarts with backoff, hooks, the end. In: its spec
 * and a context that knows the pod; out: a ContainerStatus that is right at any moment. Must not know the API server
 * nor its sibling containers.
 */
import { randomBytes } from 'node:crypto';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { goDuration, RestartBackoff } from './backoff.ts';
import { ContainerLog } from './container-log.ts';
import type { PodEvent } from './event-recorder.ts';
import { readSmallFile, removeTree } from './files.ts';
import { findImage, type Image, type ImageTable } from './images.ts';
import type { ContainerSpec, ContainerState, ContainerStatus, TerminatedState } from './pod-types.ts';
import { RunningContainer } from './running-container.ts';
import { LaunchError, type LaunchOptions, type Sandbox, type SandboxedProcess } from './sandbox.ts';
import { pause } from './wait.ts';

export type ContainerRole = 'init' | 'sidecar' | 'main';
/** How a container's life ended: by itself, or because its pod wanted it to. */
export type ContainerOutcome = 'succeeded' | 'failed' | 'stopped';

export interface ContainerContext {
  readonly sandbox: Sandbox;
  readonly images: ImageTable;
  /** This container's own. */
  readonly folder: string;
  readonly podIP: string;
  /** "name_namespace(uid)", for messages. */
  readonly podLabel: string;
  readonly restartPolicy: 'Always' | 'OnFailure' | 'Never';
  readonly backoffBaseMs: number;
  /** Of the pod. */
  readonly gracePeriodSeconds: number;
  /** Throws an error whose message says what the spec lacks. */
  readonly prepare: (spec: ContainerSpec, image: Image) => Promise<Omit<LaunchOptions, 'folder'>>;
  readonly record: (event: Omit<PodEvent, 'container'>) => void;
  /** The status is another than before. */
  readonly onChange: () => void;
}

const terminationMessageLimit = 4_096;
const logTail = { lines: 80, bytes: 2_048 };
const configRetryLimitMs = 10_000;

export class Container {
  readonly role: ContainerRole;
  #spec: ContainerSpec;
  readonly #context: ContainerContext;
  readonly #stopping = new AbortController();
  readonly #backoff: RestartBackoff;
  #state: ContainerState;
  #lastState: ContainerStatus['lastState'] = {};
  #restartCount = 0;
  #instance = 0;
  #containerID: string | undefined;
  #running: RunningContainer | undefined;
  #log: ContainerLog | undefined;
  #previousLog: ContainerLog | undefined;
  /** Wakes who waits for the start of a sidecar. */
  #startWaiters: (() => void)[] = [];

  constructor(
    role: ContainerRole,
    spec: ContainerSpec,
    context: ContainerContext,
    previous?: ContainerStatus,
  ) {
    this.role = role;
    this.#spec = spec;
    this.#context = context;
    this.#backoff = new RestartBackoff(context.backoffBaseMs);
    this.#state = {
      waiting: { reason: role === 'init' ? 'PodInitializing' : 'ContainerCreating' },
    };
    mkdirSync(context.folder, { recursive: true });
    if (previous?.containerID) this.#adoptHistory(previous);
  }

  get name(): string {
    return this.#spec.name;
  }

  get status(): ContainerStatus {
    return {
      name: this.#spec.name,
      image: this.#spec.image,
      imageID: this.#containerID === undefined ? '' : `process://${this.#spec.image}`,
      ...(this.#containerID === undefined ? {} : { containerID: this.#containerID }),
      state: this.#state,
      lastState: this.#lastState,
      ready: this.role === 'init' ? this.#exitCode() === 0 : (this.#running?.ready ?? false),
      started: this.#isStarted,
      restartCount: this.#restartCount,
    };
  }

  /** It has been asked to end for good. */
  get isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Of the run that is on or was the last; `previous`: of the one before. */
  log(previous: boolean): ContainerLog | undefined {
    return previous ? this.#previousLog : this.#log;
  }

  /** Runs until it will not run again. Call once. */
  async run(): Promise<ContainerOutcome> {
    const { signal } = this.#stopping;
    // One that ended under an earlier node has only its restart policy to be asked.
    let due = this.#exitCode() === undefined;
    for (;;) {
      if (due) await this.#runOnce();
      due = true;
      if (signal.aborted) return this.#finishStopped();
      const exitCode = this.#exitCode();
      const policy = this.#effectivePolicy();
      if (policy === 'Never' || (policy === 'OnFailure' && exitCode === 0)) {
        return exitCode === 0 ? 'succeeded' : 'failed';
      }
      const last = this.#state as { terminated: TerminatedState };
      const ranMs =
        Date.parse(last.terminated.finishedAt ?? '') - Date.parse(last.terminated.startedAt ?? '');
      const delayMs = this.#backoff.next(ranMs || 0);
      if (delayMs > 0) {
        this.#lastState = last;
        const message = `back-off ${goDuration(delayMs)} restarting failed container=${this.name} pod=${this.#context.podLabel}`;
        this.#set({ waiting: { reason: 'CrashLoopBackOff', message } });
        this.#context.record({
          type: 'Warning',
          reason: 'BackOff',
          message: `Back-off restarting failed container ${this.name} in pod ${this.#context.podLabel}`,
        });
        await pause(delayMs, signal);
        if (signal.aborted) return this.#finishStopped();
      } else {
        this.#lastState = last;
      }
      this.#restartCount++;
    }
  }

  /** Resolves true when it runs and its startup probe has succeeded, false when it is to stop. */
  async waitUntilStarted(): Promise<boolean> {
    while (!this.#isStarted && !this.#stopping.signal.aborted) {
      await new Promise<void>((resolve) => {
        this.#startWaiters.push(resolve);
      });
    }
    return this.#isStarted;
  }

  /** A new image takes effect at once, by a restart. */
  updateSpec(spec: ContainerSpec): void {
    const changed = spec.image !== this.#spec.image;
    this.#spec = spec;
    if (changed && this.#running) {
      const message = `Container ${this.name} definition changed, will be restarted`;
      this.#context.record({ type: 'Normal', reason: 'Killing', message });
      void this.#running.end(Date.now() + this.#context.gracePeriodSeconds * 1000);
    }
  }

  /** Asks it to end by a moment; asked again, the moment may come earlier. run() then resolves. */
  async stop(deadline: number): Promise<void> {
    const first = !this.#stopping.signal.aborted;
    this.#stopping.abort();
    this.#wakeWaiters();
    if (!this.#running) return;
    if (first && !this.#running.isEnding) {
      this.#context.record({ type: 'Normal', reason: 'Killing', message: `Stopping container ${this.name}` });
    }
    await this.#running.end(deadline);
  }

  #adoptHistory(previous: ContainerStatus): void {
    this.#containerID = previous.containerID;
    this.#restartCount = previous.restartCount;
    if (this.role === 'init') {
      // The pod starts anew, from its first init container on.
      this.#restartCount++;
      if ('terminated' in previous.state) this.#lastState = previous.state;
      return;
    }
    if ('terminated' in previous.state) {
      this.#state = previous.state;
      this.#lastState = previous.lastState;
      return;
    }
    if ('waiting' in previous.state && 'terminated' in previous.lastState) {
      this.#state = previous.lastState as ContainerState;
      return;
    }
    const now = timestamp();
    this.#state = {
      terminated: {
        exitCode: 137,
        reason: 'ContainerStatusUnknown',
        message: 'The container could not be located when the node was restarted',
        startedAt: 'running' in previous.state ? previous.state.running.startedAt : now,
        finishedAt: now,
        containerID: previous.containerID!,
      },
    };
  }

  #effectivePolicy(): 'Always' | 'OnFailure' | 'Never' {
    if (this.role === 'sidecar') return 'Always';
    const { restartPolicy } = this.#context;
    return this.role === 'init' && restartPolicy === 'Always' ? 'OnFailure' : restartPolicy;
  }

  get #isStarted(): boolean {
    return this.#running?.started ?? false;
  }

  #exitCode(): number | undefined {
    return 'terminated' in this.#state ? this.#state.terminated.exitCode : undefined;
  }

  #set(state: ContainerState): void {
    this.#state = state;
    this.#context.onChange();
  }

  #finishStopped(): ContainerOutcome {
    // One that waits for its next start ends as its last run did.
    if ('waiting' in this.#state && 'terminated' in this.#lastState) {
      this.#state = this.#lastState as ContainerState;
    }
    this.#context.onChange();
    return 'stopped';
  }

  /** One run of the program. Returns with the state terminated, or earlier when it is to stop. */
  async #runOnce(): Promise<void> {
    const { signal } = this.#stopping;
    const prepared = await this.#prepare();
    if (!prepared || signal.aborted) return;
    this.#instance++;
    this.#containerID = `process://${randomBytes(32).toString('hex')}`;
    const instanceFolder = path.join(this.#context.folder, `run-${this.#instance}`);
    const messageFile = path.join(this.#context.folder, 'termination-log');
    writeFileSync(messageFile, '');
    // Whoever the container's user is.
    chmodSync(messageFile, 0o666);
    this.#previousLog?.remove();
    this.#previousLog = this.#log;
    const log = new ContainerLog(path.join(this.#context.folder, `${this.#instance}.log`));
    this.#log = log;
    const startedAt = Date.now();
    try {
      const process = await this.#launch({ ...prepared, folder: instanceFolder }, messageFile);
      process.stdout.on('data', (chunk) => log.append('stdout', chunk));
      process.stderr.on('data', (chunk) => log.append('stderr', chunk));
      this.#context.record({ type: 'Normal', reason: 'Started', message: `Container started` });
      await this.#live(process, startedAt, messageFile, log);
    } catch (error) {
      if (!(error instanceof LaunchError)) throw error;
      log.end();
      this.#context.record({ type: 'Warning', reason: 'Failed', message: `Error: ${error.message}` });
      const at = timestamp();
      this.#set({
        terminated: {
          exitCode: 128,
          reason: 'StartError',
          message: error.message,
          startedAt: at,
          finishedAt: at,
          containerID: this.#containerID,
        },
      });
    }
    await removeTree(instanceFolder);
  }

  async #launch(options: LaunchOptions, messageFile: string): Promise<SandboxedProcess> {
    const target = this.#spec.terminationMessagePath ?? '/dev/termination-log';
    const mounts = [...options.mounts, { source: messageFile, target, readOnly: false }];
    const launched = this.#context.sandbox.launch({ ...options, mounts });
    this.#context.record({ type: 'Normal', reason: 'Created', message: `Container created` });
    return await launched;
  }

  async #live(
    process: SandboxedProcess,
    startedAt: number,
    messageFile: string,
    log: ContainerLog,
  ): Promise<void> {
    const { podIP, gracePeriodSeconds, record, onChange } = this.#context;
    const running = new RunningContainer(this.#spec, process, startedAt, {
      podIP,
      gracePeriodSeconds,
      record,
      stopping: this.#stopping.signal,
      onBegun: () => this.#set({ running: { startedAt: timestamp(startedAt) } }),
      onChange: () => {
        if (running.started) this.#wakeWaiters();
        onChange();
      },
    });
    this.#running = running;
    running.begin();
    const exitCode = await running.exited;
    this.#running = undefined;
    log.end();
    const message = await this.#terminationMessage(messageFile, exitCode, log);
    this.#set({
      terminated: {
        exitCode,
        reason: exitCode === 0 ? 'Completed' : 'Error',
        ...(message === undefined ? {} : { message }),
        startedAt: timestamp(startedAt),
        finishedAt: timestamp(),
        containerID: this.#containerID!,
      },
    });
  }

  async #terminationMessage(file: string, exitCode: number, log: ContainerLog): Promise<string | undefined> {
    const written = await readSmallFile(file, terminationMessageLimit);
    if (written !== undefined || exitCode === 0) return written;
    if (this.#spec.terminationMessagePolicy !== 'FallbackToLogsOnError') return undefined;
    return log.tail(logTail.lines, logTail.bytes) || undefined;
  }

  /** Waits for the image and for what the spec names; undefined when it is to stop. */
  async #prepare(): Promise<Omit<LaunchOptions, 'folder'> | undefined> {
    const { signal } = this.#stopping;
    const record = this.#context.record;
    const pullBackoff = new RestartBackoff(this.#context.backoffBaseMs);
    let configDelayMs = this.#context.backoffBaseMs / 10;
    while (!signal.aborted) {
      const { image: name } = this.#spec;
      const image = findImage(this.#context.images, name);
      if (!image) {
        // The words that containerd has for it, and then our own.
        const known = Object.keys(this.#context.images).join(', ');
        const message =
          `rpc error: code = NotFound desc = failed to pull and unpack image "${name}": not found ` +
          `in this process node's table of images; known are: ${known}`;
        this.#set({ waiting: { reason: 'ErrImagePull', message } });
        record({ type: 'Warning', reason: 'Failed', message: `Failed to pull image "${name}": ${message}` });
        record({ type: 'Warning', reason: 'Failed', message: 'Error: ErrImagePull' });
        await pause(pullBackoff.next(0) || this.#context.backoffBaseMs / 10, signal);
        if (signal.aborted) break;
        this.#set({
          waiting: {
            reason: 'ImagePullBackOff',
            message: `Back-off pulling image "${name}": ErrImagePull: ${message}`,
          },
        });
        record({ type: 'Normal', reason: 'BackOff', message: `Back-off pulling image "${name}"` });
        await pause(pullBackoff.next(0), signal);
        continue;
      }
      try {
        const prepared = await this.#context.prepare(this.#spec, image);
        record({
          type: 'Normal',
          reason: 'Pulled',
          message: `Container image "${name}" already present on machine`,
        });
        return prepared;
      } catch (error) {
        const { message } = error as Error;
        this.#set({ waiting: { reason: 'CreateContainerConfigError', message } });
        record({ type: 'Warning', reason: 'Failed', message: `Error: ${message}` });
        await pause(configDelayMs, signal);
        configDelayMs = Math.min(configDelayMs * 2, configRetryLimitMs);
      }
    }
    return undefined;
  }

  #wakeWaiters(): void {
    const waiters = this.#startWaiters;
    this.#startWaiters = [];
    for (const wake of waiters) wake();
  }
}

function timestamp(at = Date.now()): string {
  return new Date(at).toISOString().replace(/\.\d+Z$/, 'Z');
}
