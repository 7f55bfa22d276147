/**
 * Events about objects, for `kubectl describe`: told once and counted when repeated, combined when many are alike,
 * bounded per object. Enters: what happened; leaves: Event objects (core v1). Must not know why. Recording never waits
 * and never fails; modelled on client-go's event correlator.
 */
import { type KubeClient, KubeError, type KubeObject, resources } from '../kube/client.ts';
import { TokenBucket } from './backoff.ts';
import { type Clock, type Random, sleep } from './clock.ts';
import { NotLeaderError } from './leader.ts';
import type { Log } from './log.ts';

export interface EventOptions {
  readonly client: KubeClient;
  /** The name of the program: source.component. */
  readonly component: string;
  /** The process: reportingInstance. */
  readonly instance: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly metrics?: { recorded?(type: EventType, reason: string): void; dropped?(why: string): void };
}

export type EventType = 'Normal' | 'Warning';

export interface EventDetails {
  readonly type: EventType;
  /** One word in upper camel case, from a fixed set. */
  readonly reason: string;
  readonly message: string;
}

/** What is remembered of an event on the server. */
interface Told {
  readonly namespace: string;
  readonly name: string;
  count: number;
}

/** The same event within this time is counted, not repeated. */
const memoryMs = 10 * 60_000;
/** More messages than this of one type and reason about one object within that time are combined into one event. */
const mostSimilar = 10;
/**
 * Per object: a burst, then one a minute. Repetitions count too: each is a write. Wider than client-go (25, one in 5
 * minutes): a rollout and its rollback are about ten, and the last of four in a row must be heard too.
 */
const perObject = { perSecond: 1 / 60, burst: 100 };
/** Memory is bounded: of what was longest not touched, the oldest is forgotten. */
const mostRemembered = 4096;
const mostWaiting = 1000;
const attempts = 3;
/** The API server refuses messages longer than 1024. */
const longestMessage = 1024;

export class EventRecorder {
  readonly #options: EventOptions;
  readonly #told: Recent<Told>;
  readonly #similar: Recent<Set<string>>;
  readonly #buckets: Recent<TokenBucket>;
  readonly #waiting: (() => Promise<void>)[] = [];
  #sending: Promise<void> | undefined;

  constructor(options: EventOptions) {
    this.#options = options;
    this.#told = new Recent(options.clock);
    this.#similar = new Recent(options.clock);
    this.#buckets = new Recent(options.clock);
  }

  /** The object needs a uid: events of an object of the same name that is gone are not this one's. */
  record(object: KubeObject, details: EventDetails): void {
    const { metrics, log } = this.#options;
    const { uid = '', namespace, name } = object.metadata;
    const bucket = this.#buckets.get(uid, () => new TokenBucket(perObject, this.#options.clock));
    const why = !bucket.tryTake() ? 'rate' : this.#waiting.length >= mostWaiting ? 'queue' : undefined;
    if (why !== undefined) {
      metrics?.dropped?.(why);
      log.debug({ namespace, name, ...details, why }, 'event dropped');
      return;
    }
    metrics?.recorded?.(details.type, details.reason);
    this.#waiting.push(() => this.#send(object, this.#combine(uid, details), this.#options.clock.now()));
    this.#sending ??= this.#drain();
  }

  /** Resolves when everything recorded until now was sent or given up. */
  async flush(): Promise<void> {
    while (this.#sending !== undefined) await this.#sending;
  }

  async #drain(): Promise<void> {
    // In a turn of its own: what is recorded in one turn is seen together.
    await Promise.resolve();
    for (let send = this.#waiting.shift(); send !== undefined; send = this.#waiting.shift()) await send();
    this.#sending = undefined;
  }

  #combine(uid: string, details: EventDetails): EventDetails {
    const messages = this.#similar.get(JSON.stringify([uid, details.type, details.reason]), () => new Set());
    if (messages.size < mostSimilar) messages.add(details.message);
    if (messages.has(details.message)) return details;
    return { ...details, message: `(combined from similar events): ${details.message}` };
  }

  async #send(object: KubeObject, details: EventDetails, at: Date): Promise<void> {
    const { clock, random, log, metrics } = this.#options;
    const { namespace, name } = object.metadata;
    const combined = details.message.startsWith('(combined');
    const message = truncate(details.message);
    const key = JSON.stringify([object.metadata.uid, details.type, details.reason, combined || message]);
    for (let attempt = 1; ; attempt += 1) {
      try {
        const told = this.#told.peek(key);
        if (told === undefined || !(await this.#count(told, message, at))) {
          this.#told.set(key, await this.#create(object, { ...details, message }, at));
        }
        return;
      } catch (error) {
        // A namespace that is being deleted, an object the server refuses, a lease we lost: trying again is no use.
        const refused =
          error instanceof KubeError && error.status >= 400 && error.status < 500 && error.status !== 429;
        if (refused || error instanceof NotLeaderError || attempt === attempts) {
          metrics?.dropped?.('failed');
          log.warn({ namespace, name, ...details, err: error }, 'event not written');
          return;
        }
        const { retryAfterSeconds = 0 } = error instanceof KubeError ? error : {};
        await sleep(clock, Math.max(retryAfterSeconds * 1000, 1000 * attempt * (0.5 + random())), never);
      }
    }
  }

  /** False when the event is gone: the server keeps events for an hour. */
  async #count(told: Told, message: string, at: Date): Promise<boolean> {
    const { client } = this.#options;
    const patch = { count: told.count + 1, lastTimestamp: seconds(at), message };
    try {
      await client.mergePatch(resources.events, told, patch);
    } catch (error) {
      if (error instanceof KubeError && error.status === 404) return false;
      throw error;
    }
    told.count += 1;
    return true;
  }

  async #create(object: KubeObject, details: EventDetails, at: Date): Promise<Told> {
    const { client, component, instance, random } = this.#options;
    const { uid, resourceVersion } = object.metadata;
    // Events of objects without a namespace live in "default".
    const namespace = object.metadata.namespace ?? 'default';
    const suffix = at.getTime().toString(16) + Math.floor(random() * 2 ** 32).toString(16);
    const name = `${object.metadata.name.slice(0, 200)}.${suffix}`;
    await client.create(resources.events, {
      apiVersion: 'v1',
      kind: 'Event',
      metadata: { namespace, name },
      involvedObject: {
        apiVersion: object.apiVersion,
        kind: object.kind,
        ...(object.metadata.namespace === undefined ? {} : { namespace: object.metadata.namespace }),
        name: object.metadata.name,
        uid,
        resourceVersion,
      },
      ...details,
      source: { component },
      reportingComponent: component,
      reportingInstance: instance,
      count: 1,
      firstTimestamp: seconds(at),
      lastTimestamp: seconds(at),
    });
    return { namespace, name, count: 1 };
  }
}

const never = new AbortController().signal;

/** Values by key, forgotten some time after they were last touched, and the oldest when there are too many. */
class Recent<T> {
  readonly #clock: Clock;
  /** In the order of the last touch. */
  readonly #entries = new Map<string, { value: T; touchedAt: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  peek(key: string): T | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined || this.#clock.monotonicMs() - entry.touchedAt > memoryMs) return undefined;
    this.set(key, entry.value);
    return entry.value;
  }

  get(key: string, make: () => T): T {
    const known = this.peek(key);
    if (known !== undefined) return known;
    const value = make();
    this.set(key, value);
    return value;
  }

  set(key: string, value: T): void {
    this.#entries.delete(key);
    this.#entries.set(key, { value, touchedAt: this.#clock.monotonicMs() });
    if (this.#entries.size > mostRemembered) this.#entries.delete(this.#entries.keys().next().value!);
  }
}

function truncate(message: string): string {
  return message.length <= longestMessage ? message : `${message.slice(0, longestMessage - 1)}…`;
}

/** metav1.Time has no fractions. */
function seconds(date: Date): string {
  return date.toISOString().replace(/\.\d+Z$/, 'Z');
}
