/**
 * How many pods of which revision: the arithmetic of a rollout. Enters: the revision that is wanted, those that run, the
 * policy, what the last status decided, an estimate of free GPUs. Leaves: replica counts, what may go, and the decision in
 * words. Pure.
 *
 * New pods start beside the old ones as far as there is room, and old ones end as new ones become ready. Where new pods
 * find no room because the old ones hold it (a GPU, most often), waiting would never end: the new ones are withdrawn, and
 * then either old ones make room, which is announced in a condition before it begins, or nothing moves until there is.
 */
import { timestamp } from '../api/conditions.ts';
import type { RolloutStatus } from '../api/inference-service.ts';
import { type Capacity, type PodSpec, podRequest } from './capacity.ts';
import { type Failure, findFailure } from './failure.ts';
import { unschedulable } from './pod-trouble.ts';
import type { Policy } from './policy.ts';
import { isComplete, isReady, type RevisionState } from './world.ts';

export interface RolloutInput {
  /** The revision that is asked for. */
  readonly target: RevisionState;
  /** The template of the target's pods. */
  readonly targetSpec: PodSpec;
  /** The revision that was last ready as a whole; may be the target. */
  readonly stable?: RevisionState;
  /** Revisions with a Deployment that are neither. */
  readonly others: readonly RevisionState[];
  readonly replicas: number;
  readonly policy: Policy;
  readonly last: RolloutStatus;
  /** Pods of the target that were ready by the last status. */
  readonly lastReady: number;
  /** The last status announced that old pods make room for the revision of `last`. */
  readonly gapAnnounced: boolean;
  /** The target may not have pods yet (a preflight stands against it). */
  readonly barred: boolean;
  /** Of pods of this spec, were the pods named not there. */
  readonly capacity: (spec: PodSpec, without: ReadonlySet<string>) => Capacity;
  readonly now: Date;
}

export type RolloutState =
  /** One revision alone, which has what was asked for or is on the way there. */
  | 'inPlace'
  | 'moving'
  | 'gapAnnounced'
  | 'gapOpen'
  | 'waitingForCapacity'
  | 'paused'
  | 'awaitingPromotion'
  | 'rollingBack'
  | 'rolledBack'
  /** Failed, and everything stays as it is. */
  | 'failed';

export interface RolloutDecision {
  readonly state: RolloutState;
  /** The revision that is to serve: the target, or the stable one when the target has failed. */
  readonly goal: string;
  /** All of its pods are ready, and nobody holds back the old ones' end: it may be called the stable one. */
  readonly goalComplete: boolean;
  /** Deployments to have, by revision. */
  readonly replicas: ReadonlyMap<string, number>;
  /** Deployments to remove. */
  readonly remove: readonly string[];
  /** `status.rollout`, without the hold. */
  readonly status: RolloutStatus;
  readonly failure?: Failure;
  readonly requeueAfterMs?: number;
}

/** How often to look again whether there is room: other pods' ends are nobody's event here. */
const capacityRecheckMs = 5_000;
/** After a withdrawal the scheduler is asked again after so many times the time that was waited. */
const withdrawnRest = 5;

interface Old extends RevisionState {
  readonly current: number;
  readonly ready: number;
  readonly isStable: boolean;
}

interface Counts {
  readonly goal: number;
  readonly olds: readonly number[];
}

export function decideRollout(input: RolloutInput): RolloutDecision {
  const { target, stable, others, policy, replicas: wanted, last, now } = input;
  const canReturn = stable !== undefined && stable.name !== target.name;
  const progressedAt = progressOf(input);
  const serving = [target, ...(canReturn ? [stable] : []), ...others];
  const { failure, requeueAfterMs: deadlineMs } =
    wanted > 0 && (canReturn || stable === undefined)
      ? findFailure({
          target,
          complete: isComplete(target, wanted),
          policy,
          last,
          progressedAt,
          canReturn,
          lacking:
            sum(serving.map((each) => each.pods.filter(isReady).length)) < wanted - policy.maxUnavailable,
          now,
        })
      : {};
  const back =
    canReturn && failure !== undefined && (policy.onFailure === 'Rollback' || failure.reason === 'Aborted');
  const goal = back ? stable : target;
  const olds = oldsOf(input, goal);
  const rollout = new Rollout(input, goal, olds, back);
  const step =
    canReturn && failure !== undefined && !back
      ? rollout.frozen('failed', rollout.lastWords())
      : rollout.decide();
  const complete = isComplete(goal, wanted);
  const state = complete && step.decision.state === 'gapOpen' ? 'moving' : step.decision.state;
  // Time counts only while something is expected to move.
  const counting = !back && !complete && (canReturn || stable === undefined) && movingStates.includes(state);
  const requeues = [step.requeueAfterMs, deadlineMs].filter((each) => each !== undefined);
  return {
    ...step.decision,
    state: back ? (complete && olds.length === 0 ? 'rolledBack' : 'rollingBack') : state,
    goal: goal.name,
    goalComplete: complete && !['paused', 'awaitingPromotion', 'failed'].includes(state),
    status: {
      ...step.decision.status,
      ...(counting ? { progressedAt: timestamp(progressedAt) } : {}),
      ...(failure === undefined || !canReturn ? {} : { failure }),
    },
    ...(failure === undefined ? {} : { failure }),
    ...(requeues.length === 0 ? {} : { requeueAfterMs: Math.max(1000, Math.min(...requeues)) }),
  };
}

const movingStates: readonly RolloutState[] = ['inPlace', 'moving', 'gapAnnounced', 'gapOpen', 'failed'];

/** When the rollout of the target began or last moved on: from here the deadline counts. */
function progressOf({ target, last, lastReady, policy, now }: RolloutInput): Date {
  const known = last.revision === target.name && last.progressedAt !== undefined && policy.hold !== 'Retry';
  const ready = target.pods.filter(isReady).length;
  return !known || ready > lastReady ? now : new Date(last.progressedAt!);
}

function oldsOf({ target, stable, others, replicas }: RolloutInput, goal: RevisionState): Old[] {
  const candidates = [...(stable === undefined ? [] : [stable]), target, ...others];
  return candidates
    .filter((each, index) => each.name !== goal.name && candidates.indexOf(each) === index)
    .filter((each) => each.deployment !== undefined || each === stable)
    .map((each) => {
      // Somebody removed the Deployment of the revision that serves: it comes back.
      const current: number = each.deployment?.spec.replicas ?? replicas;
      const ready = Math.min(current, each.pods.filter(isReady).length);
      return { ...each, current, ready, isStable: each === stable };
    });
}

type Words = Pick<RolloutStatus, 'decision' | 'reason' | 'message' | 'withdrawnAt'>;

interface Step {
  readonly decision: Pick<RolloutDecision, 'state' | 'replicas' | 'remove' | 'status'>;
  readonly requeueAfterMs?: number;
}

/** The arithmetic for one goal; methods answer, nothing changes. */
class Rollout {
  readonly #input: RolloutInput;
  readonly #goal: RevisionState;
  readonly #olds: readonly Old[];
  readonly #back: boolean;
  readonly #wanted: number;
  readonly #current: number;
  readonly #ready: number;
  readonly #bound: number;

  constructor(input: RolloutInput, goal: RevisionState, olds: readonly Old[], back: boolean) {
    this.#input = input;
    this.#goal = goal;
    this.#olds = olds;
    this.#back = back;
    this.#wanted = input.replicas;
    this.#current = goal.deployment?.spec.replicas ?? 0;
    this.#ready = Math.min(this.#current, goal.pods.filter(isReady).length);
    this.#bound = goal.pods.filter((pod) => pod.spec?.nodeName !== undefined).length;
  }

  decide(): Step {
    const { policy } = this.#input;
    if (this.#input.barred && !this.#back) return this.frozen('inPlace', {});
    if (this.#olds.length === 0)
      return this.#step('inPlace', { goal: this.#wanted, olds: [] }, this.lastWords());
    if (this.#wanted === 0) return this.#step('moving', { goal: 0, olds: this.#olds.map(() => 0) }, {});
    if (this.#back)
      return this.#step(
        'moving',
        this.#counts(policy.maxUnavailable, policy.maxSurge, Number.POSITIVE_INFINITY),
        this.lastWords(),
      );
    if (policy.paused) return this.frozen('paused', this.lastWords());
    if (this.#promoted && isComplete(this.#goal, this.#wanted)) {
      const words = this.lastWords();
      const said = words.decision === undefined ? this.#words(this.#wanted) : words;
      return this.#step('moving', { goal: this.#wanted, olds: this.#olds.map(() => 0) }, said);
    }
    if (this.#gapAnnounced) return this.#makeRoom();
    if (policy.strategy === 'Recreate') return this.#announce('StrategyRecreate', 'the strategy is Recreate');
    return this.#surge();
  }

  /** What was decided before, as long as it is about this goal. */
  lastWords(): Words {
    const { last } = this.#input;
    if (last.revision !== this.#goal.name) return {};
    const { decision, reason, message, withdrawnAt } = last;
    return {
      ...(decision === undefined ? {} : { decision }),
      ...(reason === undefined ? {} : { reason }),
      ...(message === undefined ? {} : { message }),
      ...(withdrawnAt === undefined ? {} : { withdrawnAt }),
    };
  }

  /** Nothing moves; only a change of `replicas` is followed, by the revision that serves. */
  frozen(state: RolloutState, words: Words): Step {
    const goal = Math.min(this.#current, this.#wanted);
    const olds = this.#olds.map((each) =>
      each.isStable
        ? Math.max(0, Math.min(each.current, this.#wanted), this.#wanted - goal - this.#othersCurrent(each))
        : each.current,
    );
    return this.#step(state, { goal, olds }, words);
  }

  get #gapAnnounced(): boolean {
    const { last, gapAnnounced } = this.#input;
    return gapAnnounced && last.revision === this.#goal.name && last.decision === 'Recreate';
  }

  get #promoted(): boolean {
    const { promotion, hold } = this.#input.policy;
    return promotion === 'Automatic' || hold === 'Promote';
  }

  get #ending(): boolean {
    return this.#olds.some((each) => each.terminatingPods > 0 || each.pods.length > each.current);
  }

  #surge(): Step {
    const { policy, targetSpec } = this.#input;
    const capacity = this.#input.capacity(targetSpec, new Set());
    const stuck = this.#stuck();
    // Nobody's place is taken by a pod that waits where all old ones have gone.
    const beside = this.#olds.some((each) => each.current > 0);
    if (stuck.ripe > 0 && beside && !this.#ending && !policy.mayGrow) return this.#withdraw(stuck, capacity);
    const room = this.#room(capacity);
    const counts = this.#promoted
      ? this.#counts(policy.maxUnavailable, policy.maxSurge, room.pods)
      : this.#beside(room.pods);
    const stands =
      counts.goal === this.#current &&
      counts.olds.every((each, index) => each === this.#olds[index]!.current);
    if (stands && !this.#promoted && this.#ready >= this.#wanted)
      return this.#step('awaitingPromotion', counts, this.lastWords());
    // Pods that are still to be made, or to become ready, will move it on; only room that lacks does not come by itself.
    const settled =
      room.words !== undefined || (this.#goal.pods.length >= this.#current && this.#goal.pods.every(isReady));
    const lacking = this.#bound + room.pods <= this.#current && this.#current < this.#wanted;
    if (lacking && stands && !this.#ending && settled)
      return this.#insufficient(room.words ?? capacity.message, this.#wouldHelp(capacity), room.againMs);
    // A whole service that ends before the new one begins is a gap, also where the author allowed it.
    const endsAll = counts.olds.every((each) => each === 0) && this.#olds.some((each) => each.ready > 0);
    if (this.#ready === 0 && endsAll)
      return this.#announce('MaxUnavailable', 'maxUnavailable lets all pods end before new ones are ready');
    return this.#step('moving', counts, this.#words(counts.goal), stuck.ripeInMs);
  }

  /** All new pods for which there is room, and every old one stays. */
  #beside(room: number): Counts {
    const goal = Math.min(this.#wanted, Math.max(this.#current, this.#bound + room));
    return { goal, olds: this.#olds.map((each) => each.current) };
  }

  /** Old pods end so that new ones find a place; as few at a time as make room for one. */
  #makeRoom(): Step {
    const { policy, targetSpec } = this.#input;
    const stuck = this.#stuck();
    const opened = this.#wanted - sum(this.#olds.map((each) => each.current)) - this.#ready;
    const whole = policy.strategy === 'Recreate' ? this.#wanted : 0;
    const more = stuck.ripe > 0 && !this.#ending ? opened + 1 : opened;
    const unavailable = Math.max(policy.maxUnavailable, whole, this.#podsInTheWay(targetSpec), more);
    if (!this.#promoted) return this.frozen('awaitingPromotion', this.lastWords());
    const counts = this.#counts(unavailable, 0, Number.POSITIVE_INFINITY);
    // Of the strategy's own accord nothing starts before the last old pod is gone.
    const alone = sum(this.#olds.map((each) => each.pods.length + each.terminatingPods)) === 0;
    const goal = whole > 0 && !alone ? this.#current : counts.goal;
    return this.#step('gapOpen', { ...counts, goal }, this.lastWords(), stuck.ripeInMs);
  }

  /** At most `surge` pods more than wanted, at most `unavailable` ready ones fewer, `room` new pods at once. */
  #counts(unavailable: number, surge: number, room: number): Counts {
    let keep = Math.max(0, this.#wanted - unavailable - this.#ready);
    const ordered = [...this.#olds].sort((a, b) => Number(b.isStable) - Number(a.isStable));
    const kept = new Map<string, number>();
    for (const old of ordered) {
      // The stable revision's pods may be on their way back; those of a revision that was given up are no use unready.
      const count = Math.min(keep, old.isStable ? old.current : old.ready);
      kept.set(old.name, count);
      keep -= count;
    }
    const olds = this.#olds.map((each) => kept.get(each.name)!);
    const left = sum(olds);
    const limit = left === 0 ? Number.POSITIVE_INFINITY : this.#bound + room;
    const goal = Math.min(
      this.#wanted,
      Math.max(this.#current, Math.min(this.#wanted + surge - left, limit)),
    );
    return { goal, olds };
  }

  /** Places for further pods, those that wait for one included; and the words where it was the scheduler that said so. */
  #room(capacity: Capacity): { pods: number; words?: string; againMs?: number } {
    const { policy, last, now } = this.#input;
    if (policy.mayGrow) return { pods: Number.POSITIVE_INFINITY };
    if (last.revision === this.#goal.name && last.withdrawnAt !== undefined) {
      const againMs = withdrawnRest * policy.capacityWaitMs - (now.getTime() - Date.parse(last.withdrawnAt));
      if (againMs > 0)
        return {
          pods: 0,
          againMs,
          ...(last.message === undefined ? {} : { words: withoutOutcome(last.message) }),
        };
    }
    return { pods: capacity.known ? capacity.fitsAfterReleases : Number.POSITIVE_INFINITY };
  }

  #withdraw(stuck: Stuck, capacity: Capacity): Step {
    const { now } = this.#input;
    const goal = Math.max(0, this.#current - stuck.ripe);
    const olds = this.#olds.map((each) => each.current);
    const why =
      capacity.known && capacity.fits === 0
        ? capacity.message
        : `the scheduler finds no place: ${stuck.message}`;
    const helps =
      capacity.known && capacity.fits === 0 ? this.#wouldHelp(capacity) : this.#freed(stuck.message);
    const words = this.#outcome(why, helps);
    return this.#step(
      words.decision === 'Recreate' ? 'gapAnnounced' : 'waitingForCapacity',
      { goal, olds },
      {
        ...words,
        withdrawnAt: timestamp(now),
      },
      capacityRecheckMs,
    );
  }

  #insufficient(why: string, helps: boolean, againMs = capacityRecheckMs): Step {
    const counts = { goal: this.#current, olds: this.#olds.map((each) => each.current) };
    const words = { ...this.#outcome(why, helps), ...withdrawal(this.lastWords()) };
    const state = words.decision === 'Recreate' ? 'gapAnnounced' : 'waitingForCapacity';
    if (!this.#promoted) return this.frozen('awaitingPromotion', words);
    return this.#step(state, counts, words, Math.min(againMs, capacityRecheckMs));
  }

  #outcome(why: string, helps: boolean): Words {
    const recreate = helps && this.#input.policy.whenInsufficient === 'Recreate';
    const waits = helps ? 'wait until there is room' : 'wait, since no old pod could make room';
    return {
      decision: recreate ? 'Recreate' : 'Wait',
      reason: 'NoFreeGPUs',
      message: `${why}: ${recreate ? 'recreate in place' : waits}`.slice(0, 1024),
    };
  }

  #announce(reason: string, message: string): Step {
    const counts = { goal: this.#current, olds: this.#olds.map((each) => each.current) };
    const words: Words = { decision: 'Recreate', reason, message: `${message}: recreate in place` };
    if (!this.#promoted) return this.frozen('awaitingPromotion', words);
    return this.#step('gapAnnounced', counts, words);
  }

  /**
   * The first words of a rollout stay: what is free moves with every pod. Where they were lost (the write after the first
   * pods failed, or the process ended before it), they are what they would have been without those pods.
   */
  #words(goal: number): Words {
    const before = this.lastWords();
    if (before.decision === 'Surge' || before.decision === 'PartialSurge') return before;
    const own = new Set(this.#goal.pods.map((pod) => pod.metadata.name));
    const capacity = this.#input.capacity(this.#input.targetSpec, own);
    const places = Math.max(this.#bound, this.#room(capacity).pods);
    // Old pods that are no use end; that is no decision about new ones yet.
    if (places === 0 && goal === this.#current) return before;
    const { maxSurge, maxUnavailable } = this.#input.policy;
    const olds = sum(this.#olds.map((each) => each.current));
    const asked = this.#wanted + maxSurge - Math.min(olds, Math.max(0, this.#wanted - maxUnavailable));
    const partial = places < Math.min(asked, this.#wanted);
    if (this.#input.policy.mayGrow)
      return {
        decision: 'Surge',
        reason: 'CapacityMayGrow',
        message: 'new pods may wait for further nodes: surge',
      };
    if (!capacity.known)
      return {
        decision: 'Surge',
        reason: capacity.perPod === 0 ? 'NoGPUsNeeded' : 'CapacityUnknown',
        message: `${capacity.message}: new pods start beside the old ones`,
      };
    return partial
      ? {
          decision: 'PartialSurge',
          reason: 'FewFreeGPUs',
          message: `${capacity.message}: surge by ${places}`,
        }
      : { decision: 'Surge', reason: 'FreeGPUs', message: `${capacity.message}: surge` };
  }

  /** Would one new pod fit if all old ones were gone? What cannot be estimated, the scheduler has said. */
  #wouldHelp(capacity: Capacity): boolean {
    const { message = '', withdrawnAt } = this.lastWords();
    if (!capacity.known || (withdrawnAt !== undefined && message.includes('Insufficient')))
      return this.#freed(message);
    const names = this.#olds.flatMap((each) => each.pods.map((pod) => pod.metadata.name));
    const without = this.#input.capacity(this.#input.targetSpec, new Set(names));
    return without.known && without.fitsAfterReleases > 0;
  }

  /** How many old pods hold what one new pod needs and no node has free. */
  #podsInTheWay(spec: PodSpec): number {
    const capacity = this.#input.capacity(spec, new Set());
    if (!capacity.known) return 1;
    const usable = capacity.nodes.filter((node) => node.excluded === undefined);
    const free = Math.max(0, ...usable.map((node) => node.allocatable - node.used));
    const old = Math.max(0, ...this.#olds.map((each) => each.pods.length && requestOf(each, capacity)));
    return old === 0 ? 1 : Math.max(1, Math.ceil((capacity.perPod - free) / old));
  }

  #stuck(): Stuck {
    const { policy, now } = this.#input;
    const waits = this.#goal.pods.flatMap((pod) => {
      const waiting = unschedulable(pod);
      if (waiting === undefined) return [];
      const since = Date.parse(waiting.since);
      const waitedMs = Number.isFinite(since) ? now.getTime() - since : policy.capacityWaitMs;
      return [{ leftMs: policy.capacityWaitMs - waitedMs, message: waiting.message }];
    });
    const later = waits.filter(({ leftMs }) => leftMs > 0).map(({ leftMs }) => leftMs);
    const ripe = waits.filter(({ leftMs }) => leftMs <= 0);
    return {
      ripe: ripe.length,
      message: ripe[0]?.message ?? '',
      ...(later.length === 0 ? {} : { ripeInMs: Math.min(...later) }),
    };
  }

  /** Is what the scheduler says is lacking something that an old pod of no smaller request would free? */
  #freed(message: string): boolean {
    const lacking = [...message.matchAll(/Insufficient ([\w./-]*\w)/g)].map((match) => match[1]!);
    return (
      lacking.length > 0 &&
      lacking.every((resource) => {
        const needed = podRequest(this.#input.targetSpec, resource);
        return this.#olds.some((old) => needed > 0 && needed <= podRequest(specOf(old), resource));
      })
    );
  }

  #othersCurrent(except: Old): number {
    return sum(this.#olds.filter((each) => each !== except).map((each) => each.current));
  }

  #step(state: RolloutState, { goal, olds }: Counts, words: Words, requeueAfterMs?: number): Step {
    const replicas = new Map<string, number>();
    // A rollout that may not begin leaves nothing behind.
    if (goal > 0 || this.#wanted === 0 || this.#goal.deployment !== undefined)
      replicas.set(this.#goal.name, goal);
    const remove: string[] = [];
    for (const [index, old] of this.#olds.entries()) {
      if (olds[index]! > 0 || old.isStable) replicas.set(old.name, olds[index]!);
      else remove.push(old.name);
    }
    return {
      decision: { state, replicas, remove, status: { revision: this.#goal.name, ...words } },
      ...(requeueAfterMs === undefined ? {} : { requeueAfterMs }),
    };
  }
}

interface Stuck {
  /** Pods that have waited long enough. */
  readonly ripe: number;
  readonly message: string;
  readonly ripeInMs?: number;
}

function withdrawal({ withdrawnAt }: Words): Words {
  return withdrawnAt === undefined ? {} : { withdrawnAt };
}

/** The reason that a decision's message begins with. */
function withoutOutcome(message: string): string {
  return message.replace(
    /: (recreate in place|wait until there is room|wait, since no old pod could make room)$/,
    '',
  );
}

function specOf({ deployment }: RevisionState): PodSpec {
  return deployment?.spec.template.spec ?? {};
}

function requestOf(old: Old, capacity: Capacity & { known: true }): number {
  return podRequest(specOf(old), capacity.resource);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
