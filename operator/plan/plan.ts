/**
 * (spec, observed world) -> actions and status. Pure: what a reconcile does, what `plan` would print, and what the tests'
 * tables say are one function. Every action's object is whole and has a name that follows from the spec alone, so a plan
 * that was cut off anywhere is continued by the next one.
 */
import assert from 'node:assert/strict';
import type { InferenceServiceSpec, InferenceServiceStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { understandSpec } from '../api/parse.ts';
import { revisionInputs, revisionName } from '../api/revision.ts';
import {
  controllerRevision,
  isControlledBy,
  type RevisionData,
  renderRevision,
} from '../resources/controller-revision.ts';
import { revisionDeployment } from '../resources/deployment.ts';
import { appliedAnnotation } from '../resources/labels.ts';
import { clusterService } from '../resources/service.ts';
import type { PodSpec } from './capacity.ts';
import { driftOf, replacement, stamped } from './drift.ts';
import { decideRollout } from './rollout.ts';
import { planStatus } from './status.ts';
import {
  childOf,
  isReady,
  lastStatus,
  ownChildren,
  type RevisionRecord,
  type RevisionState,
  recordsOf,
  stateOf,
  type World,
} from './world.ts';

export type Action =
  /** Server-side apply; `live` is the object that is there, ours by its owner. */
  | { readonly verb: 'apply'; readonly object: AnyObject; readonly live?: AnyObject }
  /** PUT `whole`, then apply `object`. */
  | { readonly verb: 'replace'; readonly object: AnyObject; readonly whole: AnyObject }
  | { readonly verb: 'remove'; readonly object: AnyObject };

export interface Plan {
  readonly actions: readonly Action[];
  readonly status: InferenceServiceStatus;
  readonly requeueAfterMs?: number;
}

export interface PlanOptions {
  /** For revisions whose author names no image, made from now on. */
  readonly runtimeImage: string;
  readonly capacityWaitMs: number;
}

/** Records of past revisions that are kept beside those in use. */
const revisionHistoryLimit = 5;

/** How often to look whether a foreign object has gone: it need not carry our labels, so no watch tells. */
const conflictRequeueMs = 10_000;

/** Names that the plan may want to create; the world must hold what is there under them, whoever owns it. */
export function wantedChildren(service: AnyObject): { kind: string; name: string }[] {
  const { spec } = understandSpec(service.spec);
  const names = [{ kind: 'Service', name: service.metadata.name }];
  if (spec === undefined) return names;
  const name = revisionName(service.metadata.name, revisionInputs(spec));
  return [...names, { kind: 'ControllerRevision', name }, { kind: 'Deployment', name }];
}

export function makePlan(world: World, options: PlanOptions): Plan {
  const understood = understandSpec(world.service.spec);
  if (understood.spec === undefined) {
    const { currentRevision, updateRevision } = lastStatus(world);
    const status = planStatus(world, { understood, conflicts: [], currentRevision, updateRevision });
    return { actions: [], status };
  }
  return planSpec(world, understood.spec, understood.unknownFields, options);
}

function planSpec(
  world: World,
  spec: InferenceServiceSpec,
  unknownFields: readonly string[],
  options: PlanOptions,
): Plan {
  const { service } = world;
  const inputs = revisionInputs(spec);
  const targetName = revisionName(service.metadata.name, inputs);
  const target = stateOf(world, targetName);
  const targetRecord =
    target.record?.data ??
    restoredRecord(service, target, renderRevision(service, targetName, inputs, options));
  const stable = stableRevision(world, targetName);
  const others = ownChildren(world, 'Deployment')
    .map((each) => each.metadata.name)
    .filter((name) => name !== targetName && name !== stable?.name)
    .map((name) => stateOf(world, name));
  const last = lastStatus(world);
  const rollout = decideRollout({
    target,
    targetSpec: podSpecOf(targetRecord),
    ...(stable === undefined ? {} : { stable }),
    others,
    replicas: spec.replicas,
    gapAnnounced:
      last.updateRevision === targetName &&
      last.conditions?.find((each) => each.type === 'Reconciling')?.reason === 'CapacityGap',
    now: world.now,
    capacityWaitMs: options.capacityWaitMs,
  });

  const records = recordsOf(world);
  const manifests: AnyObject[] = [
    clusterService(service),
    controllerRevision(service, targetName, targetRecord, nextOrder(records, targetName)),
  ];
  if (stable?.record !== undefined && stable.name !== targetName)
    manifests.push(controllerRevision(service, stable.name, stable.record.data, stable.record.order));
  for (const [name, replicas] of rollout.replicas) {
    const data =
      name === targetName ? targetRecord : (stable?.record?.data ?? frozenAsItIs(stable?.deployment));
    if (data !== undefined) manifests.push(revisionDeployment(service, name, data, replicas));
  }

  const conflicts: AnyObject[] = [];
  const actions: Action[] = [];
  for (const manifest of manifests) {
    const live = childOf(world, manifest.kind, manifest.metadata.name);
    if (live !== undefined && !isControlledBy(live, service)) conflicts.push(live);
    else actions.push(...settle(live, stamped(manifest)));
  }
  for (const name of rollout.remove)
    actions.push({ verb: 'remove', object: stateOf(world, name).deployment! });
  const inUse = new Set([...rollout.replicas.keys(), ...rollout.remove]);
  for (const record of surplusRecords(records, inUse))
    actions.push({ verb: 'remove', object: record.object });

  const status = planStatus(world, {
    understood: { spec, unknownFields, problems: [] },
    conflicts,
    currentRevision: rollout.targetComplete ? targetName : stable?.name,
    updateRevision: targetName,
    rollout,
    settled: rollout.targetComplete && others.length === 0 && (stable?.name ?? targetName) === targetName,
    drifted: actions.length > 0,
  });
  const requeueAfterMs = Math.min(
    rollout.requeueAfterMs ?? Number.POSITIVE_INFINITY,
    conflicts.length > 0 ? conflictRequeueMs : Number.POSITIVE_INFINITY,
  );
  return { actions, status, ...(Number.isFinite(requeueAfterMs) ? { requeueAfterMs } : {}) };
}

/**
 * The record of a revision whose own was removed by hand: what would be rendered now where that is what runs, and else
 * what runs. A lost record is no reason to restart pods.
 */
function restoredRecord(
  service: AnyObject,
  { name, deployment }: RevisionState,
  rendered: RevisionData,
): RevisionData {
  if (deployment === undefined) return rendered;
  const manifest = stamped(revisionDeployment(service, name, rendered, deployment.spec.replicas));
  const same =
    deployment.metadata.annotations?.[appliedAnnotation] ===
    manifest.metadata.annotations?.[appliedAnnotation];
  return same ? rendered : { ...rendered, ...frozenAsItIs(deployment) };
}

function frozenAsItIs(deployment: AnyObject | undefined): Pick<RevisionData, 'deployment'> | undefined {
  if (deployment === undefined) return undefined;
  const { replicas: _, ...spec } = deployment.spec;
  return { deployment: spec };
}

function podSpecOf({ deployment }: RevisionData): PodSpec {
  return (deployment as { template?: { spec?: PodSpec } }).template?.spec ?? {};
}

function settle(live: AnyObject | undefined, wanted: AnyObject): Action[] {
  if (live === undefined) return [{ verb: 'apply', object: wanted }];
  if (live.metadata.deletionTimestamp !== undefined) return [];
  const drift = driftOf(live, wanted);
  if (drift === 'intact') return [];
  if (drift === 'changed') return [{ verb: 'apply', object: wanted, live }];
  return [{ verb: 'replace', object: wanted, whole: replacement(live, wanted) }];
}

/** The revision that was last ready as a whole; without such a memory, the one with the most ready pods. */
function stableRevision(world: World, targetName: string): RevisionState | undefined {
  const { currentRevision } = lastStatus(world);
  if (currentRevision !== undefined) {
    const state = stateOf(world, currentRevision);
    if (state.record !== undefined || state.deployment !== undefined) return state;
  }
  const serving = ownChildren(world, 'Deployment')
    .map((each) => stateOf(world, each.metadata.name))
    .filter((each) => each.name !== targetName && each.pods.some(isReady));
  return serving.sort((a, b) => b.pods.filter(isReady).length - a.pods.filter(isReady).length)[0];
}

/** The target's record is the newest, also when an old one is wanted again. */
function nextOrder(records: readonly RevisionRecord[], targetName: string): number {
  const own = records.find((each) => each.name === targetName)?.order;
  const highest = Math.max(
    0,
    ...records.filter((each) => each.name !== targetName).map((each) => each.order),
  );
  return own !== undefined && own > highest ? own : highest + 1;
}

function surplusRecords(records: readonly RevisionRecord[], inUse: ReadonlySet<string>): RevisionRecord[] {
  const past = records.filter((each) => !inUse.has(each.name));
  assert(past.every((each) => Number.isFinite(each.order)));
  return past.slice(0, Math.max(0, past.length - revisionHistoryLimit));
}
