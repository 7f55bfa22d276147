/**
 * One leader among several processes, by a Lease object. Enters: a client, the lease's name and our identity; leaves: a
 * Leadership while we have it. Must not know what a leader does. Modelled on client-go's leaderelection, with a fence:
 * see fenced-client.ts.
 *
 * Why two leaders cannot write at once. Every process measures durations by its own monotonic clock; no two wall clocks
 * are compared. A follower takes over when it has seen the lease unchanged for `leaseDurationMs` since it read it. We
 * count our time from *before* we sent the renewal that it read at the earliest afterwards, and stop at
 * `renewDeadlineMs`, which is shorter: so we have stopped, by `leaseDurationMs - renewDeadlineMs`, before anyone takes
 * over. Whether we still lead is asked of the clock immediately before a request's bytes leave, so a process that was
 * stopped in between, however long, refuses its own request when it goes on.
 */
import assert from 'node:assert/strict';
import { type KubeClient, KubeError, type KubeObject, resources } from '../kube/client.ts';
import { type Clock, type Random, sleep } from './clock.ts';
import type { Log } from './log.ts';

export interface LeaderOptions {
  readonly client: KubeClient;
  readonly namespace: string;
  /** Of the Lease. */
  readonly name: string;
  /** Unlike any other process's, also unlike that of an earlier run on this host: for example <pod>_<random>. */
  readonly identity: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** A follower takes over after so long without a renewal. Default 15 s. */
  readonly leaseDurationMs?: number;
  /** We stop leading after so long without a renewal. Default 10 s. */
  readonly renewDeadlineMs?: number;
  /** Between two renewals, and between two looks of a follower. Default 2 s. */
  readonly retryPeriodMs?: number;
}

/** One term. Once over it never comes back, also when the same process leads again. */
export interface Leadership {
  /** Grows from one holder to the next: the lease's leaseTransitions. */
  readonly term: number;
  /** For work: aborts when the term ends, and before, when the process is asked to stop. */
  readonly signal: AbortSignal;
  /** For requests: aborts when the term ends. */
  readonly lost: AbortSignal;
  /** By the clock, now. */
  isLeader(): boolean;
  /** Throws NotLeaderError. */
  assertLeader(): void;
}

/** A write was refused here, in this process, because its lease may belong to another by now. */
export class NotLeaderError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'NotLeaderError';
  }
}

interface LeaseSpec {
  readonly holderIdentity?: string;
  readonly leaseDurationSeconds?: number;
  readonly acquireTime?: string;
  readonly renewTime?: string;
  readonly leaseTransitions?: number;
}

export class LeaderElector {
  readonly #options: Required<LeaderOptions>;
  /** The lease as last read, and when by our clock we first saw this version of it. */
  #observed: { lease: KubeObject; at: number } | undefined;
  #term: Term | undefined;

  constructor(options: LeaderOptions) {
    this.#options = { leaseDurationMs: 15_000, renewDeadlineMs: 10_000, retryPeriodMs: 2_000, ...options };
    const { leaseDurationMs, renewDeadlineMs, retryPeriodMs } = this.#options;
    const times = `${leaseDurationMs} > ${renewDeadlineMs} > ${retryPeriodMs} ms`;
    assert(leaseDurationMs > renewDeadlineMs && renewDeadlineMs > retryPeriodMs, times);
  }

  /** For metrics and /readyz. */
  get isLeader(): boolean {
    return this.#term?.isLeader() ?? false;
  }

  /** Who holds the lease, as last read. */
  get holder(): string | undefined {
    return specOf(this.#observed?.lease).holderIdentity || undefined;
  }

  /**
   * Waits for the lease and calls `lead` with the term, again and again until the signal aborts. `lead` returns when the
   * term's signal has aborted and its work has ended; the lease is kept until then, and released afterwards. Never
   * rejects for what the server does; what `lead` throws ends the term and is thrown.
   */
  async run(lead: (leadership: Leadership) => Promise<void>, signal: AbortSignal): Promise<void> {
    const { clock, log, identity, retryPeriodMs, random } = this.#options;
    while (!signal.aborted) {
      const term = await this.#tryAcquire(signal).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ err: error }, 'the lease could not be read or taken');
        return undefined;
      });
      if (term === undefined) {
        await sleep(clock, retryPeriodMs * (1 + random() * 0.2), signal);
        continue;
      }
      log.info({ identity, term: term.term }, 'became leader');
      this.#term = term;
      try {
        await this.#serve(term, lead, signal);
      } finally {
        this.#term = undefined;
      }
      log.info({ identity, term: term.term }, 'stopped leading');
      await sleep(clock, retryPeriodMs, signal);
    }
  }

  /** One term, from its beginning to the release of the lease. */
  async #serve(
    term: Term,
    lead: (leadership: Leadership) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const onStop = () => term.stop();
    if (signal.aborted) onStop();
    signal.addEventListener('abort', onStop, { once: true });
    const over = new AbortController();
    const renewing = this.#renew(term, over.signal);
    try {
      await lead(term);
    } finally {
      signal.removeEventListener('abort', onStop);
      over.abort();
      await renewing;
      // Work that `lead` gave up waiting for may still be there: from here on it cannot write.
      term.close();
      if (term.holdsLease()) await this.#release(term);
      term.end('over');
    }
  }

  async #tryAcquire(signal: AbortSignal): Promise<Term | undefined> {
    const { client, clock, log, identity, namespace, name, leaseDurationMs } = this.#options;
    // Always read first: after this process was stopped for a while, what it remembers is no evidence.
    const lease = await client.get(resources.leases, { namespace, name }, { signal });
    // After the answer: the holder sent what we read before this.
    const readAt = clock.monotonicMs();
    if (signal.aborted) return undefined;
    const metadata = { namespace, name };
    let claim: KubeObject = { apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', metadata, spec: {} };
    let transitions = 0;
    if (lease !== undefined) {
      this.#observe(lease, readAt);
      const spec = specOf(lease);
      const again = spec.holderIdentity === identity;
      const durationMs = (spec.leaseDurationSeconds ?? leaseDurationMs / 1000) * 1000;
      if (spec.holderIdentity && !again && readAt < this.#observed!.at + durationMs) return undefined;
      claim = lease;
      transitions = (spec.leaseTransitions ?? 0) + (again ? 0 : 1);
    }
    claim = { ...claim, spec: { ...claim.spec, ...this.#claim(transitions) } };
    const term = new Term(this.#options, transitions, readAt, (reason) =>
      log.error({ identity, term: transitions, reason, holder: this.holder }, 'lost the lease'),
    );
    let ours = false;
    try {
      ours = await this.#write(term, claim);
    } finally {
      if (!ours) term.end('it never began');
    }
    return ours ? term : undefined;
  }

  /** Renews until the work is over or the term is lost. Never rejects. */
  async #renew(term: Term, over: AbortSignal): Promise<void> {
    const { clock, log, retryPeriodMs } = this.#options;
    while (true) {
      await sleep(clock, retryPeriodMs, over);
      if (over.aborted || !term.holdsLease()) return;
      try {
        const lease = this.#observed!.lease;
        const renewed = { ...lease, spec: { ...lease.spec, renewTime: microTime(clock.now()) } };
        // A conflict: someone else wrote the lease. Who holds it now decides.
        if (!(await this.#write(term, renewed))) await this.#look(term);
      } catch (error) {
        if (term.holdsLease()) log.warn({ err: error }, 'the lease could not be renewed');
      }
    }
  }

  async #look(term: Term): Promise<void> {
    const { client, clock, namespace, name, identity } = this.#options;
    const lease = await client.get(resources.leases, { namespace, name }, { signal: term.lost });
    if (lease !== undefined) this.#observe(lease, clock.monotonicMs());
    if (specOf(lease).holderIdentity !== identity) term.lose('another process holds it');
  }

  async #release(term: Term): Promise<void> {
    const { clock, log } = this.#options;
    const lease = this.#observed!.lease;
    const renewTime = microTime(clock.now());
    const spec = { ...lease.spec, holderIdentity: '', leaseDurationSeconds: 1, renewTime };
    try {
      if (await this.#write(term, { ...lease, spec })) log.info({}, 'released the lease');
    } catch (error) {
      log.warn({ err: error }, 'the lease could not be released; it will run out');
    }
  }

  /** Writes the lease. True: it is ours until the term's new deadline. False: someone else was faster. */
  async #write(term: Term, lease: KubeObject): Promise<boolean> {
    const { client, clock, renewDeadlineMs } = this.#options;
    const sentAt = clock.monotonicMs();
    // An attempt that hangs leaves time for another one, on another connection.
    const attempt = new AbortController();
    const cancel = clock.after(renewDeadlineMs / 2, () =>
      attempt.abort(new Error('the lease request hangs')),
    );
    const onLost = () => attempt.abort(term.lost.reason);
    if (term.lost.aborted) onLost();
    term.lost.addEventListener('abort', onLost, { once: true });
    const options = { beforeSend: () => term.assertHoldsLease(), signal: attempt.signal };
    try {
      const isNew = lease.metadata.resourceVersion === undefined;
      const write = isNew ? client.create : client.replace;
      const written = await write.call(client, resources.leases, lease, options);
      this.#observe(written, sentAt);
      term.extend(sentAt);
      return true;
    } catch (error) {
      // 404: deleted meanwhile.
      if (error instanceof KubeError && (error.status === 409 || error.status === 404)) return false;
      throw error;
    } finally {
      cancel();
      term.lost.removeEventListener('abort', onLost);
    }
  }

  #observe(lease: KubeObject, at: number): void {
    if (this.#observed?.lease.metadata.resourceVersion === lease.metadata.resourceVersion) return;
    this.#observed = { lease, at };
  }

  #claim(leaseTransitions: number): LeaseSpec {
    const { clock, identity, leaseDurationMs } = this.#options;
    const now = microTime(clock.now());
    return {
      holderIdentity: identity,
      leaseDurationSeconds: Math.ceil(leaseDurationMs / 1000),
      acquireTime: now,
      renewTime: now,
      leaseTransitions,
    };
  }
}

class Term implements Leadership {
  readonly term: number;
  readonly #clock: Clock;
  readonly #renewDeadlineMs: number;
  readonly #onLost: (reason: string) => void;
  readonly #stop = new AbortController();
  readonly #lost = new AbortController();
  /** By the monotonic clock. Only ever grows, and not after the end. */
  #deadline: number;
  #closed = false;
  #cancelTimer = () => {};

  constructor(
    options: { clock: Clock; renewDeadlineMs: number },
    term: number,
    sentAt: number,
    onLost: (reason: string) => void,
  ) {
    this.term = term;
    this.#clock = options.clock;
    this.#renewDeadlineMs = options.renewDeadlineMs;
    this.#onLost = onLost;
    this.#deadline = sentAt;
    this.extend(sentAt);
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  isLeader(): boolean {
    return !this.#closed && this.holdsLease();
  }

  assertLeader(): void {
    if (!this.isLeader()) throw new NotLeaderError(this.#closed ? 'the term is over' : this.#late());
  }

  /** Like isLeader(), but for the lease itself, which is released after everything else has ended. */
  holdsLease(): boolean {
    return !this.#lost.signal.aborted && this.#clock.monotonicMs() < this.#deadline;
  }

  assertHoldsLease(): void {
    if (!this.holdsLease()) throw new NotLeaderError(this.#late());
  }

  /** The lease was written by a request that we began to send at this time. */
  extend(sentAt: number): void {
    if (this.#lost.signal.aborted) return;
    this.#deadline = Math.max(this.#deadline, sentAt + this.#renewDeadlineMs);
    this.#cancelTimer();
    const leftMs = this.#deadline - this.#clock.monotonicMs();
    this.#cancelTimer = this.#clock.after(leftMs, () => this.lose('it was not renewed in time'));
  }

  /** We were asked to stop: work ends, writes under way may finish. */
  stop(): void {
    this.#stop.abort(new NotLeaderError('asked to stop'));
  }

  lose(reason: string): void {
    if (this.#lost.signal.aborted) return;
    this.#onLost(reason);
    this.end(reason);
  }

  /** Nothing but the lease's release is written any more. */
  close(): void {
    this.#closed = true;
    this.stop();
  }

  end(reason: string): void {
    this.#cancelTimer();
    this.#closed = true;
    const error = new NotLeaderError(`the lease is not ours any more: ${reason}`);
    this.#lost.abort(error);
    this.#stop.abort(error);
  }

  #late(): string {
    const lateMs = Math.round(this.#clock.monotonicMs() - this.#deadline);
    return `not sent: the lease should have been renewed ${lateMs} ms ago, and may belong to another process`;
  }
}

function specOf(lease: KubeObject | undefined): LeaseSpec {
  return (lease?.spec as LeaseSpec | undefined) ?? {};
}

/** metav1.MicroTime: six digits, or the API server refuses it. */
function microTime(date: Date): string {
  return date.toISOString().replace('Z', '000Z');
}
