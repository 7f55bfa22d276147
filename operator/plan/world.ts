/**
 * What a plan is made from: the InferenceService, everything that is or stands in the place of a child, its pods, the
 * time. Enters: objects as the API server has them. Leaves: the same, sorted out. Pure.
 */
import type { InferenceServiceStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { isControlledBy, type RevisionData, readRecord } from '../resources/controller-revision.ts';
import { revisionLabel } from '../resources/labels.ts';

export interface World {
  readonly service: AnyObject;
  /**
   * ControllerRevisions, Deployments and Services that the service controls, and whatever else has the name of a child
   * that is wanted.
   */
  readonly children: readonly AnyObject[];
  /** Pods that carry the service's labels. */
  readonly pods: readonly AnyObject[];
  /** Pods of the Jobs that look models up. */
  readonly lookups?: readonly AnyObject[];
  /** Absent where the operator may not see it: then what is free is not known. */
  readonly cluster?: ClusterView;
  /** What the API server answered when it was asked, by dry run, for the Deployment of a revision that has none. */
  readonly refusal?: TemplateRefusal;
  readonly now: Date;
}

export interface TemplateRefusal {
  readonly revision: string;
  /** Names the field, its value and what is wrong with it. */
  readonly message: string;
}

/** What capacity is estimated from; asked for only while something is rolled out. */
export interface ClusterView {
  nodes(): readonly AnyObject[];
  /** Of all namespaces. */
  pods(): readonly AnyObject[];
  /** ResourceQuotas. */
  quotas(namespace: string): readonly AnyObject[];
}

export interface RevisionRecord {
  readonly name: string;
  readonly order: number;
  readonly data: RevisionData;
  readonly object: AnyObject;
}

export interface RevisionState {
  readonly name: string;
  /** Absent where somebody removed it. */
  readonly record?: RevisionRecord;
  readonly deployment?: AnyObject;
  /** Not those that are ending. */
  readonly pods: readonly AnyObject[];
  readonly terminatingPods: number;
}

export function lastStatus(world: World): InferenceServiceStatus {
  return (world.service.status ?? {}) as InferenceServiceStatus;
}

export function childOf(world: World, kind: string, name: string): AnyObject | undefined {
  return world.children.find((each) => each.kind === kind && each.metadata.name === name);
}

/** Children of one kind that are ours and stay, by name. */
export function ownChildren(world: World, kind: string): AnyObject[] {
  return world.children
    .filter((each) => each.kind === kind && isControlledBy(each, world.service))
    .sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
}

export function recordsOf(world: World): RevisionRecord[] {
  return ownChildren(world, 'ControllerRevision')
    .flatMap((object) => {
      const data = readRecord(object);
      return data === undefined
        ? []
        : [{ name: object.metadata.name, order: Number(object.revision), data, object }];
    })
    .sort((a, b) => a.order - b.order || (a.name < b.name ? -1 : 1));
}

export function stateOf(world: World, name: string): RevisionState {
  const pods = world.pods.filter((pod) => pod.metadata.labels?.[revisionLabel] === name);
  const record = recordsOf(world).find((each) => each.name === name);
  const deployment = ownChildren(world, 'Deployment').find((each) => each.metadata.name === name);
  const staying = pods.filter(isStaying);
  return {
    name,
    ...(record === undefined ? {} : { record }),
    ...(deployment === undefined ? {} : { deployment }),
    pods: staying,
    terminatingPods: pods.filter((pod) => !hasEnded(pod)).length - staying.length,
  };
}

/** A pod that neither ends nor has ended (evicted pods stay as records of themselves). */
export function isStaying(pod: AnyObject): boolean {
  return pod.metadata.deletionTimestamp === undefined && !hasEnded(pod);
}

/** A pod on its way out: what it holds is not free yet. */
export function isEnding(pod: AnyObject): boolean {
  return pod.metadata.deletionTimestamp !== undefined && !hasEnded(pod);
}

function hasEnded(pod: AnyObject): boolean {
  return pod.status?.phase === 'Failed' || pod.status?.phase === 'Succeeded';
}

export function isReady(pod: AnyObject): boolean {
  return (pod.status?.conditions ?? []).some(
    // biome-ignore lint/suspicious/noExplicitAny: a pod condition.
    (each: any) => each.type === 'Ready' && each.status === 'True',
  );
}

/** All that the Deployment was asked for is there and serves, and it knows of it. */
export function isComplete(state: RevisionState, replicas: number): boolean {
  const { deployment } = state;
  if (deployment === undefined) return false;
  const { status = {}, spec, metadata } = deployment;
  return (
    (status.observedGeneration ?? 0) >= (metadata.generation ?? 0) &&
    spec.replicas === replicas &&
    (status.replicas ?? 0) === replicas &&
    (status.updatedReplicas ?? 0) === replicas &&
    (status.availableReplicas ?? 0) === replicas
  );
}
