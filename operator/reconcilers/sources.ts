/**
 * The caches that a reconcile reads: InferenceServices, the children and the pods of all or of some namespaces. Enters: a
 * client. Leaves: reflectors, lookups over them, and the key that each change concerns. Only objects with the operator's
 * labels are kept, and of pods only what is looked at: a cluster is full of pods that are none of ours.
 */

import { group, kind } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { controllerOf } from '../api/objects.ts';
import type { Controller } from '../controller/controller.ts';
import { Reflector, type ReflectorOptions } from '../controller/reflector.ts';
import type { Change } from '../controller/store.ts';
import { type KubeObject, type ResourceType, resources } from '../kube/client.ts';
import type { ClusterView } from '../plan/world.ts';
import { serviceLabel } from '../resources/labels.ts';

export const childTypes: Readonly<Record<string, ResourceType>> = {
  ControllerRevision: resources.controllerRevisions,
  Service: resources.services,
  Deployment: resources.deployments,
  PodDisruptionBudget: resources.podDisruptionBudgets,
  Job: resources.jobs,
};

export type SourceOptions = Pick<ReflectorOptions, 'client' | 'clock' | 'random' | 'log'> & {
  /** Empty: all namespaces. */
  readonly namespaces: readonly string[];
  readonly metrics?: (resource: string) => ReflectorOptions['metrics'];
};

const byService = 'service';

/** Objects in one answer: what is not yet parsed, not yet trimmed and not yet collected is all in memory at once. */
const pageSize = 100;

export class Sources {
  readonly #services: Reflector[] = [];
  readonly #children = new Map<string, Reflector[]>();
  readonly #pods: Reflector[] = [];
  /** Of the whole cluster, for capacity; the operator may not be allowed to see it. */
  readonly #cluster: ReturnType<typeof clusterReflectors> | undefined;

  constructor(options: SourceOptions) {
    const { namespaces, metrics, ...shared } = options;
    const reflector = (type: ResourceType, more: Partial<ReflectorOptions>, namespace?: string) => {
      const observed = metrics?.(type.plural);
      return new Reflector({
        ...shared,
        pageSize,
        type,
        ...(observed === undefined ? {} : { metrics: observed }),
        ...(namespace === undefined ? {} : { namespace }),
        ...more,
      });
    };
    // Whole objects: who manages which field is what drift is found by.
    const child = { labelSelector: serviceLabel, transform: (object: KubeObject) => object };
    const pod = { labelSelector: serviceLabel, transform: trimPod, indexes: { [byService]: serviceKeys } };
    for (const namespace of namespaces.length === 0 ? [undefined] : namespaces) {
      this.#services.push(reflector(resources.inferenceServices, {}, namespace));
      for (const [childKind, type] of Object.entries(childTypes))
        this.#children.set(childKind, [
          ...(this.#children.get(childKind) ?? []),
          reflector(type, child, namespace),
        ]);
      this.#pods.push(reflector(resources.pods, pod, namespace));
    }
    // Within some namespaces only, others' pods and the nodes are not to be seen.
    this.#cluster = namespaces.length > 0 ? undefined : clusterReflectors(reflector);
  }

  /** To be run, and to be waited for no longer than until `capacityTried`. */
  get capacityReflectors(): readonly Reflector[] {
    return this.#cluster === undefined ? [] : Object.values(this.#cluster);
  }

  /**
   * Resolves when all that capacity is estimated from was seen or refused: a rollout decided before would be decided as if
   * nothing could be known.
   */
  get capacityTried(): Promise<unknown> {
    return Promise.all(this.capacityReflectors.map((each) => each.tried));
  }

  /** Undefined while it is not all seen: half a view would count GPUs as free that are not. */
  get cluster(): ClusterView | undefined {
    const found = this.#cluster;
    if (found === undefined || !this.capacityReflectors.every((each) => each.hasSynced)) return undefined;
    return {
      nodes: () => found.nodes.store.list(),
      pods: () => found.pods.store.list(),
      quotas: (namespace) => found.quotas.store.list(namespace),
    };
  }

  get reflectors(): readonly Reflector[] {
    return [...this.#services, ...[...this.#children.values()].flat(), ...this.#pods];
  }

  get hasSynced(): boolean {
    return this.reflectors.every((each) => each.hasSynced);
  }

  /** What has not been listed yet: `inferenceservices`, also while the CRD is missing. */
  get missing(): string[] {
    return this.reflectors.filter((each) => !each.hasSynced).map((each) => each.type.plural);
  }

  /** How many InferenceServices there are. */
  get size(): number {
    return this.#services.reduce((sum, each) => sum + each.store.size, 0);
  }

  /** Feeds the controller with the key of every change. */
  feed(controller: Controller): void {
    for (const each of this.#services) controller.watch(each, ({ object }) => [keyOf(object)]);
    for (const each of [...this.#children.values()].flat()) controller.watch(each, ownerKeys);
    for (const each of this.#pods) controller.watch(each, ({ object }) => serviceKeys(object));
  }

  /** The result ends the subscription. */
  onDeleted(handler: (object: KubeObject) => void): () => void {
    const ends = this.reflectors.map((each) =>
      each.subscribe((change) => {
        if (change.type === 'deleted') handler(change.object as KubeObject);
      }),
    );
    return () => {
      for (const end of ends) end();
    };
  }

  service(key: string): KubeObject | undefined {
    return first(this.#services, (each) => each.store.get(key));
  }

  child(childKind: string, key: string): KubeObject | undefined {
    return first(this.#children.get(childKind) ?? [], (each) => each.store.get(key));
  }

  childrenOf(uid: string): KubeObject[] {
    return [...this.#children.values()].flat().flatMap((each) => each.store.by('owner', uid));
  }

  podsOf(key: string): KubeObject[] {
    return this.#pods.flatMap((each) => each.store.by(byService, key));
  }
}

function clusterReflectors(reflector: (type: ResourceType, more: Partial<ReflectorOptions>) => Reflector): {
  nodes: Reflector;
  pods: Reflector;
  quotas: Reflector;
} {
  return {
    nodes: reflector(resources.nodes, { transform: slimNode }),
    // Those that have ended hold nothing.
    pods: reflector(resources.pods, {
      transform: slimPod,
      fieldSelector: 'status.phase!=Succeeded,status.phase!=Failed',
    }),
    quotas: reflector(resources.resourceQuotas, {}),
  };
}

function keyOf({ metadata }: AnyObject): string {
  return `${metadata.namespace ?? ''}/${metadata.name}`;
}

/** The services that control a child, now and before: an edit of its owners concerns both. */
function ownerKeys({ object, previous }: Change): string[] {
  return [object, ...(previous === undefined ? [] : [previous])].flatMap((each) => {
    const owner = controllerOf(each);
    if (owner?.kind !== kind || !owner.apiVersion.startsWith(`${group}/`)) return [];
    return [`${each.metadata.namespace ?? ''}/${owner.name}`];
  });
}

function serviceKeys(object: AnyObject): string[] {
  const name = object.metadata.labels?.[serviceLabel];
  return name === undefined ? [] : [`${object.metadata.namespace ?? ''}/${name}`];
}

/** What plan/ looks at in a pod. */
function trimPod({ apiVersion, kind: podKind, metadata, spec, status }: KubeObject): KubeObject {
  const { managedFields: _, annotations: __, ...kept } = metadata;
  // biome-ignore lint/suspicious/noExplicitAny: a container of a pod's spec.
  const trim = ({ name, image, resources: wanted }: any) => ({ name, image, resources: wanted });
  return {
    apiVersion,
    kind: podKind,
    metadata: kept,
    spec: {
      nodeName: spec?.nodeName,
      containers: (spec?.containers ?? []).map(trim),
      initContainers: (spec?.initContainers ?? []).map(trim),
    },
    status: {
      phase: status?.phase,
      conditions: status?.conditions,
      containerStatuses: status?.containerStatuses,
      initContainerStatuses: status?.initContainerStatuses,
    },
  };
}

function first<T>(reflectors: readonly Reflector[], find: (each: Reflector) => T | undefined): T | undefined {
  for (const each of reflectors) {
    const found = find(each);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Of a node: what a pod may be refused for, and what there is. Images alone are often most of it. */
function slimNode({ apiVersion, kind: nodeKind, metadata, spec, status }: KubeObject): KubeObject {
  const { name, uid, resourceVersion, labels } = metadata;
  // biome-ignore lint/suspicious/noExplicitAny: a node condition.
  const readiness = (status?.conditions ?? []).filter((each: any) => each.type === 'Ready');
  return {
    apiVersion,
    kind: nodeKind,
    metadata: { name, uid, resourceVersion, labels } as KubeObject['metadata'],
    spec: { taints: spec?.taints, unschedulable: spec?.unschedulable },
    status: {
      allocatable: status?.allocatable,
      conditions: readiness.map(({ type, status: value }: Record<string, string>) => ({
        type,
        status: value,
      })),
    },
  };
}

/** Of anybody's pod: where it is and which extended resources it holds. Pods without any are a name and no more. */
function slimPod({ apiVersion, kind: podKind, metadata, spec, status }: KubeObject): KubeObject {
  const { name, namespace, uid, resourceVersion, deletionTimestamp } = metadata;
  // biome-ignore lint/suspicious/noExplicitAny: containers of a pod's spec.
  const slim = (containers: any[] = []) =>
    containers.flatMap(({ restartPolicy, resources: { limits, requests } = {} as never }) => {
      const amounts = extended({ ...requests, ...limits });
      return Object.keys(amounts).length === 0 ? [] : [{ restartPolicy, resources: { requests: amounts } }];
    });
  const containers = slim(spec?.containers);
  const initContainers = slim(spec?.initContainers);
  const holds = containers.length + initContainers.length > 0;
  return {
    apiVersion,
    kind: podKind,
    metadata: {
      name,
      namespace,
      uid,
      resourceVersion,
      ...(deletionTimestamp === undefined ? {} : { deletionTimestamp }),
    } as KubeObject['metadata'],
    ...(holds
      ? { spec: { nodeName: spec?.nodeName, containers, initContainers }, status: { phase: status?.phase } }
      : {}),
  };
}

/** Resources of a domain of their own, such as nvidia.com/gpu. */
function extended(amounts: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(amounts).filter(([name]) => name.includes('/')));
}
