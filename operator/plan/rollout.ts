/**
 * How many pods of which revision: the arithmetic of a rollout. Enters: the revision that is wanted, the one that serves,
 * what is observed of both. Leaves: replica counts and what may go. Pure.
 *
 * The new revision comes up beside the old one, which stays until the new one is ready as a whole. Where the new pods
 * find no place because the old ones hold it (a GPU, most often), waiting would never end: then the old ones make room, one for each that
 * waits, which is announced in a condition before it begins.
 */
import { type PodSpec, podRequest } from './capacity.ts';
import { unschedulable } from './pod-trouble.ts';
import { isComplete, type RevisionState } from './world.ts';

export interface RolloutInput {
  readonly target: RevisionState;
  /** The template of the target's pods. */
  readonly targetSpec: PodSpec;
  /** The revision that was last ready as a whole; may be the target. */
  readonly stable?: RevisionState;
  /** Revisions that are neither. */
  readonly others: readonly RevisionState[];
  /** Replicas of the spec. */
  readonly replicas: number;
  /** The last status announced that old pods make room for this target. */
  readonly gapAnnounced: boolean;
  readonly now: Date;
  /** How long a new pod must have found no place before old ones make room. */
  readonly capacityWaitMs: number;
}

export interface RolloutDecision {
  /** Deployments to have, by revision. */
  readonly replicas: ReadonlyMap<string, number>;
  /** Deployments to remove. */
  readonly remove: readonly string[];
  readonly targetComplete: boolean;
  /** `announced`: say so now, act when it has been said. */
  readonly gap: 'none' | 'announced' | 'open';
  /** When a pod will have waited long enough. */
  readonly requeueAfterMs?: number;
}

export function decideRollout(input: RolloutInput): RolloutDecision {
  const { target, stable, others, replicas: wanted } = input;
  const replicas = new Map([[target.name, wanted]]);
  const remove = others.filter((each) => each.deployment !== undefined).map((each) => each.name);
  const targetComplete = isComplete(target, wanted);
  if (stable === undefined || stable.name === target.name || targetComplete) {
    // A complete target becomes the stable revision in the status first; the old one goes when that is written.
    if (stable !== undefined && !replicas.has(stable.name))
      replicas.set(stable.name, heldReplicas(stable, wanted));
    return { replicas, remove, targetComplete, gap: 'none' };
  }
  const stuck = stuckPods(input, stable);
  if (!input.gapAnnounced) {
    replicas.set(stable.name, wanted);
    const announce = stuck.ripe > 0;
    return {
      replicas,
      remove,
      targetComplete,
      gap: announce ? 'announced' : 'none',
      ...(stuck.ripeInMs === undefined || announce ? {} : { requeueAfterMs: stuck.ripeInMs }),
    };
  }
  const held = heldReplicas(stable, wanted);
  const makingRoom = stable.terminatingPods > 0 || stable.pods.length > held;
  replicas.set(stable.name, makingRoom ? held : Math.max(0, held - stuck.ripe));
  return {
    replicas,
    remove,
    targetComplete,
    gap: 'open',
    ...(stuck.ripeInMs === undefined ? {} : { requeueAfterMs: stuck.ripeInMs }),
  };
}

/** What the stable revision has; it never grows back while it makes room. */
function heldReplicas(stable: RevisionState, wanted: number): number {
  return Math.min(wanted, stable.deployment?.spec.replicas ?? wanted);
}

/** Pods of the target that lack what a pod of the stable revision would free on its node. */
function stuckPods(input: RolloutInput, stable: RevisionState): { ripe: number; ripeInMs?: number } {
  const stableSpec: PodSpec = stable.deployment?.spec.template.spec ?? {};
  const frees = (resource: string) => {
    const needed = podRequest(input.targetSpec, resource);
    return needed > 0 && needed <= podRequest(stableSpec, resource);
  };
  const waits = input.target.pods.flatMap((pod) => {
    const waiting = unschedulable(pod);
    const lacking = [...(waiting?.message ?? '').matchAll(/Insufficient ([\w./-]*\w)/g)].map(
      (match) => match[1]!,
    );
    if (waiting === undefined || lacking.length === 0 || !lacking.every(frees)) return [];
    return [input.capacityWaitMs - (input.now.getTime() - Date.parse(waiting.since))];
  });
  const later = waits.filter((wait) => wait > 0);
  return {
    ripe: waits.length - later.length,
    ...(later.length === 0 ? {} : { ripeInMs: Math.min(...later) }),
  };
}
