/**
 * Workers that reconcile keys: fed by changes, run only when all caches are complete, repeated with backoff when they
 * fail. Enters: reflectors, a mapping of their changes to keys, a reconcile function; leaves: nothing. Must not know the
 * domain.
 */
import assert from 'node:assert/strict';
import { sleep } from './clock.ts';
import type { Log } from './log.ts';
import type { Reflector } from './reflector.ts';
import type { Change } from './store.ts';
import { WorkQueue, type WorkQueueMetrics, type WorkQueueOptions } from './work-queue.ts';

export interface ReconcileResult {
  /** See the key again after this time, or earlier when something changes. Absent: only when something changes. */
  readonly requeueAfterMs?: number;
}

export interface ReconcileContext {
  /** Aborts when the controller stops: pass it on to requests. */
  readonly signal: AbortSignal;
  readonly log: Log;
}

/**
 * Reads the whole world for the key and makes it what it should be. Never sleeps. What it throws is logged and repeated
 * with backoff, except TerminalError.
 */
export type Reconcile = (key: string, context: ReconcileContext) => Promise<ReconcileResult>;

/** Repeating would not help: logged, and not tried again before something changes. */
export class TerminalError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'TerminalError';
  }
}

export interface ControllerMetrics extends WorkQueueMetrics {
  reconciled?(outcome: 'success' | 'requeue' | 'error' | 'terminal', durationMs: number): void;
}

export interface ControllerOptions extends WorkQueueOptions {
  readonly name: string;
  readonly reconcile: Reconcile;
  /** Keys in work at the same time. Default 4. */
  readonly workers?: number;
  /** Work does not begin before this; must not reject. */
  readonly ready?: Promise<unknown>;
  /** How long a stop waits for reconciles in work, whose signal has aborted. Default 10 s. */
  readonly drainTimeoutMs?: number;
  readonly log: Log;
  readonly metrics?: ControllerMetrics;
}

export class Controller {
  readonly #options: ControllerOptions;
  readonly #queue: WorkQueue;
  readonly #reflectors = new Set<Reflector>();
  readonly #subscriptions: (() => void)[] = [];

  constructor(options: ControllerOptions) {
    this.#options = options;
    this.#queue = new WorkQueue(options);
  }

  /** For metrics: keys waiting for a worker. */
  get depth(): number {
    return this.#queue.depth;
  }

  /** Enqueues the keys that a change concerns. For a change of owner, `map` looks at `previous` too. */
  watch(reflector: Reflector, map: (change: Change) => Iterable<string>): void {
    this.#reflectors.add(reflector);
    this.#subscriptions.push(
      reflector.subscribe((change) => {
        for (const key of map(change)) this.#queue.add(key);
      }),
    );
  }

  enqueue(key: string): void {
    this.#queue.add(key);
  }

  /**
   * Works from the moment that all watched reflectors have synced until the signal aborts; resolves when the last
   * reconcile has ended or the drain time is over. Never rejects. Call once: a stopped controller stays stopped.
   */
  async run(signal: AbortSignal): Promise<void> {
    const { name, workers = 4, drainTimeoutMs = 10_000, clock, log } = this.#options;
    assert(workers >= 1, `${workers} workers`);
    const stopped = new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener('abort', () => resolve(), { once: true });
    });
    const synced = Array.from(this.#reflectors, (each) => each.synced);
    await Promise.race([stopped, Promise.all([...synced, this.#options.ready])]);
    if (!signal.aborted) {
      log.info({ controller: name, workers, keys: this.#queue.depth }, 'controller started');
      for (let worker = 0; worker < workers; worker += 1) void this.#work(signal);
      await stopped;
    }
    for (const unsubscribe of this.#subscriptions.splice(0)) unsubscribe();
    const drained = this.#queue.shutdown();
    const late = new AbortController();
    await Promise.race([drained, sleep(clock, drainTimeoutMs, late.signal)]);
    late.abort();
    const running = this.#queue.inProgress;
    if (running > 0) log.error({ controller: name, running }, 'reconciles did not end in time');
    else log.info({ controller: name }, 'controller stopped');
  }

  async #work(signal: AbortSignal): Promise<void> {
    while (true) {
      const key = await this.#queue.take();
      if (key === undefined) return;
      try {
        await this.#reconcile(key, signal);
      } finally {
        this.#queue.done(key);
      }
    }
  }

  async #reconcile(key: string, signal: AbortSignal): Promise<void> {
    const { name, reconcile, clock, metrics } = this.#options;
    const log = child(this.#options.log, { controller: name, key });
    const startedAt = clock.monotonicMs();
    const finish = (outcome: 'success' | 'requeue' | 'error' | 'terminal') =>
      metrics?.reconciled?.(outcome, clock.monotonicMs() - startedAt);
    try {
      const { requeueAfterMs } = await reconcile(key, { signal, log });
      this.#queue.forget(key);
      if (requeueAfterMs !== undefined) this.#queue.addAfter(key, requeueAfterMs);
      finish(requeueAfterMs === undefined ? 'success' : 'requeue');
    } catch (error) {
      if (signal.aborted) {
        log.debug({ err: error }, 'reconcile interrupted');
      } else if (error instanceof TerminalError) {
        this.#queue.forget(key);
        log.error({ err: error }, 'reconcile failed for good');
        finish('terminal');
      } else {
        const failures = this.#queue.failures(key) + 1;
        const delayMs = this.#queue.retry(key);
        log.error({ err: error, failures, delayMs: Math.round(delayMs) }, 'reconcile failed');
        finish('error');
      }
    }
  }
}

function child(log: Log, fields: object): Log {
  const all = (more: object) => ({ ...fields, ...more });
  return {
    debug: (more, message) => log.debug(all(more), message),
    info: (more, message) => log.info(all(more), message),
    warn: (more, message) => log.warn(all(more), message),
    error: (more, message) => log.error(all(more), message),
  };
}
