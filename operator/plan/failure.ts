/**
 * Has a revision failed? Enters: what is observed of its pods, what was found before, the policy. Leaves: why it has, or
 * when to look again. Pure. A failure is remembered by the revision's name: it is not tried again before its inputs
 * change or a person asks for it.
 */
import type { RolloutStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { type Trouble, worstTrouble } from './pod-trouble.ts';
import type { Policy } from './policy.ts';
import type { RevisionState } from './world.ts';

export interface Failure {
  readonly revision: string;
  readonly reason: string;
  readonly message: string;
}

export interface FailureInput {
  readonly target: RevisionState;
  /** All of its pods are ready: whatever was, it works. */
  readonly complete: boolean;
  readonly policy: Policy;
  readonly last: RolloutStatus;
  /** When the deadline began to count. */
  readonly progressedAt: Date;
  /** There is a revision to return to: then what no waiting cures is not waited for. */
  readonly canReturn: boolean;
  /** Fewer pods serve than were promised: what is waited costs requests. */
  readonly lacking: boolean;
  readonly now: Date;
}

export interface FailureFinding {
  readonly failure?: Failure;
  readonly requeueAfterMs?: number;
}

/** Crashes that make a loop: the third start has failed too. */
const crashLoopRestarts = 2;
/**
 * Registries have bad moments, and images may be pushed a little late; a name that is no image's has no such hope. While
 * pods are lacking, a registry's word that it does not have the image is enough.
 */
const imagePullGraceMs = 60_000;
/** That word, as containerd, CRI-O, Docker and the kubelet pass it on. */
const imageAbsent =
  /code = NotFound|: not found|manifest unknown|name unknown|does not exist|is not present with pull policy/i;

export function findFailure(input: FailureInput): FailureFinding {
  const { target, policy, last, complete, now } = input;
  if (policy.hold === 'Retry') return {};
  const revision = target.name;
  const aborted: Failure = { revision, reason: 'Aborted', message: 'a person ended the rollout' };
  if (policy.hold === 'Abort' && input.canReturn) return { failure: aborted };
  const known = last.failure?.revision === revision ? last.failure : undefined;
  // Pods that came round are better than what was thought of them; a person's word is not about pods.
  if (complete && known?.reason !== aborted.reason) return {};
  if (known !== undefined) return { failure: known };
  if (policy.paused || target.deployment === undefined) return {};
  const trouble = worstTrouble(target.pods, target.deployment);
  const hopeless = trouble === undefined || !input.canReturn ? undefined : hopelessInMs(trouble, input);
  if (trouble !== undefined && hopeless !== undefined && hopeless <= 0)
    return { failure: { revision, reason: trouble.reason, message: trouble.message } };
  const leftMs = policy.progressDeadlineMs - (now.getTime() - input.progressedAt.getTime());
  if (leftMs > 0) return { requeueAfterMs: Math.min(leftMs, hopeless ?? leftMs) };
  const seconds = policy.progressDeadlineMs / 1000;
  return {
    failure: {
      revision,
      reason: 'ProgressDeadlineExceeded',
      message: `no further pod became ready within ${seconds} seconds${trouble === undefined ? '' : `: ${trouble.message}`}`,
    },
  };
}

/** In how long waiting is of no more use; undefined where it may be. */
function hopelessInMs(
  trouble: Trouble,
  { target: { pods }, lacking, now }: FailureInput,
): number | undefined {
  if (trouble.reason === 'RuntimeConfigRejected') return 0;
  if (trouble.reason === 'CrashLoop')
    return Math.max(0, ...pods.map(restarts)) >= crashLoopRestarts ? 0 : undefined;
  if (trouble.reason !== 'ImagePullFailed') return undefined;
  const waits = pods.flatMap(waiting);
  if (waits.some(({ reason }) => reason === 'InvalidImageName')) return 0;
  if (lacking && waits.some(({ message = '' }) => imageAbsent.test(message))) return 0;
  const failing = pods.filter((pod) => waiting(pod).length > 0);
  const oldest = Math.min(...failing.map((pod) => Date.parse(pod.metadata.creationTimestamp ?? '')));
  return Number.isFinite(oldest) ? imagePullGraceMs - (now.getTime() - oldest) : 0;
}

// biome-ignore lint/suspicious/noExplicitAny: container statuses of a pod.
function containers(pod: AnyObject): any[] {
  return [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])];
}

function restarts(pod: AnyObject): number {
  return Math.max(0, ...containers(pod).map((each) => Number(each.restartCount ?? 0)));
}

function waiting(pod: AnyObject): { readonly reason?: string; readonly message?: string }[] {
  return containers(pod).flatMap((each) => each.state?.waiting ?? []);
}
