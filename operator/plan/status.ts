/**
 * The status of an InferenceService: what is observed, and conditions that say in words where it stands. Pure. Nothing in
 * it moves by itself, so that a settled service is never written.
 */
import { type Condition, type Finding, stampConditions, timestamp } from '../api/conditions.ts';
import type { InferenceServiceStatus, RevisionStatus, RolloutStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import type { UnderstoodSpec } from '../api/parse.ts';
import { selectorText, serviceSelector } from '../resources/labels.ts';
import { serviceUrl } from '../resources/service.ts';
import { type Trouble, worstTrouble } from './pod-trouble.ts';
import type { Policy } from './policy.ts';
import type { Resolution } from './resolution.ts';
import type { RolloutDecision } from './rollout.ts';
import type { Target } from './target.ts';
import { isEnding, isReady, isStaying, lastStatus, recordsOf, stateOf, type World } from './world.ts';

export interface StatusInput {
  readonly understood: UnderstoodSpec;
  /** Objects of others that stand where children should. */
  readonly conflicts: readonly AnyObject[];
  readonly currentRevision: string | undefined;
  readonly updateRevision: string | undefined;
  /** Pods to have; 0 while suspended. */
  readonly replicas?: number;
  /** Absent where the spec is not understood. */
  readonly target?: Target;
  readonly resolution?: Resolution;
  /** Absent where there was none. */
  readonly preflight?: PreflightFinding;
  /** What stands against the target before a pod of it exists. */
  readonly obstacle?: Obstacle;
  /** Absent while nothing is known that could be rolled out. */
  readonly policy?: Policy;
  readonly rollout?: RolloutDecision;
  /** The wanted revision is complete and alone. */
  readonly settled?: boolean;
  /** Children are being written. */
  readonly drifted?: boolean;
}

/** Why the desired state is not reached: `Reconciling` while it may still be, `Stalled` when only a person can help. */
export interface Obstacle {
  readonly type: 'Reconciling' | 'Stalled';
  readonly reason: string;
  readonly message: string;
}

/** What stands against running the revision that is asked for; no problems: nothing known does. */
export interface PreflightFinding {
  readonly reason: 'PreflightFailed' | 'TemplateInvalid';
  readonly problems: readonly string[];
}

export function planStatus(world: World, input: StatusInput): InferenceServiceStatus {
  const { service, now } = world;
  const { currentRevision, updateRevision } = input;
  const generation = service.metadata.generation ?? 0;
  const pods = world.pods.filter(isStaying);
  const ready = pods.filter(isReady).length;
  const zero = zeroOf(input);
  const obstacle = findObstacle(world, input);
  const paused = pausedFinding(input);
  const findings: Finding[] = [
    available(ready, zero),
    obstacle === undefined ? reached(input, zero) : { ...obstacle, type: 'Ready', status: 'False' },
    ...(obstacle === undefined ? [] : [{ ...obstacle, status: 'True' as const }]),
    ...(paused === undefined ? [] : [paused]),
    ...(input.resolution?.finding === undefined ? [] : [input.resolution.finding]),
    ...(input.preflight === undefined ? [] : [preflightFinding(input.preflight)]),
    specUnderstood(input.understood),
  ];
  const rollout = rolloutStatus(world, input);
  return {
    observedGeneration: generation,
    url: serviceUrl(service),
    replicas: pods.length,
    readyReplicas: ready,
    selector: selectorText(serviceSelector(service.metadata.name)),
    ...(currentRevision === undefined ? {} : { currentRevision }),
    ...(updateRevision === undefined ? {} : { updateRevision }),
    revisions: revisionStatuses(world, input),
    ...(input.resolution?.model === undefined ? {} : { model: input.resolution.model }),
    ...(rollout === undefined ? {} : { rollout }),
    conditions: stampConditions(findings, lastConditions(world), generation, now),
  };
}

/** A write that the API server refused for good, said in the status that was planned. */
export function withStall(
  world: World,
  status: InferenceServiceStatus,
  reason: string,
  message: string,
): InferenceServiceStatus {
  const generation = world.service.metadata.generation ?? 0;
  const kept = (status.conditions ?? []).filter((each) =>
    ['Available', 'SpecUnderstood'].includes(each.type),
  );
  const findings: Finding[] = [
    ...(kept as Finding[]),
    { type: 'Ready', status: 'False', reason, message },
    { type: 'Stalled', status: 'True', reason, message },
  ];
  return { ...status, conditions: stampConditions(findings, lastConditions(world), generation, world.now) };
}

function lastConditions(world: World): readonly Condition[] {
  return (lastStatus(world).conditions ?? []) as Condition[];
}

/** Why there are to be no pods; undefined where there are to be some. */
function zeroOf({
  understood: { spec },
  replicas,
}: StatusInput): { reason: string; message: string } | undefined {
  if (spec?.suspend === true) return { reason: 'Suspended', message: 'The service is suspended' };
  return replicas === 0 ? { reason: 'ScaledToZero', message: 'No replicas are asked for' } : undefined;
}

function available(ready: number, zero: ReturnType<typeof zeroOf>): Finding {
  if (ready > 0)
    return { type: 'Available', status: 'True', reason: 'PodsReady', message: 'Requests are answered' };
  return {
    type: 'Available',
    status: 'False',
    ...(zero ?? { reason: 'NoPodReady', message: 'No pod is ready to answer requests' }),
  };
}

function reached({ target }: StatusInput, zero: ReturnType<typeof zeroOf>): Finding {
  const message =
    target?.pinned === undefined
      ? 'All pods of the wanted revision are ready'
      : `All pods of revision ${target.pinned.name}, which rollout.rollbackTo names, are ready`;
  return { type: 'Ready', status: 'True', ...(zero ?? { reason: 'Settled', message }) };
}

function preflightFinding({ reason, problems }: PreflightFinding): Finding {
  return problems.length === 0
    ? {
        type: 'PreflightPassed',
        status: 'True',
        reason: 'Passed',
        message: 'Nothing known of the checkpoint stands against running it so',
      }
    : { type: 'PreflightPassed', status: 'False', reason, message: problems.join('; ') };
}

/** A person's hand on the rollout; present only while there is one. */
function pausedFinding({ policy, rollout, target }: StatusInput): Finding | undefined {
  const paused = (reason: string, message: string): Finding => ({
    type: 'Paused',
    status: 'True',
    reason,
    message,
  });
  if (target?.pinned?.differs)
    return paused(
      'PinnedToRevision',
      `rollout.rollbackTo holds revision ${target.pinned.name}; the spec asks for another one, which is not rolled out before rollbackTo is removed`,
    );
  if (policy?.paused)
    return paused('ManualPause', 'Changes of the pods are not rolled out before a person resumes');
  if (rollout?.state === 'awaitingPromotion') return paused('AwaitingPromotion', promotionMessage);
  return undefined;
}

const promotionMessage = 'rollout.promotion is Manual: old pods end when a person promotes the new revision';

/** The hold stays as long as it has something to say; the planner never says one of its own. */
function rolloutStatus(world: World, { policy, rollout, settled }: StatusInput): RolloutStatus | undefined {
  const before = lastStatus(world).rollout;
  if (rollout === undefined) return before;
  const { hold } = before ?? {};
  const kept = policy?.hold === 'Pause' || (policy?.hold === 'Promote' && !settled);
  return { ...rollout.status, ...(hold !== undefined && kept ? { hold } : {}) };
}

function specUnderstood({ unknownFields, problems }: UnderstoodSpec): Finding {
  if (problems.length > 0)
    return {
      type: 'SpecUnderstood',
      status: 'False',
      reason: 'InvalidFields',
      message: `This operator cannot read the spec: ${problems.join('; ')}`,
    };
  if (unknownFields.length > 0)
    return {
      type: 'SpecUnderstood',
      status: 'False',
      reason: 'UnknownFields',
      message: `This operator is older than the CRD and does nothing about ${unknownFields.join(', ')}`,
    };
  return {
    type: 'SpecUnderstood',
    status: 'True',
    reason: 'Understood',
    message: 'Every field is understood',
  };
}

function findObstacle(world: World, input: StatusInput): Obstacle | undefined {
  const { conflicts, understood, rollout, updateRevision } = input;
  if (understood.problems.length > 0)
    return {
      type: 'Stalled',
      reason: 'SpecNotUnderstood',
      message: `Running pods are left as they are: ${understood.problems.join('; ')}`,
    };
  if (conflicts.length > 0)
    return {
      type: 'Stalled',
      reason: 'NameConflict',
      message: `${conflicts.map(named).join(' and ')} exists and is not controlled by this InferenceService; it is left alone. Remove it, or give this object another name`,
    };
  if (input.obstacle !== undefined) return input.obstacle;
  if (rollout === undefined || updateRevision === undefined)
    return reconciling('Starting', 'Nothing runs yet');
  const held = heldObstacle(rollout, input);
  if (held !== undefined) return held;
  const target = stateOf(world, updateRevision);
  const trouble = rollout.goalComplete ? undefined : worstTrouble(target.pods, target.deployment);
  // A place that is being freed is a matter of time.
  const passing = trouble?.reason === 'Unschedulable' && world.pods.some(isEnding);
  if (trouble !== undefined && !passing) return reconciling(trouble.reason, steadyMessage(world, trouble));
  if (input.settled && !input.drifted) return undefined;
  return progress(world, input);
}

/** What the rollout's own state says, whatever its pods do. */
function heldObstacle(
  { state, status, failure }: RolloutDecision,
  { currentRevision, updateRevision }: StatusInput,
): Obstacle | undefined {
  const why =
    failure === undefined ? '' : `Revision ${failure.revision} failed: ${failure.reason}: ${failure.message}`;
  const stalled = (reason: string, message: string): Obstacle => ({ type: 'Stalled', reason, message });
  switch (state) {
    case 'rolledBack':
      return stalled(
        'RolledBack',
        `${why}. ${currentRevision} serves; the failed one is tried again when the spec changes or a person retries it`,
      );
    case 'rollingBack':
      return reconciling('RollingBack', `${why}. ${currentRevision} takes its place again`);
    case 'failed':
      return stalled(
        failure?.reason ?? 'Failed',
        `${why}. rollout.onFailure is Hold: everything stays as it is`,
      );
    case 'gapAnnounced':
      return reconciling('CapacityGap', `${gapMessage}. ${status.message ?? ''}`);
    case 'gapOpen':
      return reconciling('CapacityGap', `${gapMessage}. ${status.message ?? ''}`);
    case 'waitingForCapacity':
      return reconciling(
        'CapacityWait',
        `Revision ${updateRevision} waits for room: ${status.message ?? ''}`,
      );
    case 'paused':
      return reconciling('ManualPause', `The rollout of revision ${updateRevision} is paused`);
    case 'awaitingPromotion':
      return reconciling('ManualPause', `${promotionMessage}. ${status.message ?? ''}`);
    default:
      return failure === undefined
        ? undefined
        : stalled(failure.reason, `${why}. There is no revision to return to`);
  }
}

const gapMessage =
  'Pods of the old revision end so that the new one can start, and requests may be refused meanwhile';

function progress(world: World, input: StatusInput): Obstacle {
  const { currentRevision, updateRevision } = input;
  const last = lastStatus(world);
  if (last.currentRevision === undefined)
    return reconciling('Starting', `Revision ${updateRevision} starts: its pods load the model`);
  if (currentRevision !== updateRevision)
    return reconciling(
      'RollingOut',
      `Revision ${updateRevision} starts beside ${currentRevision}, which serves`,
    );
  if (!input.settled && input.rollout?.goalComplete)
    return reconciling('RollingOut', `Revision ${updateRevision} is ready; older ones end`);
  return wasSettled(world)
    ? reconciling('Degraded', lossMessage(world))
    : reconciling('Scaling', 'Pods are added or removed until there are as many as asked for');
}

/** The word about an eviction stays until its pod is replaced: the pod itself, which tells of it, is soon gone. */
function lossMessage(world: World): string {
  const evicted = world.pods.some((pod) =>
    (pod.status?.conditions ?? []).some(
      // biome-ignore lint/suspicious/noExplicitAny: a pod condition.
      (each: any) => each.type === 'DisruptionTarget' && each.status === 'True',
    ),
  );
  const said = lastConditions(world).some(
    (each) => each.type === 'Reconciling' && each.reason === 'Degraded' && each.message === evictionMessage,
  );
  return evicted || said ? evictionMessage : 'Something was lost or changed by hand, and is put right';
}

const evictionMessage =
  'A pod was evicted (a node is drained, or a pod of higher priority came), and another one takes its place';

/** For the generation that is now: Ready was true, or has already been found lost. */
function wasSettled(world: World): boolean {
  const generation = world.service.metadata.generation ?? 0;
  return lastConditions(world).some(
    (each) =>
      each.observedGeneration === generation &&
      ((each.type === 'Ready' && each.status === 'True') ||
        (each.type === 'Reconciling' && each.reason === 'Degraded')),
  );
}

function reconciling(reason: string, message: string): Obstacle {
  return { type: 'Reconciling', reason, message };
}

/** The kubelet tells causes by turns in full and in short; the fuller word stays. */
function steadyMessage(world: World, trouble: Trouble): string {
  const before = lastConditions(world).find((each) => each.type === 'Reconciling');
  return before?.reason === trouble.reason && before.message.startsWith(trouble.message)
    ? before.message
    : trouble.message;
}

function named(object: AnyObject): string {
  return `${object.kind} "${object.metadata.name}"`;
}

function revisionStatuses(world: World, input: StatusInput): RevisionStatus[] {
  const records = recordsOf(world);
  const failed = input.rollout?.failure?.revision;
  return records
    .map((record) => ({ record, state: stateOf(world, record.name) }))
    .filter(({ record, state }) => state.deployment !== undefined || record.name === failed)
    .sort((a, b) => (a.record.name < b.record.name ? -1 : 1))
    .map(({ record: { name, data, object }, state: { pods } }) => ({
      name,
      path: data.inputs.model.path,
      ...(data.inputs.commit === undefined ? {} : { commit: data.inputs.commit }),
      phase: phaseOf(name, input),
      replicas: pods.length,
      readyReplicas: pods.filter(isReady).length,
      createdAt: object.metadata.creationTimestamp ?? timestamp(world.now),
    }));
}

function phaseOf(name: string, input: StatusInput): NonNullable<RevisionStatus['phase']> {
  if (name === input.rollout?.failure?.revision) return 'Failed';
  if (name === input.currentRevision) return 'Stable';
  return name === input.updateRevision ? 'Progressing' : 'Superseded';
}
