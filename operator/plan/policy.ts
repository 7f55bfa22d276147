/**
 * `spec.rollout` with everything that its author left open filled in. Defaults live here and not in the schema: a stored
 * object holds only what was written. Pure.
 */
import type { InferenceServiceSpec, RolloutStatus } from '../api/inference-service.ts';

export interface Policy {
  readonly strategy: 'Auto' | 'Surge' | 'Recreate';
  /** Pods more than the replicas, and ready ones fewer. Not both 0 where there are replicas. */
  readonly maxSurge: number;
  readonly maxUnavailable: number;
  readonly progressDeadlineMs: number;
  readonly paused: boolean;
  readonly onFailure: 'Rollback' | 'Hold';
  readonly promotion: 'Automatic' | 'Manual';
  readonly mayGrow: boolean;
  readonly whenInsufficient: 'Recreate' | 'Wait';
  readonly capacityWaitMs: number;
  /** What a person asked of this rollout by hand. */
  readonly hold: 'Pause' | 'Promote' | 'Abort' | 'Retry' | undefined;
}

export const defaultHistoryLimit = 5;
export const defaultTrackIntervalSeconds = 300;
/** Where the template does not say how long its pods may take to start. */
const unknownDeadlineSeconds = 1800;
/** Beyond that: for the scheduler, volumes and the image. */
const beforeStartSeconds = 600;

export function policyOf(
  { rollout = {} }: InferenceServiceSpec,
  replicas: number,
  hold: RolloutStatus['hold'],
  generation: number,
  /** How long the pods of the wanted revision may take to start, by their template. */
  startupSeconds: number | undefined,
): Policy {
  const { capacity = {} } = rollout;
  const maxSurge = amount(rollout.maxSurge ?? 1, replicas, Math.ceil);
  const maxUnavailable = amount(rollout.maxUnavailable ?? 0, replicas, Math.floor);
  const verb = hold?.generation === generation ? hold.verb : undefined;
  return {
    strategy: rollout.strategy ?? 'Auto',
    maxSurge,
    // As Deployments do: percentages that both come to nothing would never move.
    maxUnavailable: maxSurge === 0 && maxUnavailable === 0 ? 1 : maxUnavailable,
    progressDeadlineMs: (rollout.progressDeadlineSeconds ?? defaultDeadlineSeconds(startupSeconds)) * 1000,
    paused: rollout.paused === true || verb === 'Pause',
    onFailure: rollout.onFailure ?? 'Rollback',
    promotion: rollout.promotion ?? 'Automatic',
    mayGrow: capacity.mode === 'MayGrow',
    whenInsufficient: rollout.strategy === 'Surge' ? 'Wait' : (capacity.whenInsufficient ?? 'Recreate'),
    capacityWaitMs: (capacity.waitSeconds ?? 120) * 1000,
    hold: verb,
  };
}

/** A pod that is still given time to start has not failed. */
function defaultDeadlineSeconds(startupSeconds: number | undefined): number {
  return startupSeconds === undefined ? unknownDeadlineSeconds : startupSeconds + beforeStartSeconds;
}

function amount(value: number | string, replicas: number, round: (value: number) => number): number {
  if (typeof value === 'number') return value;
  return round((Number(value.slice(0, -1)) * replicas) / 100);
}
