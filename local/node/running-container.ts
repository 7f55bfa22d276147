/**
 * One run of a container's program: hooks, probes, and how it is ended. In: a started process and the container's
 * spec; out: whether it is started and ready, and its end. Must not know restarts.
 */
import type { PodEvent } from './event-recorder.ts';
import { runHook } from './hook.ts';
import type { ContainerSpec, Probe } from './pod-types.ts';
import { executeProbe, type ProbeTarget } from './probe.ts';
import { runProber } from './prober.ts';
import type { SandboxedProcess } from './sandbox.ts';

export interface RunContext {
  readonly podIP: string;
  /** Of the pod. */
  readonly gracePeriodSeconds: number;
  readonly record: (event: Omit<PodEvent, 'container'>) => void;
  /** Aborted when the container is to end for good. */
  readonly stopping: AbortSignal;
  /** postStart is done: the container counts as running. */
  readonly onBegun: () => void;
  /** `started` or `ready` is another than before. */
  readonly onChange: () => void;
}

/** What a program gets at least between SIGTERM and SIGKILL, when a hook has used up the grace. */
const minimumGraceMs = 2_000;
const longestTimerMs = 2 ** 31 - 1;

export class RunningContainer {
  readonly startedAt: number;
  readonly #spec: ContainerSpec;
  readonly #process: SandboxedProcess;
  readonly #context: RunContext;
  readonly #target: ProbeTarget;
  /** Aborted when the program has ended. */
  readonly #over = new AbortController();
  #started = false;
  #ready = false;
  /** When the program will be killed, once it has been asked to end; it can only come earlier. */
  #deadline = Number.POSITIVE_INFINITY;
  #deadlineTimer: NodeJS.Timeout | undefined;
  #ending: Promise<void> | undefined;
  #preStop: AbortController | undefined;
  /** The exit code. */
  readonly exited: Promise<number>;

  constructor(spec: ContainerSpec, process: SandboxedProcess, startedAt: number, context: RunContext) {
    this.#spec = spec;
    this.#process = process;
    this.startedAt = startedAt;
    this.#context = context;
    this.#target = {
      podIP: context.podIP,
      ports: spec.ports ?? [],
      exec: (command, timeoutMs) => process.exec(command, timeoutMs),
    };
    this.exited = process.exited.finally(() => {
      this.#over.abort();
      clearTimeout(this.#deadlineTimer);
    });
  }

  /** postStart and the probes; or the end, where the container has been asked to end meanwhile. Call once. */
  begin(): void {
    if (this.#context.stopping.aborted) void this.end(Date.now() + minimumGraceMs);
    else void this.#run();
  }

  /** The startup probe, if there is one, has succeeded. */
  get started(): boolean {
    return this.#started;
  }

  get ready(): boolean {
    return this.#ready;
  }

  get isEnding(): boolean {
    return this.#ending !== undefined;
  }

  /** preStop, SIGTERM, SIGKILL at the deadline; asked again, the deadline may come earlier. */
  async end(deadline: number): Promise<void> {
    if (deadline < this.#deadline) {
      this.#deadline = deadline;
      this.#armDeadline();
    }
    this.#ending ??= this.#terminate();
    await this.#ending;
  }

  async #run(): Promise<void> {
    const { lifecycle, startupProbe, readinessProbe } = this.#spec;
    if (lifecycle?.postStart) {
      const { ok, message } = await runHook(lifecycle.postStart, this.#target, this.#over.signal);
      if (this.#over.signal.aborted) return;
      if (!ok) {
        const text = `PostStartHook failed: ${message}`;
        this.#context.record({ type: 'Warning', reason: 'FailedPostStartHook', message: text });
        void this.#endWithGrace(undefined);
        return;
      }
    }
    this.#started = !startupProbe;
    this.#ready = this.#started && !readinessProbe;
    this.#context.onBegun();
    if (startupProbe) this.#probe('Startup', startupProbe);
    else this.#afterStartup();
  }

  #afterStartup(): void {
    const { livenessProbe, readinessProbe } = this.#spec;
    this.#started = true;
    if (livenessProbe) this.#probe('Liveness', livenessProbe);
    if (readinessProbe) this.#probe('Readiness', readinessProbe);
    else this.#ready = true;
    this.#context.onChange();
  }

  #probe(kind: 'Startup' | 'Liveness' | 'Readiness', probe: Probe): void {
    const decided = new AbortController();
    const signals = [this.#over.signal, decided.signal];
    // A container that is to end is no longer restarted; whether it can still serve remains a question.
    if (kind !== 'Readiness') signals.push(this.#context.stopping);
    void runProber({
      probe,
      execute: () => executeProbe(probe, this.#target),
      startedAt: this.startedAt,
      signal: AbortSignal.any(signals),
      onFailure: (message) =>
        this.#context.record({
          type: 'Warning',
          reason: 'Unhealthy',
          message: `${kind} probe failed: ${message}`,
        }),
      onChange: (ok) => {
        if (kind === 'Readiness') {
          this.#ready = ok;
          this.#context.onChange();
        } else if (!ok) {
          decided.abort();
          const message = `Container ${this.#spec.name} failed ${kind.toLowerCase()} probe, will be restarted`;
          this.#context.record({ type: 'Normal', reason: 'Killing', message });
          void this.#endWithGrace(probe.terminationGracePeriodSeconds);
        } else if (kind === 'Startup') {
          decided.abort();
          this.#afterStartup();
        }
      },
    });
  }

  #endWithGrace(seconds: number | undefined): Promise<void> {
    return this.end(Date.now() + (seconds ?? this.#context.gracePeriodSeconds) * 1000);
  }

  #armDeadline(): void {
    clearTimeout(this.#deadlineTimer);
    const delayMs = Math.min(Math.max(this.#deadline - Date.now(), 0), longestTimerMs);
    this.#deadlineTimer = setTimeout(() => {
      if (this.#preStop) this.#preStop.abort();
      else this.#process.signal('SIGKILL');
    }, delayMs);
  }

  async #terminate(): Promise<void> {
    const preStop = this.#spec.lifecycle?.preStop;
    if (preStop) {
      this.#preStop = new AbortController();
      const signal = AbortSignal.any([this.#preStop.signal, this.#over.signal]);
      const { ok, message } = await runHook(preStop, this.#target, signal);
      this.#preStop = undefined;
      if (this.#over.signal.aborted) return;
      if (!ok) {
        const text = `PreStopHook failed: ${message}`;
        this.#context.record({ type: 'Warning', reason: 'FailedPreStopHook', message: text });
      }
      this.#deadline = Math.max(this.#deadline, Date.now() + minimumGraceMs);
      this.#armDeadline();
    }
    this.#process.signal('SIGTERM');
    await this.exited;
  }
}
