/**
 * The world of one InferenceService as the API server has it now, for commands: the same that a reconcile reads from its
 * caches. Enters: a client, a name. Leaves: a World.
 */
import { SluiceError } from '../../runtime/errors.ts';
import { kind } from '../api/inference-service.ts';
import { controllerOf } from '../api/objects.ts';
import { type KubeClient, KubeError, type KubeObject, resources } from '../kube/client.ts';
import { wantedChildren } from '../plan/plan.ts';
import type { ClusterView, World } from '../plan/world.ts';
import { childTypes } from '../reconcilers/sources.ts';
import { serviceLabel } from '../resources/labels.ts';

/** Throws SluiceError `config_invalid` where there is no such object. */
export async function getService(client: KubeClient, namespace: string, name: string): Promise<KubeObject> {
  const service = await client.get(resources.inferenceServices, { namespace, name });
  if (service === undefined)
    throw new SluiceError(
      'config_invalid',
      `there is no ${kind} "${name}" in the namespace ${namespace}; kubectl get infer -A lists them`,
    );
  return service;
}

/** `service` may be one that is not stored (yet): its children are looked up by name and labels. */
export async function observe(client: KubeClient, service: KubeObject, now: Date): Promise<World> {
  const { name, namespace = '' } = service.metadata;
  const labelled = { namespace, labelSelector: `${serviceLabel}=${name}` };
  const children = new Map<string, KubeObject>();
  for (const type of Object.values(childTypes)) {
    const { items } = await client.list(type, labelled);
    for (const item of items) children.set(`${type.kind}/${item.metadata.name}`, item);
  }
  const { items } = await client.list(resources.pods, labelled);
  const pods = items.filter((pod) => controllerOf(pod)?.kind === 'ReplicaSet');
  const cluster = await viewCluster(client, namespace);
  const world = (): World => ({
    service,
    children: [...children.values()],
    pods,
    now,
    ...(cluster === undefined ? {} : { cluster }),
  });
  for (const wanted of wantedChildren(world())) {
    const id = `${wanted.kind}/${wanted.name}`;
    if (children.has(id)) continue;
    const live = await client.get(childTypes[wanted.kind]!, { namespace, name: wanted.name });
    if (live !== undefined) children.set(id, live);
  }
  return world();
}

/** Undefined where we may not see it: then what is free is not known. */
async function viewCluster(client: KubeClient, namespace: string): Promise<ClusterView | undefined> {
  try {
    const nodes = await client.list(resources.nodes);
    const pods = await client.list(resources.pods, {
      fieldSelector: 'status.phase!=Succeeded,status.phase!=Failed',
    });
    const quotas = await client.list(resources.resourceQuotas, { namespace });
    return { nodes: () => nodes.items, pods: () => pods.items, quotas: () => quotas.items };
  } catch (error) {
    if (error instanceof KubeError && error.status === 403) return undefined;
    throw error;
  }
}
