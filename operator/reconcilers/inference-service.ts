/**
 * One reconcile: read everything about a key, plan, carry the plan out, write the status if it changed. The shell around
 * plan/: every decision is there, every request is here. It never sleeps; what it throws comes back with backoff.
 */
import { sameJson } from '../api/canonical.ts';
import type { InferenceServiceStatus } from '../api/inference-service.ts';
import { controllerOf } from '../api/objects.ts';
import type { ReconcileContext, ReconcileResult } from '../controller/controller.ts';
import { type KubeClient, KubeError, type KubeObject, resources } from '../kube/client.ts';
import { fieldManager } from '../plan/drift.ts';
import { type Notice, noticesOf } from '../plan/notices.ts';
import { type Action, makePlan, type Plan, type PlanOptions, wantedChildren } from '../plan/plan.ts';
import { withStall } from '../plan/status.ts';
import type { World } from '../plan/world.ts';
import type { RecentWrites } from './recent-writes.ts';
import { childTypes, type Sources } from './sources.ts';
import { invalidityOf, TemplateTrials } from './template-trial.ts';

export interface ReconcilerOptions {
  readonly client: KubeClient;
  readonly sources: Sources;
  readonly recent: RecentWrites;
  readonly plan: PlanOptions;
  readonly now: () => Date;
  readonly notify: (object: KubeObject, notice: Notice) => void;
  readonly onWrite: (verb: Action['verb'], kind: string) => void;
}

/** Somebody else wrote first; the caches will tell what. */
const conflictRequeueMs = 200;

export function inferenceServiceReconciler(options: ReconcilerOptions) {
  const trials = new TemplateTrials(options.client);
  return async (key: string, context: ReconcileContext): Promise<ReconcileResult> => {
    try {
      return await reconcile(key, context, options, trials);
    } catch (error) {
      if (!(error instanceof KubeError) || error.status !== 409) throw error;
      context.log.debug({ err: error }, 'conflict');
      return { requeueAfterMs: conflictRequeueMs };
    }
  };
}

async function reconcile(
  key: string,
  { log }: ReconcileContext,
  options: ReconcilerOptions,
  trials: TemplateTrials,
): Promise<ReconcileResult> {
  const world = await readWorld(key, options);
  if (world === undefined) {
    trials.forget(key);
    return {};
  }
  const plan = await triedPlan(key, world, options, trials);
  let { status } = plan;
  let refused = false;
  let failure: unknown;
  for (const action of plan.actions) {
    const { kind, metadata } = action.object;
    log.info({ verb: action.verb, kind, name: metadata.name }, 'writing a child');
    try {
      await carryOut(action, options);
      options.onWrite(action.verb, kind);
    } catch (error) {
      const refusal = refusalOf(error, action);
      if (refusal === undefined) throw error;
      // The first refusal is what is told; what else there is to do for the pods that serve is still done.
      if (!refused) status = withStall(world, status, refusal.reason, refusal.message);
      refused = true;
      if (refusal.retry) failure = error;
    }
  }
  await writeStatus(world.service as KubeObject, status, options);
  if (failure !== undefined) throw failure;
  return plan.requeueAfterMs === undefined ? {} : { requeueAfterMs: plan.requeueAfterMs };
}

/** The plan, made again where the API server refuses the template that it is about to use for the first time. */
async function triedPlan(
  key: string,
  world: World,
  { plan: planOptions }: ReconcilerOptions,
  trials: TemplateTrials,
): Promise<Plan> {
  const plan = makePlan(world, planOptions);
  if (plan.trial === undefined) {
    trials.forget(key);
    return plan;
  }
  const refusal = await trials.refusal(key, plan.trial);
  return refusal === undefined ? plan : makePlan({ ...world, refusal }, planOptions);
}

/** Undefined when the object is gone or going: the garbage collector does the rest. */
async function readWorld(key: string, options: ReconcilerOptions): Promise<World | undefined> {
  const { client, sources, recent, now } = options;
  const cached = sources.service(key);
  if (cached === undefined) return undefined;
  const { namespace = '', name, uid = '' } = cached.metadata;
  const service = recent.newest(cached.kind, namespace, name, cached);
  if (service === undefined || service.metadata.deletionTimestamp !== undefined) return undefined;
  const children = new Map<string, KubeObject>();
  for (const child of sources.childrenOf(uid)) {
    const newest = recent.newest(child.kind, namespace, child.metadata.name, child);
    if (newest !== undefined) children.set(`${child.kind}/${child.metadata.name}`, newest);
  }
  // What the caches do not hold may be there all the same: just written, or somebody else's and without our labels.
  const labelled = sources.podsOf(key);
  // Pods made by hand with the same labels are not counted.
  const pods = labelled.filter((pod) => controllerOf(pod)?.kind === 'ReplicaSet');
  const lookups = labelled.filter((pod) => controllerOf(pod)?.kind === 'Job');
  const { cluster } = sources;
  const world = () => ({
    service,
    children: [...children.values()],
    pods,
    lookups,
    now: now(),
    ...(cluster === undefined ? {} : { cluster }),
  });
  const unseen = wantedChildren(world()).filter((wanted) => !children.has(`${wanted.kind}/${wanted.name}`));
  const found = await Promise.all(
    unseen.map((wanted) => client.get(childTypes[wanted.kind]!, { namespace, name: wanted.name })),
  );
  for (const live of found) if (live !== undefined) children.set(`${live.kind}/${live.metadata.name}`, live);
  return world();
}

async function carryOut(action: Action, { client, recent }: ReconcilerOptions): Promise<void> {
  const type = childTypes[action.object.kind]!;
  if (action.verb === 'remove') {
    const object = action.object as KubeObject;
    const { metadata } = object;
    await client.remove(type, metadata, {
      ...(metadata.uid === undefined ? {} : { uid: metadata.uid }),
      propagationPolicy: 'Background',
    });
    recent.noteRemoved(object);
    return;
  }
  if (action.verb === 'replace') await client.replace(type, action.whole as KubeObject);
  const live = action.verb === 'replace' ? action.whole : action.live;
  // The uid makes the API server refuse when the object that was looked at has been replaced by another since.
  const object = live?.metadata.uid === undefined ? action.object : withUid(action.object, live.metadata.uid);
  const applied = await client.apply(type, object as KubeObject, { fieldManager, force: live !== undefined });
  recent.noteWritten(applied);
}

function withUid<T extends Action['object']>(object: T, uid: string): T {
  return { ...object, metadata: { ...object.metadata, uid } };
}

/** What no repetition of the same write would change; undefined for all that may pass by itself. */
function refusalOf(
  error: unknown,
  { object }: Action,
): { reason: string; message: string; retry: boolean } | undefined {
  if (!(error instanceof KubeError)) return undefined;
  const what = `${object.kind} "${object.metadata.name}"`;
  const why = invalidityOf(error);
  if (why !== undefined)
    return { reason: 'TemplateInvalid', message: `${what} is refused: ${why}`, retry: false };
  if (error.status === 403)
    return { reason: 'Forbidden', message: `${what} is not allowed: ${error.message}`, retry: true };
  return undefined;
}

async function writeStatus(
  service: KubeObject,
  status: InferenceServiceStatus,
  { client, recent, notify }: ReconcilerOptions,
): Promise<void> {
  if (sameJson(service.status ?? {}, status)) return;
  const { name, namespace = '', uid, resourceVersion } = service.metadata;
  const { hold, ...rollout } = status.rollout ?? {};
  const held = service.status?.rollout?.hold !== undefined;
  const written = await client.apply(
    resources.inferenceServices,
    {
      apiVersion: service.apiVersion,
      kind: service.kind,
      // A newer spec or status than the one this was planned from makes it a conflict, and the key comes back.
      metadata: { name, namespace, ...(uid ? { uid } : {}), ...(resourceVersion ? { resourceVersion } : {}) },
      // The hold is the person's who wrote it: applying it would make it ours too.
      status: { ...status, ...(status.rollout === undefined ? {} : { rollout }) },
    },
    { fieldManager, force: true, subresource: 'status' },
  );
  recent.noteWritten(written);
  if (held && hold === undefined) await endHold(written, client, recent);
  for (const notice of noticesOf(service.status, status)) notify(service, notice);
}

/** Only a patch takes away what another manager applied. */
async function endHold(service: KubeObject, client: KubeClient, recent: RecentWrites): Promise<void> {
  const { name, namespace = '', resourceVersion } = service.metadata;
  const patch = { metadata: { resourceVersion }, status: { rollout: { hold: null } } };
  const patched = await client.mergePatch(resources.inferenceServices, { namespace, name }, patch, {
    subresource: 'status',
  });
  recent.noteWritten(patched);
}
