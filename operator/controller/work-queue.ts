/**
 * Keys to work on: each at most once in the queue and at most once in work at a time, first come first served; with
 * delays, and with backoff per key for what failed. Must not know what the work is. Modelled on client-go's workqueue.
 *
 * Invariants:
 * - `queue` holds the keys to hand out, each once; none of them is in `processing`.
 * - `processing` holds the keys handed out by take() and not yet returned by done(): one worker has each.
 * - `dirty` is a subset of `processing`: keys asked for again while in work. done() puts them back into the queue, so
 *   that nothing that happened during the work is missed, and no key is ever in two workers' hands.
 * - `waiting` holds keys with a time; of two times the earlier counts. Handing a key out cancels its wait: the work
 *   reads the whole world, and says itself when it wants to see the key again.
 */
import assert from 'node:assert/strict';
import { type BackoffOptions, backoffMs, TokenBucket } from './backoff.ts';
import type { Clock, Random } from './clock.ts';

export interface WorkQueueMetrics {
  added?(): void;
  /** From the moment the key was put in the queue. */
  taken?(queuedMs: number): void;
  done?(workMs: number): void;
  retried?(delayMs: number): void;
}

export interface WorkQueueOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** Per key. Default 0.1 s to 60 s. */
  readonly backoff?: BackoffOptions;
  /** All retries together, so that a failing server is not stormed by many keys. Default 50 a second, 500 at once. */
  readonly retryRate?: { readonly perSecond: number; readonly burst: number };
  readonly metrics?: WorkQueueMetrics;
}

export class WorkQueue {
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #backoff: BackoffOptions;
  readonly #retries: TokenBucket;
  readonly #metrics: WorkQueueMetrics;
  /** Key -> when it was put here. A map keeps the order of insertion. */
  readonly #queue = new Map<string, number>();
  /** Key -> when it was handed out. */
  readonly #processing = new Map<string, number>();
  readonly #dirty = new Set<string>();
  readonly #waiting = new Map<string, { readonly dueMs: number; readonly cancel: () => void }>();
  readonly #failures = new Map<string, number>();
  readonly #takers: ((key: string | undefined) => void)[] = [];
  #drained: PromiseWithResolvers<void> | undefined;

  constructor(options: WorkQueueOptions) {
    this.#clock = options.clock;
    this.#random = options.random;
    this.#backoff = options.backoff ?? { baseMs: 100, maxMs: 60_000 };
    this.#retries = new TokenBucket(options.retryRate ?? { perSecond: 50, burst: 500 }, options.clock);
    this.#metrics = options.metrics ?? {};
  }

  /** Keys to hand out. */
  get depth(): number {
    return this.#queue.size;
  }

  get inProgress(): number {
    return this.#processing.size;
  }

  /** Keys with a time that has not come. */
  get delayed(): number {
    return this.#waiting.size;
  }

  add(key: string): void {
    if (this.#drained !== undefined) return;
    if (this.#processing.has(key)) {
      this.#dirty.add(key);
      return;
    }
    if (this.#queue.has(key)) return;
    this.#queue.set(key, this.#clock.monotonicMs());
    this.#metrics.added?.();
    if (this.#takers.length > 0) this.#takers.shift()!(this.#handOut());
  }

  /** Adds the key after the delay, or earlier where that was said already. */
  addAfter(key: string, delayMs: number): void {
    assert(delayMs >= 0, `a delay of ${delayMs} ms for ${key}`);
    if (this.#drained !== undefined) return;
    const dueMs = this.#clock.monotonicMs() + delayMs;
    const waiting = this.#waiting.get(key);
    if (waiting !== undefined) {
      if (waiting.dueMs <= dueMs) return;
      waiting.cancel();
    }
    const cancel = this.#clock.after(delayMs, () => {
      this.#waiting.delete(key);
      this.add(key);
    });
    this.#waiting.set(key, { dueMs, cancel });
  }

  /** Adds the key after a delay that grows with each failure since the last forget(). Gives the delay. */
  retry(key: string): number {
    const attempt = this.#failures.get(key) ?? 0;
    this.#failures.set(key, attempt + 1);
    const delayMs = Math.max(backoffMs(attempt, this.#backoff, this.#random), this.#retries.reserve());
    this.#metrics.retried?.(delayMs);
    this.addAfter(key, delayMs);
    return delayMs;
  }

  /** The work went well, or is not to be repeated: the next failure is a first one. */
  forget(key: string): void {
    this.#failures.delete(key);
  }

  failures(key: string): number {
    return this.#failures.get(key) ?? 0;
  }

  /** The next key; undefined after shutdown. Whoever takes a key calls done() with it, whatever happens. */
  take(): Promise<string | undefined> {
    if (this.#drained !== undefined) return Promise.resolve(undefined);
    if (this.#queue.size > 0) return Promise.resolve(this.#handOut());
    return new Promise((resolve) => this.#takers.push(resolve));
  }

  done(key: string): void {
    const startedAt = this.#processing.get(key);
    assert(startedAt !== undefined, `done(${key}) without take()`);
    this.#processing.delete(key);
    this.#metrics.done?.(this.#clock.monotonicMs() - startedAt);
    if (this.#dirty.delete(key)) this.add(key);
    if (this.#processing.size === 0) this.#drained?.resolve();
  }

  /** Nothing is handed out or added any more. Resolves when the last key handed out is done. May be called again. */
  shutdown(): Promise<void> {
    if (this.#drained === undefined) {
      this.#drained = Promise.withResolvers();
      for (const { cancel } of this.#waiting.values()) cancel();
      this.#waiting.clear();
      this.#queue.clear();
      this.#dirty.clear();
      for (const taker of this.#takers.splice(0)) taker(undefined);
      if (this.#processing.size === 0) this.#drained.resolve();
    }
    return this.#drained.promise;
  }

  #handOut(): string {
    const [key, queuedAt] = this.#queue.entries().next().value!;
    this.#queue.delete(key);
    this.#waiting.get(key)?.cancel();
    this.#waiting.delete(key);
    const now = this.#clock.monotonicMs();
    this.#processing.set(key, now);
    this.#metrics.taken?.(now - queuedAt);
    return key;
  }
}
