/**
 * (spec, observed world) -> actions and status. Pure: what a reconcile does, what `plan` would print, and what the tests'
 * tables say are one function. Every action's object is whole and has a name that follows from the spec alone, so a plan
 * that was cut off anywhere is continued by the next one.
 */
import assert from 'node:assert/strict';
import type { InferenceServiceSpec, InferenceServiceStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { understandSpec } from '../api/parse.ts';
import {
  controllerRevision,
  isControlledBy,
  queueLabels,
  type RevisionData,
  renderRevision,
} from '../resources/controller-revision.ts';
import { revisionDeployment } from '../resources/deployment.ts';
import { appliedAnnotation } from '../resources/labels.ts';
import { podDisruptionBudget } from '../resources/pod-disruption-budget.ts';
import { startupSecondsOf } from '../resources/pod-template.ts';
import { clusterService } from '../resources/service.ts';
import { type Capacity, estimateCapacity, type PodSpec } from './capacity.ts';
import { checkpointLimits } from './checkpoint-limits.ts';
import { driftOf, replacement, stamped } from './drift.ts';
import { defaultHistoryLimit, policyOf } from './policy.ts';
import { preflightProblems } from './preflight.ts';
import { dueJob, planResolution } from './resolution.ts';
import { decideRollout, type RolloutState } from './rollout.ts';
import { type Obstacle, type PreflightFinding, planStatus } from './status.ts';
import { findTarget, type Target } from './target.ts';
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
  /**
   * The first Deployment of a revision that is about to get pods, or the room for them: to be tried by dry run before
   * anything is carried out. A refusal goes into the world, and the plan is made again.
   */
  readonly trial?: AnyObject;
}

export interface PlanOptions {
  /** For revisions whose author names no image, made from now on. */
  readonly runtimeImage: string;
}

/** How often to look whether a foreign object has gone: it need not carry our labels, so no watch tells. */
const conflictRequeueMs = 10_000;

/** How often to look whether what may not run may by now: a node with larger GPUs, another admission policy. */
const barredRequeueMs = 300_000;

/** Names that the plan may want to create; the world must hold what is there under them, whoever owns it. */
export function wantedChildren(world: World): { kind: string; name: string }[] {
  const { service } = world;
  const { spec } = understandSpec(service.spec);
  const names = [{ kind: 'Service', name: service.metadata.name }];
  if (spec === undefined) return names;
  if (podsOf(spec) > 1) names.push({ kind: 'PodDisruptionBudget', name: service.metadata.name });
  const target = findTarget(world, spec);
  const job = dueJob(world, spec, target);
  if (job !== undefined) names.push({ kind: 'Job', name: job });
  const { revision } = target;
  if (revision === undefined) return names;
  const { name } = revision;
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
  const target = findTarget(world, spec);
  const stable = stableRevision(world, target.revision?.name);
  const resolution = planResolution(world, spec, target, options);
  const obstacle = obstacleOf(world, spec, target, resolution.obstacle);
  // As long as it is not known what is wanted, what serves is wanted.
  const revision =
    target.revision ??
    (stable?.record === undefined ? undefined : { name: stable.name, inputs: stable.record.data.inputs });
  const replicas = podsOf(spec);
  const records = recordsOf(world);
  const manifests: AnyObject[] = [clusterService(service)];
  const removals: AnyObject[] = [];
  if (replicas > 1) manifests.push(podDisruptionBudget(service));
  else removals.push(...ownChildren(world, 'PodDisruptionBudget'));
  if (resolution.job !== undefined) manifests.push(resolution.job);
  removals.push(...resolution.removals);
  const last = lastStatus(world);
  const about = {
    understood: { spec, unknownFields, problems: [] },
    replicas,
    target,
    resolution,
    ...obstacle,
  };

  if (revision === undefined) {
    const { actions, conflicts } = settleAll(world, manifests, removals);
    const status = planStatus(world, {
      ...about,
      conflicts,
      currentRevision: stable?.name,
      updateRevision: undefined,
    });
    return {
      actions,
      status,
      ...requeue(resolution.requeueAfterMs, conflicts.length > 0 ? conflictRequeueMs : undefined),
    };
  }

  const { name: targetName, inputs } = revision;
  const state = stateOf(world, targetName);
  const rendering = { ...options, ...checkpointLimits(inputs, target.resolved) };
  const record =
    state.record?.data ??
    restoredRecord(service, state, renderRevision(service, targetName, inputs, rendering));
  const others = ownChildren(world, 'Deployment')
    .map((each) => each.metadata.name)
    .filter((name) => name !== targetName && name !== stable?.name)
    .map((name) => stateOf(world, name));
  const generation = service.metadata.generation ?? 0;
  const policy = policyOf(
    spec,
    replicas,
    last.rollout?.hold,
    generation,
    startupSecondsOf(podSpecOf(record)),
  );
  const rollout = decideRollout({
    target: state,
    targetSpec: podSpecOf(record),
    ...(stable === undefined ? {} : { stable }),
    others,
    replicas,
    policy,
    last: last.rollout ?? {},
    lastReady: last.revisions?.find((each) => each.name === targetName)?.readyReplicas ?? 0,
    gapAnnounced: last.conditions?.find((each) => each.type === 'Reconciling')?.reason === 'CapacityGap',
    barred: obstacle.bars,
    capacity: capacityFor(world, inputs.gpuResource),
    now: world.now,
  });

  // What may not run leaves no record: it would be a revision to return to.
  if (state.record !== undefined || !obstacle.bars)
    manifests.push(controllerRevision(service, targetName, record, nextOrder(records, targetName)));
  if (stable?.record !== undefined && stable.name !== targetName)
    manifests.push(controllerRevision(service, stable.name, stable.record.data, stable.record.order));
  for (const [name, count] of rollout.replicas) {
    const data =
      name === targetName
        ? record
        : (stateOf(world, name).record?.data ?? frozenAsItIs(stateOf(world, name).deployment));
    if (data !== undefined) manifests.push(revisionDeployment(service, name, data, count));
  }
  for (const name of rollout.remove) removals.push(stateOf(world, name).deployment!);
  const inUse = new Set([targetName, ...rollout.replicas.keys(), ...rollout.remove]);
  if (stable !== undefined) inUse.add(stable.name);
  const historyLimit = spec.revisionHistoryLimit ?? defaultHistoryLimit;
  for (const surplus of surplusRecords(records, inUse, historyLimit)) removals.push(surplus.object);

  const { actions, conflicts } = settleAll(world, manifests, removals);
  const currentRevision = rollout.goalComplete ? rollout.goal : stable?.name;
  const status = planStatus(world, {
    ...about,
    conflicts,
    currentRevision,
    updateRevision: targetName,
    policy,
    rollout,
    settled:
      rollout.goalComplete &&
      rollout.goal === targetName &&
      others.length === 0 &&
      (stable?.name ?? targetName) === targetName,
    // A lookup that comes and goes is no change of the service.
    drifted: actions.some(({ object }) => object.kind !== 'Job'),
  });
  const untried =
    childOf(world, 'Deployment', targetName) === undefined &&
    !obstacle.bars &&
    begins.includes(rollout.state) &&
    replicas > 0;
  return {
    actions,
    status,
    ...(untried ? { trial: revisionDeployment(service, targetName, record, replicas) } : {}),
    ...requeue(
      rollout.requeueAfterMs,
      resolution.requeueAfterMs,
      conflicts.length > 0 ? conflictRequeueMs : undefined,
      obstacle.bars ? barredRequeueMs : undefined,
    ),
  };
}

/** States in which something is done for a revision that has no pods yet. */
const begins: readonly RolloutState[] = ['inPlace', 'moving', 'gapAnnounced', 'gapOpen'];

/** What stands against the revision that is asked for, before a pod of it exists; `bars`: it may not get one. */
function obstacleOf(
  world: World,
  spec: InferenceServiceSpec,
  target: Target,
  unresolved: Obstacle | undefined,
): { obstacle?: Obstacle; preflight?: PreflightFinding; bars: boolean } {
  if (target.missing !== undefined)
    return {
      obstacle: {
        type: 'Stalled',
        reason: 'RevisionNotFound',
        message: `rollout.rollbackTo "${target.missing}": there is no such revision; what serves is left as it is. kubectl get controllerrevisions lists them`,
      },
      bars: false,
    };
  if (unresolved !== undefined) return { obstacle: unresolved, bars: false };
  const { resolved, revision, pinned } = target;
  const { refusal } = world;
  if (refusal !== undefined && refusal.revision === revision?.name)
    return {
      obstacle: { type: 'Stalled', reason: 'TemplateInvalid', message: refusal.message },
      preflight: { reason: 'TemplateInvalid', problems: [refusal.message] },
      bars: true,
    };
  if (resolved === undefined || pinned !== undefined || resolved.commit !== revision?.inputs.commit)
    return { bars: false };
  const reason = 'PreflightFailed';
  const problems = preflightProblems(spec, resolved, world.cluster?.nodes() ?? []);
  // What runs has shown that it can.
  const begun = childOf(world, 'Deployment', revision.name) !== undefined;
  if (problems.length === 0 || begun) return { preflight: { reason, problems: [] }, bars: false };
  const message = `${spec.model.path} cannot be run as asked: ${problems.join('; ')}`;
  return { obstacle: { type: 'Stalled', reason, message }, preflight: { reason, problems }, bars: true };
}

/** How many are asked for. */
function podsOf({ suspend, replicas }: InferenceServiceSpec): number {
  return suspend === true ? 0 : replicas;
}

function capacityFor(
  { cluster, service }: World,
  resource = 'nvidia.com/gpu',
): (podSpec: PodSpec, without: ReadonlySet<string>) => Capacity {
  const namespace = service.metadata.namespace ?? '';
  return (podSpec, names) =>
    estimateCapacity({
      nodes: cluster?.nodes(),
      pods: cluster?.pods() ?? [],
      quotas: cluster?.quotas(namespace) ?? [],
      podSpec,
      resource,
      without: { namespace, names },
    });
}

function settleAll(
  world: World,
  manifests: readonly AnyObject[],
  removals: readonly AnyObject[],
): { actions: Action[]; conflicts: AnyObject[] } {
  const conflicts: AnyObject[] = [];
  const actions: Action[] = [];
  for (const manifest of manifests) {
    const live = childOf(world, manifest.kind, manifest.metadata.name);
    if (live !== undefined && !isControlledBy(live, world.service)) conflicts.push(live);
    // A Job's template cannot be changed, and its answer is all that is wanted of it.
    else if (live !== undefined && manifest.kind === 'Job') continue;
    else actions.push(...settle(live, stamped(manifest)));
  }
  for (const object of removals)
    if (object.metadata.deletionTimestamp === undefined) actions.push({ verb: 'remove', object });
  return { actions, conflicts };
}

function requeue(...times: readonly (number | undefined)[]): { requeueAfterMs?: number } {
  const known = times.filter((each) => each !== undefined);
  return known.length === 0 ? {} : { requeueAfterMs: Math.min(...known) };
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
  if (same) return rendered;
  const { deploymentLabels: _, ...others } = rendered;
  return { ...others, ...frozenAsItIs(deployment)! };
}

function frozenAsItIs(
  deployment: AnyObject | undefined,
): Pick<RevisionData, 'deployment' | 'deploymentLabels'> | undefined {
  if (deployment === undefined) return undefined;
  const { replicas: _, ...spec } = deployment.spec;
  const deploymentLabels = queueLabels(deployment.metadata.labels);
  return { deployment: spec, ...(deploymentLabels === undefined ? {} : { deploymentLabels }) };
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
function stableRevision(world: World, targetName: string | undefined): RevisionState | undefined {
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

function surplusRecords(
  records: readonly RevisionRecord[],
  inUse: ReadonlySet<string>,
  limit: number,
): RevisionRecord[] {
  const past = records.filter((each) => !inUse.has(each.name));
  assert(past.every((each) => Number.isFinite(each.order)));
  return past.slice(0, Math.max(0, past.length - limit));
}
