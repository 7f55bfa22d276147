/**
 * Keeps a store equal to what the API server has: lists in pages, watches from there, resumes where a watch ended, lists
 * again when the server has forgotten that place, and tells subscribers every change exactly once, deletions that
 * happened unseen included. Enters: a client and a resource type; leaves: a read-only store and changes. Must not know
 * what the objects mean. Modelled on client-go's reflector.
 *
 * It goes on until its signal aborts, whatever the server does: errors back off, and a connection that says nothing for
 * longer than bookmarks are apart is given up for a new one.
 */
import {
  type KubeClient,
  KubeError,
  type KubeObject,
  type ResourceType,
  type WatchEvent,
} from '../kube/client.ts';
import { backoffMs } from './backoff.ts';
import { type Clock, type Random, sleep } from './clock.ts';
import type { Log } from './log.ts';
import { type Change, type Index, keyOf, type ReadonlyStore, Store } from './store.ts';

export interface ReflectorMetrics {
  listed?(objects: number, durationMs: number): void;
  event?(type: WatchEvent['type']): void;
  /** `idle`: nothing was heard for too long; `expired`: a new list is needed. */
  watchEnded?(why: 'server' | 'error' | 'expired' | 'idle'): void;
  failed?(error: unknown): void;
  /** A subscriber threw: a bug of ours. */
  handlerFailed?(error: unknown): void;
}

export interface ReflectorOptions {
  readonly client: Pick<KubeClient, 'list' | 'watch'>;
  readonly type: ResourceType;
  /** Absent: all namespaces. */
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  readonly indexes?: Readonly<Record<string, Index>>;
  /** What is kept of each object. Default: all but managedFields, often half of an object's bytes. */
  readonly transform?: (object: KubeObject) => KubeObject;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly metrics?: ReflectorMetrics;
  /** Default 500. */
  readonly pageSize?: number;
  /** The server is asked to end a watch after this time to twice this time. Default 300 s. */
  readonly watchTimeoutSeconds?: number;
  /** The API server sends a bookmark about every minute. Default 90 s. */
  readonly idleTimeoutMs?: number;
  /** Between failures. Default 0.5 s to 30 s. */
  readonly backoff?: { readonly baseMs: number; readonly maxMs: number };
}

/** Called synchronously, in the order of the changes; by then the store holds the change. */
export type ChangeHandler = (change: Change) => void;

export class Reflector {
  readonly type: ResourceType;
  readonly #options: ReflectorOptions;
  readonly #store: Store;
  readonly #handlers = new Set<ChangeHandler>();
  readonly #synced = Promise.withResolvers<void>();
  readonly #tried = Promise.withResolvers<void>();
  #hasSynced = false;
  /** Where to watch from; undefined when only a list can tell. */
  #position: string | undefined;
  /** Failures since something last went well. */
  #failures = 0;

  constructor(options: ReflectorOptions) {
    this.#options = options;
    this.type = options.type;
    this.#store = new Store(options.indexes ?? {}, (index, object, error) =>
      this.#handlerFailed(error, { index, key: keyOf(object) }, 'an index threw'),
    );
  }

  get store(): ReadonlyStore {
    return this.#store;
  }

  /** Whether the first list is in the store and its changes were told. Never becomes false again. */
  get hasSynced(): boolean {
    return this.#hasSynced;
  }

  /** Resolves when hasSynced becomes true; never rejects. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }

  /** Resolves when the first list is in the store, or has failed once; never rejects. */
  get tried(): Promise<void> {
    return this.#tried.promise;
  }

  /** The handler first gets what is in the store as added. The result ends the subscription. */
  subscribe(handler: ChangeHandler): () => void {
    // The same function may be subscribed twice.
    const own: ChangeHandler = (change) => handler(change);
    for (const object of this.#store.list()) this.#call(own, { type: 'added', object });
    this.#handlers.add(own);
    return () => this.#handlers.delete(own);
  }

  /** Resolves after the signal aborts; never rejects. Call once. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options;
    while (!signal.aborted) {
      try {
        if (this.#position === undefined) await this.#list(signal);
        this.#tried.resolve();
        await this.#watch(signal);
      } catch (error) {
        if (signal.aborted) break;
        this.#tried.resolve();
        const delayMs = this.#recover(error);
        if (delayMs > 0) {
          const { plural } = this.type;
          log.warn({ resource: plural, err: error, delayMs, failures: this.#failures }, 'watch failed');
          await sleep(clock, delayMs, signal);
        }
      }
    }
  }

  /** Decides where to go on after an error, and after what delay. */
  #recover(error: unknown): number {
    const { metrics, random, backoff = { baseMs: 500, maxMs: 30_000 } } = this.#options;
    // Silence took its time already, and is no error where the server sends no bookmarks: events, for one.
    if (error instanceof IdleWatch) return 0;
    metrics?.failed?.(error);
    const expired = error instanceof KubeError && (error.status === 410 || error.status === 400);
    const first = this.#failures === 0;
    // Not every failure tells what is wrong; only an error about the place itself, or one of ours, makes it useless.
    if (expired || !(error instanceof KubeError)) this.#position = undefined;
    this.#failures += 1;
    // Falling behind is no sign of an overloaded server, unless it happens again and again.
    if (first && expired) return 0;
    const retryAfterMs = error instanceof KubeError ? (error.retryAfterSeconds ?? 0) * 1000 : 0;
    const delayMs = backoffMs(this.#failures - 1, backoff, random);
    // Many were told the same Retry-After: none comes earlier, and not all at once.
    return retryAfterMs > delayMs ? retryAfterMs + delayMs : delayMs;
  }

  async #list(signal: AbortSignal): Promise<void> {
    const { client, clock, metrics, log, namespace, labelSelector, fieldSelector } = this.#options;
    const startedAt = clock.monotonicMs();
    const selection = {
      ...(namespace === undefined ? {} : { namespace }),
      ...(labelSelector === undefined ? {} : { labelSelector }),
      ...(fieldSelector === undefined ? {} : { fieldSelector }),
    };
    const items: KubeObject[] = [];
    let limit = this.#options.pageSize ?? 500;
    let token: string | undefined;
    let resourceVersion: string;
    while (true) {
      try {
        // No resourceVersion: the newest state there is. An older one could show a past that we acted on already.
        const page = await client.list(this.type, {
          ...selection,
          limit,
          ...(token === undefined ? {} : { continue: token }),
          signal,
        });
        for (const item of page.items) items.push(this.#transform(item));
        ({ resourceVersion } = page);
        token = page.continue;
        if (token === undefined) break;
      } catch (error) {
        if (!(error instanceof KubeError && error.status === 410 && token !== undefined)) throw error;
        // The list was too slow for the server's history. In one piece it cannot be.
        items.length = 0;
        token = undefined;
        limit = 0;
      }
    }
    signal.throwIfAborted();
    const gone = new Set(this.#store.keys());
    for (const item of items) gone.delete(keyOf(item));
    for (const key of gone) this.#tell(this.#store.delete(key));
    for (const item of items) this.#tell(this.#store.set(item));
    this.#position = resourceVersion;
    metrics?.listed?.(items.length, clock.monotonicMs() - startedAt);
    log.debug({ resource: this.type.plural, objects: items.length, resourceVersion }, 'listed');
    if (!this.#hasSynced) {
      this.#hasSynced = true;
      this.#synced.resolve();
    }
  }

  /** Follows one watch to its end. Throws when it did not end well. */
  async #watch(signal: AbortSignal): Promise<void> {
    const { client, clock, random, metrics, namespace, labelSelector, fieldSelector } = this.#options;
    const { watchTimeoutSeconds = 300, idleTimeoutMs = 90_000 } = this.#options;
    const startedAt = clock.monotonicMs();
    const stop = new AbortController();
    const onAbort = () => stop.abort(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    let cancelIdle = () => {};
    const heard = () => {
      cancelIdle();
      cancelIdle = clock.after(idleTimeoutMs, () => stop.abort(new IdleWatch(idleTimeoutMs)));
    };
    let why: 'server' | 'error' | 'expired' | 'idle' = 'server';
    let events = 0;
    try {
      heard();
      const watch = client.watch(this.type, {
        ...(namespace === undefined ? {} : { namespace }),
        ...(labelSelector === undefined ? {} : { labelSelector }),
        ...(fieldSelector === undefined ? {} : { fieldSelector }),
        resourceVersion: this.#position!,
        // Watches that began together do not end together.
        timeoutSeconds: Math.ceil(watchTimeoutSeconds * (1 + random())),
        signal: stop.signal,
      });
      for await (const event of abortable(watch, stop.signal)) {
        heard();
        events += 1;
        metrics?.event?.(event.type);
        this.#take(event);
        this.#failures = 0;
      }
    } catch (error) {
      const cause = stop.signal.aborted ? stop.signal.reason : error;
      why = cause instanceof IdleWatch ? 'idle' : 'error';
      if (cause instanceof KubeError && cause.status === 410) why = 'expired';
      throw cause;
    } finally {
      cancelIdle();
      signal.removeEventListener('abort', onAbort);
      if (!signal.aborted) metrics?.watchEnded?.(why);
    }
    // A server that ends every watch at once must not be asked again at once.
    if (events === 0 && clock.monotonicMs() - startedAt < 1000) {
      throw new KubeError(0, 'Unreachable', 'the watch ended at once, without an event');
    }
    this.#failures = 0;
  }

  #take(event: WatchEvent): void {
    if (event.type === 'BOOKMARK') {
      if (isOlder(event.resourceVersion, this.#position)) {
        throw new KubeError(
          410,
          'Expired',
          `the server went back to version ${event.resourceVersion}: restored?`,
        );
      }
      this.#position = event.resourceVersion;
      return;
    }
    const object = this.#transform(event.object);
    const resourceVersion = object.metadata.resourceVersion!;
    const key = keyOf(object);
    const known = this.#store.get(key)?.metadata;
    // An event told twice or too late: what is known is newer.
    if (known !== undefined && isOlder(resourceVersion, known.resourceVersion)) return;
    const changes = event.type === 'DELETED' ? this.#store.delete(key, object) : this.#store.set(object);
    // Before the handlers: they may throw, the event was taken all the same.
    if (!isOlder(resourceVersion, this.#position)) this.#position = resourceVersion;
    this.#tell(changes);
  }

  #transform(object: KubeObject): KubeObject {
    try {
      return (this.#options.transform ?? withoutManagedFields)(object);
    } catch (error) {
      this.#handlerFailed(error, { key: keyOf(object) }, 'a transform threw');
      return object;
    }
  }

  #tell(changes: readonly Change[]): void {
    for (const change of changes) for (const handler of [...this.#handlers]) this.#call(handler, change);
  }

  #call(handler: ChangeHandler, change: Change): void {
    try {
      handler(change);
    } catch (error) {
      this.#handlerFailed(
        error,
        { key: keyOf(change.object), change: change.type },
        'a change handler threw',
      );
    }
  }

  /** What our own code threw costs nobody else an event, and is never kept quiet. */
  #handlerFailed(error: unknown, fields: object, message: string): void {
    this.#options.metrics?.handlerFailed?.(error);
    this.#options.log.error({ resource: this.type.plural, err: error, ...fields }, message);
  }
}

class IdleWatch extends Error {
  constructor(idleTimeoutMs: number) {
    super(`nothing was heard on the watch for ${idleTimeoutMs} ms, not even a bookmark`);
  }
}

function withoutManagedFields(object: KubeObject): KubeObject {
  const { managedFields: _dropped, ...metadata } = object.metadata;
  return { ...object, metadata };
}

/** Resource versions of one server are decimal numbers that grow; of any other form nothing is known. */
function isOlder(version: string, than: string | undefined): boolean {
  if (than === undefined || !/^\d+$/.test(version) || !/^\d+$/.test(than)) return false;
  return version.length === than.length ? version < than : version.length < than.length;
}

/** Ends the iteration when the signal aborts, also when the source itself does not notice. */
async function* abortable<T>(source: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T, void> {
  const iterator = source[Symbol.asyncIterator]();
  // A new promise per step: one that lives as long as the watch would collect a reaction for every event.
  let interrupt = (_reason: unknown) => {};
  const onAbort = () => interrupt(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    while (true) {
      signal.throwIfAborted();
      const step = Promise.withResolvers<IteratorResult<T>>();
      interrupt = step.reject;
      iterator.next().then(step.resolve, step.reject);
      const next = await step.promise;
      if (next.done) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener('abort', onAbort);
    // Not awaited: a source that hangs would hang us too.
    Promise.resolve(iterator.return?.()).catch(() => {});
  }
}
