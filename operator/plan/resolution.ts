/**
 * Looking a model up before it runs: when a Job is due, what its answer says, when it goes. Enters: the world and what is
 * asked for. Leaves: the Job to have, those to remove, what was found, what is to be said. Pure. An answer is recorded in
 * the status before its Job is removed, so a crash between the two loses nothing.
 */
import { type Finding, timestamp } from '../api/conditions.ts';
import {
  type InferenceServiceSpec,
  type ResolvedModel,
  resolvedModelSchema,
} from '../api/inference-service.ts';
import { type AnyObject, controllerOf } from '../api/objects.ts';
import { revisionInputs } from '../api/revision.ts';
import { appliedAnnotation } from '../resources/labels.ts';
import { resolveJob, resolveJobName } from '../resources/resolve-job.ts';
import { stamped } from './drift.ts';
import { errorLine, worstTrouble } from './pod-trouble.ts';
import { defaultTrackIntervalSeconds } from './policy.ts';
import type { Obstacle } from './status.ts';
import type { Target } from './target.ts';
import { lastStatus, ownChildren, type World } from './world.ts';

export interface Resolution {
  readonly job?: AnyObject;
  readonly removals: readonly AnyObject[];
  /** For `status.model`. */
  readonly model?: ResolvedModel;
  readonly finding?: Finding;
  /** Nothing can be made before the answer is there. */
  readonly obstacle?: Obstacle;
  readonly requeueAfterMs?: number;
}

/** A lookup that failed for good is tried again after this time: a token may have been put right. */
const retryMs = 300_000;

/** The name of the Job that is to be there; undefined while none is due. */
export function dueJob(world: World, spec: InferenceServiceSpec, target: Target): string | undefined {
  if (target.source === undefined || target.pinned !== undefined) return undefined;
  const due =
    target.revision === undefined ? target.resolved === undefined : dueInMs(world, spec, target) <= 0;
  return due ? resolveJobName(world.service.metadata.name, target.source) : undefined;
}

export function planResolution(
  world: World,
  spec: InferenceServiceSpec,
  target: Target,
  options: { readonly runtimeImage: string },
): Resolution {
  const jobs = ownChildren(world, 'Job');
  const { source, resolved } = target;
  if (source === undefined) return { removals: jobs };
  const wanted = resolveJobName(world.service.metadata.name, source);
  const job = jobs.find((each) => each.metadata.name === wanted);
  const stale = jobs.filter((each) => each !== job);
  const known = { ...(resolved === undefined ? {} : { model: resolved }) };
  const due = dueJob(world, spec, target);
  if (job === undefined) {
    const trackMs = target.pinned === undefined ? dueInMs(world, spec, target) : Number.POSITIVE_INFINITY;
    return {
      ...known,
      removals: stale,
      ...(due === undefined ? {} : { job: resolveJob(world.service, source, revisionInputs(spec), options) }),
      ...said(spec, target),
      ...(Number.isFinite(trackMs) && trackMs > 0 ? { requeueAfterMs: trackMs } : {}),
    };
  }
  if (job.metadata.uid === lastStatus(world).model?.job)
    return { ...known, removals: [...stale, job], ...said(spec, target) };
  if (isTrue(job, 'Complete')) {
    const model = answerOf(world, job, source);
    // Without its pod the answer is lost: it is asked for again.
    if (model === undefined) return { ...known, removals: [...stale, job], ...said(spec, target) };
    return { model, removals: stale, ...said(spec, target) };
  }
  // Asked for otherwise since, with another token perhaps.
  if (!sameLookup(job, resolveJob(world.service, source, revisionInputs(spec), options)))
    return { ...known, removals: [...stale, job], ...said(spec, target) };
  const failure = isTrue(job, 'Failed');
  if (failure === undefined)
    return { ...known, removals: stale, ...said(spec, target, waitingFor(world, job)) };
  const leftMs = retryAfterMs(spec) - (world.now.getTime() - Date.parse(failure.lastTransitionTime ?? ''));
  const over = !(leftMs > 0);
  const why = aboutToken(refusalOf(world, job), spec) || failure.message;
  const message = `${nameOf(spec)} cannot be looked up: ${why}`;
  return {
    ...known,
    removals: over ? [...stale, job] : stale,
    ...said(spec, target, { type: 'Stalled', reason: 'ResolveFailed', message }),
    ...(over ? {} : { requeueAfterMs: leftMs }),
  };
}

/** Until Track looks again. */
function dueInMs(world: World, { model }: InferenceServiceSpec, { resolved }: Target): number {
  if (model.updatePolicy !== 'Track') return Number.POSITIVE_INFINITY;
  if (resolved === undefined) return 0;
  const intervalMs = (model.trackIntervalSeconds ?? defaultTrackIntervalSeconds) * 1000;
  return Date.parse(resolved.resolvedAt) + intervalMs - world.now.getTime();
}

function retryAfterMs({ model }: InferenceServiceSpec): number {
  const { updatePolicy, trackIntervalSeconds } = model;
  return updatePolicy === 'Track' && trackIntervalSeconds !== undefined
    ? Math.min(retryMs, trackIntervalSeconds * 1000)
    : retryMs;
}

/** A lookup stands in the way only of what has no answer yet. */
function said(
  spec: InferenceServiceSpec,
  { revision, pinned }: Target,
  obstacle?: Obstacle,
): Pick<Resolution, 'finding' | 'obstacle'> {
  const commit = revision?.inputs.commit;
  if (pinned !== undefined) return {};
  if (commit !== undefined && obstacle?.type !== 'Stalled')
    return {
      finding: {
        type: 'Resolved',
        status: 'True',
        reason: 'Resolved',
        message: `${nameOf(spec)} is ${commit}`,
      },
    };
  const { reason, message } = obstacle ?? looking(spec);
  const finding: Finding = { type: 'Resolved', status: 'False', reason, message };
  return commit === undefined ? { finding, obstacle: obstacle ?? looking(spec) } : { finding };
}

function looking(spec: InferenceServiceSpec): Obstacle {
  return { type: 'Reconciling', reason: 'Resolving', message: `${nameOf(spec)} is being looked up` };
}

function waitingFor(world: World, job: AnyObject): Obstacle | undefined {
  const trouble = worstTrouble(podsOf(world, job).filter((pod) => pod.status?.phase === 'Pending'));
  if (trouble === undefined) return undefined;
  // A Secret that is not there is a matter for a person, and the kubelet goes on as soon as it is.
  const type = trouble.reason === 'ContainerConfigInvalid' ? 'Stalled' : 'Reconciling';
  return { type, reason: trouble.reason, message: `Looking the model up: ${trouble.message}` };
}

function sameLookup(job: AnyObject, wanted: AnyObject): boolean {
  const hash = ({ metadata }: AnyObject) => metadata.annotations?.[appliedAnnotation];
  return hash(job) === hash(stamped(wanted));
}

/** The runtime knows its environment; its author knows the field. */
function aboutToken(line: string, { model: { tokenSecretRef } }: InferenceServiceSpec): string {
  if (!line.includes('HF_TOKEN')) return line;
  return tokenSecretRef === undefined
    ? `${line}; spec.model.tokenSecretRef is not set`
    : `${line}; HF_TOKEN is key "${tokenSecretRef.key}" of Secret "${tokenSecretRef.name}"`;
}

function nameOf({ model: { path, revision } }: InferenceServiceSpec): string {
  return path.startsWith('/') ? path : `${path}@${revision ?? 'main'}`;
}

function podsOf({ lookups = [] }: World, job: AnyObject): AnyObject[] {
  return lookups.filter((pod) => controllerOf(pod)?.uid === job.metadata.uid);
}

function endedOf(pod: AnyObject): { exitCode: number; message?: string } | undefined {
  return pod.status?.containerStatuses?.[0]?.state?.terminated;
}

function answerOf(world: World, job: AnyObject, source: string): ResolvedModel | undefined {
  for (const pod of podsOf(world, job)) {
    const ended = endedOf(pod);
    if (ended?.exitCode !== 0) continue;
    const about = { source, job: job.metadata.uid, resolvedAt: timestamp(world.now) };
    const parsed = resolvedModelSchema.safeParse({ ...readJson(ended.message ?? ''), ...about });
    if (parsed.success) return parsed.data;
  }
  return undefined;
}

function refusalOf(world: World, job: AnyObject): string {
  return (
    podsOf(world, job)
      .map((pod) => errorLine(endedOf(pod)?.message ?? ''))
      .filter((line) => line !== '')
      .at(-1) ?? ''
  );
}

function readJson(text: string): object {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return {};
  }
}

function isTrue(job: AnyObject, type: string): { lastTransitionTime?: string; message?: string } | undefined {
  // biome-ignore lint/suspicious/noExplicitAny: a Job condition.
  return (job.status?.conditions ?? []).find((each: any) => each.type === type && each.status === 'True');
}
