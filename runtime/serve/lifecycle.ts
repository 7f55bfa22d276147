/**
 * Where a server stands: loading, ready, draining (readiness fails, requests are still taken), refusing (running ones
 * finish), and how many requests are in flight. Must not know HTTP.
 */
import { SluiceError } from '../errors.ts';
import type { Backend, LoadingProgress } from './backend.ts';

/** No step takes so long: an engine that is silent for longer hangs. */
const hungMs = 300_000;

export type Phase = 'loading' | 'ready' | 'draining' | 'refusing';

export class Lifecycle {
  #phase: Phase = 'loading';
  #backend: Backend | undefined;
  #progress: LoadingProgress | undefined;
  readonly #inFlight = new Set<AbortController>();
  readonly #idle: (() => void)[] = [];

  get phase(): Phase {
    return this.#phase;
  }

  get inFlight(): number {
    return this.#inFlight.size;
  }

  get loaded(): Backend | undefined {
    return this.#backend;
  }

  reportProgress(progress: LoadingProgress): void {
    this.#progress = progress;
  }

  ready(backend: Backend): void {
    this.#backend = backend;
    if (this.#phase === 'loading') this.#phase = 'ready';
  }

  drain(): void {
    if (this.#phase !== 'refusing') this.#phase = 'draining';
  }

  refuse(): void {
    this.#phase = 'refusing';
  }

  /** Throws SluiceError `unavailable` when new requests are taken no more. Those that were taken are served. */
  admit(): void {
    if (this.#phase === 'refusing') throw new SluiceError('unavailable', 'the server is shutting down');
  }

  /** The backend, or SluiceError `unavailable` that says why no request can be served now. */
  backend(): Backend {
    const reason = this.#notServing();
    if (reason !== undefined) throw new SluiceError('unavailable', reason);
    return this.#backend!;
  }

  /** Why new requests should not be sent here; undefined when they should. */
  notReady(): string | undefined {
    if (this.#phase === 'draining' || this.#phase === 'refusing') return 'the server is shutting down';
    return this.#notServing();
  }

  get progress(): LoadingProgress | undefined {
    return this.#backend === undefined ? this.#progress : undefined;
  }

  /** Why only a restart can mend the engine; undefined while it lives. */
  failure(): Error | undefined {
    const silentMs = this.#backend?.silentMs() ?? 0;
    if (silentMs > hungMs)
      return new Error(`it has given no sign of life for ${Math.floor(silentMs / 1000)} s`);
    return this.#backend?.failure();
  }

  #notServing(): string | undefined {
    const failure = this.failure();
    if (failure !== undefined) return `the engine has failed: ${failure.message}`;
    if (this.#backend !== undefined) return undefined;
    if (this.#progress === undefined) return 'the model is loading';
    const { phase, done, total } = this.#progress;
    return `the model is loading: ${phase}${total > 0 ? ` ${Math.floor((100 * done) / total)}%` : ''}`;
  }

  /** Counts a request; its controller fires when the server will wait no longer. */
  enter(): AbortController {
    const controller = new AbortController();
    this.#inFlight.add(controller);
    return controller;
  }

  leave(controller: AbortController): void {
    this.#inFlight.delete(controller);
    if (this.#inFlight.size === 0) for (const resolve of this.#idle.splice(0)) resolve();
  }

  /** Resolves when no request is in flight. */
  idle(): Promise<void> {
    return this.#inFlight.size === 0 ? Promise.resolve() : new Promise((resolve) => this.#idle.push(resolve));
  }

  abortAll(): void {
    for (const controller of this.#inFlight) controller.abort();
  }
}
