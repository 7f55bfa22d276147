/**
 * The status of an InferenceService: what is observed, and conditions that say in words where it stands. Pure. Nothing in
 * it moves by itself, so that a settled service is never written.
 */
import { type Condition, type Finding, stampConditions, timestamp } from '../api/conditions.ts';
import type { InferenceServiceStatus, RevisionStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import type { UnderstoodSpec } from '../api/parse.ts';
import { selectorText, serviceSelector } from '../resources/labels.ts';
import { serviceUrl } from '../resources/service.ts';
import { type Trouble, worstTrouble } from './pod-trouble.ts';
import type { RolloutDecision } from './rollout.ts';
import { isReady, isStaying, lastStatus, ownChildren, recordsOf, stateOf, type World } from './world.ts';

export interface StatusInput {
  readonly understood: UnderstoodSpec;
  /** Objects of others that stand where children should. */
  readonly conflicts: readonly AnyObject[];
  readonly currentRevision: string | undefined;
  readonly updateRevision: string | undefined;
  /** Absent where the spec is not understood. */
  readonly rollout?: RolloutDecision;
  /** The wanted revision is complete and alone. */
  readonly settled?: boolean;
  /** Children are being written. */
  readonly drifted?: boolean;
}

/** Why the desired state is not reached: `Reconciling` while it may still be, `Stalled` when only a person can help. */
interface Obstacle {
  readonly type: 'Reconciling' | 'Stalled';
  readonly reason: string;
  readonly message: string;
}

export function planStatus(world: World, input: StatusInput): InferenceServiceStatus {
  const { service, now } = world;
  const { currentRevision, updateRevision } = input;
  const generation = service.metadata.generation ?? 0;
  const pods = world.pods.filter(isStaying);
  const ready = pods.filter(isReady).length;
  const scaledToZero = input.understood.spec?.replicas === 0;
  const obstacle = findObstacle(world, input);
  const findings: Finding[] = [
    available(ready, scaledToZero),
    obstacle === undefined ? reached(scaledToZero) : { ...obstacle, type: 'Ready', status: 'False' },
    ...(obstacle === undefined ? [] : [{ ...obstacle, status: 'True' as const }]),
    specUnderstood(input.understood),
  ];
  return {
    observedGeneration: generation,
    url: serviceUrl(service),
    replicas: pods.length,
    readyReplicas: ready,
    selector: selectorText(serviceSelector(service.metadata.name)),
    ...(currentRevision === undefined ? {} : { currentRevision }),
    ...(updateRevision === undefined ? {} : { updateRevision }),
    revisions: revisionStatuses(world),
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

function available(ready: number, scaledToZero: boolean): Finding {
  if (ready > 0)
    return { type: 'Available', status: 'True', reason: 'PodsReady', message: 'Requests are answered' };
  return scaledToZero
    ? { type: 'Available', status: 'False', reason: 'ScaledToZero', message: 'No replicas are asked for' }
    : {
        type: 'Available',
        status: 'False',
        reason: 'NoPodReady',
        message: 'No pod is ready to answer requests',
      };
}

function reached(scaledToZero: boolean): Finding {
  return {
    type: 'Ready',
    status: 'True',
    reason: scaledToZero ? 'ScaledToZero' : 'Settled',
    message: scaledToZero ? 'No replicas are asked for' : 'All pods of the wanted revision are ready',
  };
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
  const { conflicts, understood, rollout } = input;
  if (rollout === undefined)
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
  if (rollout.gap !== 'none') return reconciling('CapacityGap', gapMessage);
  const target = stateOf(world, input.updateRevision!);
  const trouble = rollout.targetComplete ? undefined : worstTrouble(target.pods, target.deployment);
  if (trouble !== undefined) return reconciling(trouble.reason, steadyMessage(world, trouble));
  if (input.settled && !input.drifted) return undefined;
  return progress(world, input);
}

const gapMessage =
  'The new revision finds no room: pods of the old one end so that it can start, and requests may be refused meanwhile';

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
  if (!input.settled && input.rollout?.targetComplete)
    return reconciling('RollingOut', `Revision ${updateRevision} is ready; older ones end`);
  return wasSettled(world)
    ? reconciling('Degraded', 'Something was lost or changed by hand, and is put right')
    : reconciling('Scaling', 'Pods are added or removed until there are as many as asked for');
}

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

function revisionStatuses(world: World): RevisionStatus[] {
  const records = recordsOf(world);
  return ownChildren(world, 'Deployment').flatMap((deployment) => {
    const { name } = deployment.metadata;
    const record = records.find((each) => each.name === name);
    if (record === undefined) return [];
    const { pods } = stateOf(world, name);
    return [
      {
        name,
        path: record.data.inputs.model.path,
        replicas: pods.length,
        readyReplicas: pods.filter(isReady).length,
        createdAt: record.object.metadata.creationTimestamp ?? timestamp(world.now),
      },
    ];
  });
}
