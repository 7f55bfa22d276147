/**
 * `plan`: what manifests would change. Enters: manifests, a client or none. Leaves: text or JSON. Writes nothing: the API
 * server is asked by dry run, the rest is the reconciler's own plan, played forward.
 */
import { type InferenceServiceSpec, specSchema } from '../../api/inference-service.ts';
import type { AnyObject } from '../../api/objects.ts';
import { type KubeClient, type KubeObject, resources } from '../../kube/client.ts';
import { type Capacity, estimateCapacity, type PodSpec } from '../../plan/capacity.ts';
import { type Forecast, forecast, type Write } from '../../plan/forecast.ts';
import { makePlan } from '../../plan/plan.ts';
import type { World } from '../../plan/world.ts';
import { tryTemplate } from '../../reconcilers/template-trial.ts';
import type { CommandOptions } from '../command-line.ts';
import { readManifestFiles } from '../manifest.ts';
import { observe } from '../observe.ts';

interface PlannedService {
  readonly namespace: string;
  readonly name: string;
  /** Writes to children, as the audit log names them. The object itself and its status are not among them. */
  readonly writes: readonly Write[];
  readonly pods: {
    readonly now: number;
    readonly replaced: readonly string[];
    readonly ended: readonly string[];
    readonly started: number;
    readonly leastReady: number;
  };
  readonly gpus: {
    readonly resource: string;
    readonly perPod: number;
    readonly pods: number;
    /** Whether a pod fits now beside what runs; `unknown` where only the scheduler can tell. */
    readonly free: 'yes' | 'no' | 'unknown';
    readonly message: string;
  };
  readonly outcome: {
    readonly ready: boolean;
    readonly reason: string;
    readonly message: string;
    /** What the rollout passes on the way: RollingOut, CapacityGap, ... */
    readonly passes: readonly string[];
    readonly decision?: string;
  };
}

export interface PlanDependencies {
  /** Absent: `--offline`. */
  readonly client?: KubeClient;
  readonly namespace: string;
  readonly now: Date;
}

export async function planCommand(options: CommandOptions, parts: PlanDependencies): Promise<string> {
  const { services, others } = readManifestFiles(options.file ?? [], parts.namespace);
  const planned: PlannedService[] = [];
  for (const manifest of services) {
    const { client, now } = parts;
    const world =
      client === undefined
        ? emptyWorld(manifest, now)
        : await tried(
            client,
            await observe(client, await edited(client, manifest as KubeObject), now),
            options.runtimeImage,
          );
    planned.push(planOf(world, options.runtimeImage));
  }
  if (options.output === 'json')
    return `${JSON.stringify({ services: planned, notLookedAt: others }, undefined, 2)}\n`;
  const notes = others.length === 0 ? [] : [`Not looked at: ${others.join(', ')}.`];
  return `${[...planned.map(text), ...notes].join('\n\n')}\n`;
}

/** With what the API server says to the template of a revision that would be new. */
async function tried(client: KubeClient, world: World, runtimeImage: string): Promise<World> {
  const { trial } = makePlan(world, { runtimeImage });
  const refusal = trial === undefined ? undefined : await tryTemplate(client, trial);
  return refusal === undefined ? world : { ...world, refusal };
}

function planOf(world: World, runtimeImage: string): PlannedService {
  const { service } = world;
  // What cannot be read was refused before.
  const spec = specSchema.parse(service.spec) as InferenceServiceSpec;
  const resource = spec.gpuResource ?? 'nvidia.com/gpu';
  const found = forecast({ world, options: { runtimeImage }, resource });
  return {
    namespace: service.metadata.namespace ?? '',
    name: service.metadata.name,
    writes: found.writes,
    pods: {
      now: world.pods.length,
      replaced: found.podsReplaced,
      ended: found.podsEnded,
      started: found.podsStarted,
      leastReady: found.leastReady,
    },
    gpus: gpusOf(world, found, spec, resource),
    outcome: outcomeOf(found),
  };
}

function gpusOf(
  world: World,
  { podSpec }: Forecast,
  spec: InferenceServiceSpec,
  resource: string,
): PlannedService['gpus'] {
  const pods = spec.suspend === true ? 0 : spec.replicas;
  const capacity: Capacity = estimateCapacity({
    nodes: world.cluster?.nodes(),
    pods: world.cluster?.pods() ?? [],
    quotas: world.cluster?.quotas(world.service.metadata.namespace ?? '') ?? [],
    podSpec: podSpec as PodSpec,
    resource,
  });
  const free = !capacity.known ? 'unknown' : capacity.fits > 0 ? 'yes' : 'no';
  const { perPod, message } = capacity;
  return { resource, perPod, pods, free, message };
}

function outcomeOf({ status, passed }: Forecast): PlannedService['outcome'] {
  const { conditions = [], rollout } = status;
  const ready = conditions.find((each) => each.type === 'Ready');
  return {
    ready: ready?.status === 'True',
    reason: ready?.reason ?? 'Unknown',
    message: ready?.message ?? '',
    passes: passed,
    ...(rollout?.decision === undefined ? {} : { decision: rollout.decision }),
  };
}

function emptyWorld(manifest: AnyObject, now: Date): World {
  const service = {
    ...manifest,
    metadata: { ...manifest.metadata, uid: 'offline', generation: 1 },
    spec: specSchema.parse(manifest.spec),
  };
  return { service, children: [], pods: [], now };
}

/** Managers of a spec that apply it server-side: what they leave out of a manifest goes. */
function applierOf(live: KubeObject): string | undefined {
  const entries = (live.metadata.managedFields ?? []) as {
    manager?: string;
    operation?: string;
    subresource?: string;
    fieldsV1?: Record<string, unknown>;
  }[];
  return entries.find(
    (each) =>
      each.operation === 'Apply' &&
      each.subresource === undefined &&
      each.manager !== handManager &&
      each.fieldsV1?.['f:spec'] !== undefined,
  )?.manager;
}

/** What the commands here write by is nobody's manifest. */
export const handManager = 'sluice-cli';

/**
 * The object as the API server would have it after the manifest is applied, every rule of its own included: as the manager
 * that applied it last time, or as `kubectl apply` does, where what others set (replicas, by an autoscaler) stays.
 */
async function edited(client: KubeClient, manifest: KubeObject): Promise<KubeObject> {
  const type = resources.inferenceServices;
  const live = await client.get(type, {
    namespace: manifest.metadata.namespace ?? '',
    name: manifest.metadata.name,
  });
  if (live === undefined) return await client.create(type, manifest, { dryRun: true });
  const fieldManager = applierOf(live);
  if (fieldManager !== undefined)
    return await client.apply(type, manifest, { fieldManager, force: true, dryRun: true });
  const { replicas = live.spec.replicas, ...spec } = manifest.spec;
  const { labels, annotations } = manifest.metadata;
  const metadata = {
    ...live.metadata,
    labels: { ...live.metadata.labels, ...labels },
    annotations: { ...live.metadata.annotations, ...annotations },
  };
  return await client.replace(type, { ...live, metadata, spec: { ...spec, replicas } }, { dryRun: true });
}

const words: Readonly<Record<Write['verb'], string>> = {
  patch: 'change',
  update: 'replace',
  delete: 'delete',
};

function text(service: PlannedService): string {
  const { writes, pods, gpus, outcome } = service;
  const title = `InferenceService ${service.namespace}/${service.name}`;
  const lines = writes.map(
    ({ verb, kind, name, creates }) => `  ${(creates ? 'create' : words[verb]).padEnd(8)}${kind} ${name}`,
  );
  const passes = outcome.passes.filter((reason) => reason !== outcome.reason);
  return [
    `${title}: ${writes.length === 0 ? 'no object changes' : `${writes.length} objects change`}`,
    ...lines,
    `Pods: ${podsText(pods)}`,
    ...(gpus.perPod === 0 ? [] : [`GPUs: ${gpus.pods} x ${gpus.perPod} ${gpus.resource}; ${gpus.message}`]),
    ...(outcome.decision === undefined ? [] : [`Rollout: ${outcome.decision}`]),
    ...(outcome.reason === 'Resolving'
      ? ['What else changes depends on the commit that is looked up first.']
      : []),
    ...(passes.length === 0 ? [] : [`On the way: ${passes.join(', ')}`]),
    `In the end: ${outcome.ready ? 'Ready' : 'not Ready'} (${outcome.reason}): ${outcome.message}`,
  ].join('\n');
}

function podsText({ now, replaced, ended, started, leastReady }: PlannedService['pods']): string {
  const listed = (names: readonly string[]) =>
    names.length === 0 ? '' : ` (${names.slice(0, 5).join(', ')}${names.length > 5 ? ', ...' : ''})`;
  if (ended.length === 0 && started === 0) return `none of ${now} is touched`;
  const parts = [`${replaced.length} of ${now} replaced${listed(replaced)}`];
  if (ended.length > replaced.length) parts.push(`${ended.length - replaced.length} more end`);
  parts.push(`${started} start`);
  if (now > 0) parts.push(`${leastReady} ready at the least`);
  return parts.join('; ');
}
