/**
 * How many pods of a template the cluster's nodes could take now, by an extended resource such as nvidia.com/gpu.
 * Enters: nodes, all pods, quotas, the pod template. Leaves: an estimate with its reasons, or "unknown" where only trying
 * can tell. Pure. The scheduler decides; this only chooses what to try first, so it never says "none" without knowing.
 */
import type { AnyObject } from '../api/objects.ts';
import { quantity } from './quantity.ts';

export interface CapacityInput {
  /** Undefined where they are not seen: the operator's rights may be for some namespaces only. */
  readonly nodes: readonly AnyObject[] | undefined;
  /** Of all namespaces. */
  readonly pods: readonly AnyObject[];
  /** ResourceQuotas of the service's namespace. */
  readonly quotas: readonly AnyObject[];
  /** The template's spec. */
  readonly podSpec: PodSpec;
  readonly resource: string;
  /** Names of pods of the template's namespace that are to count as gone. */
  readonly without?: { readonly namespace: string; readonly names: ReadonlySet<string> };
}

export interface NodeCapacity {
  readonly name: string;
  readonly allocatable: number;
  /** Held by pods that run or are bound, the ending ones included. */
  readonly used: number;
  /** Of `used`: what ending pods will give back. */
  readonly releasing: number;
  /** Why no pod of the template may run there; absent where it may. */
  readonly excluded?: string;
}

export type Capacity =
  | {
      readonly known: true;
      readonly resource: string;
      /** Of the resource, for one pod. */
      readonly perPod: number;
      readonly nodes: readonly NodeCapacity[];
      /** Pods of the template that fit now. */
      readonly fits: number;
      /** Pods that would fit once ending pods are gone. */
      readonly fitsAfterReleases: number;
      /** One sentence for status and events. */
      readonly message: string;
    }
  | { readonly known: false; readonly perPod: number; readonly message: string };

interface Container {
  readonly name?: string;
  readonly restartPolicy?: string;
  readonly resources?: {
    readonly limits?: Readonly<Record<string, unknown>>;
    readonly requests?: Readonly<Record<string, unknown>>;
    readonly claims?: readonly unknown[];
  };
}

export interface PodSpec {
  readonly containers?: readonly Container[];
  readonly initContainers?: readonly Container[];
  readonly nodeName?: string;
  readonly nodeSelector?: Readonly<Record<string, string>>;
  readonly affinity?: {
    readonly nodeAffinity?: {
      readonly requiredDuringSchedulingIgnoredDuringExecution?: {
        readonly nodeSelectorTerms?: readonly SelectorTerm[];
      };
    };
    readonly podAffinity?: { readonly requiredDuringSchedulingIgnoredDuringExecution?: readonly unknown[] };
    readonly podAntiAffinity?: {
      readonly requiredDuringSchedulingIgnoredDuringExecution?: readonly unknown[];
    };
  };
  readonly tolerations?: readonly Toleration[];
  readonly schedulingGates?: readonly unknown[];
  readonly schedulerName?: string;
  readonly resourceClaims?: readonly unknown[];
  readonly topologySpreadConstraints?: readonly { readonly whenUnsatisfiable?: string }[];
}

interface SelectorTerm {
  readonly matchExpressions?: readonly Requirement[];
  readonly matchFields?: readonly Requirement[];
}

interface Requirement {
  readonly key: string;
  readonly operator: string;
  readonly values?: readonly string[];
}

interface Toleration {
  readonly key?: string;
  readonly operator?: string;
  readonly value?: string;
  readonly effect?: string;
}

interface Taint {
  readonly key: string;
  readonly value?: string;
  readonly effect: string;
}

const quantityOf = (value: unknown): number => Math.max(0, quantity(value) ?? 0);

const amountOf = (container: Container, resource: string): number =>
  quantityOf(container.resources?.requests?.[resource] ?? container.resources?.limits?.[resource]);

/**
 * What the scheduler counts for a pod: the containers and sidecars together, or the largest of the init containers on top
 * of the sidecars started before it, whichever is more (KEP-753).
 */
export function podRequest(spec: PodSpec, resource: string): number {
  let sidecars = 0;
  let initPeak = 0;
  for (const container of spec.initContainers ?? []) {
    const amount = amountOf(container, resource);
    if (container.restartPolicy === 'Always') {
      sidecars += amount;
      initPeak = Math.max(initPeak, sidecars);
    } else initPeak = Math.max(initPeak, sidecars + amount);
  }
  const running = (spec.containers ?? []).reduce(
    (sum, container) => sum + amountOf(container, resource),
    sidecars,
  );
  return Math.max(running, initPeak);
}

function tolerates(tolerations: readonly Toleration[], taint: Taint): boolean {
  return tolerations.some(
    (toleration) =>
      (!toleration.effect || toleration.effect === taint.effect) &&
      (toleration.operator === 'Exists'
        ? !toleration.key || toleration.key === taint.key
        : toleration.key === taint.key && (toleration.value ?? '') === (taint.value ?? '')),
  );
}

function meets(requirement: Requirement, value: string | undefined): boolean {
  const values = requirement.values ?? [];
  switch (requirement.operator) {
    case 'In':
      return value !== undefined && values.includes(value);
    case 'NotIn':
      return value === undefined || !values.includes(value);
    case 'Exists':
      return value !== undefined;
    case 'DoesNotExist':
      return value === undefined;
    case 'Gt':
      return value !== undefined && Number(value) > Number(values[0]);
    case 'Lt':
      return value !== undefined && Number(value) < Number(values[0]);
    default:
      return false;
  }
}

/** Why no pod of this spec may be put on the node, apart from what is free there. */
function exclusionOf(node: AnyObject, spec: PodSpec): string | undefined {
  const ready = (node.status?.conditions ?? []).find(
    (condition: { type: string }) => condition.type === 'Ready',
  );
  if (ready && ready.status !== 'True') return 'it is not ready';
  const tolerations = spec.tolerations ?? [];
  const taints: Taint[] = [...(node.spec?.taints ?? [])];
  if (node.spec?.unschedulable)
    taints.push({ key: 'node.kubernetes.io/unschedulable', effect: 'NoSchedule' });
  const refused = taints.find(
    (taint) => taint.effect !== 'PreferNoSchedule' && !tolerates(tolerations, taint),
  );
  if (refused) {
    return refused.key === 'node.kubernetes.io/unschedulable'
      ? 'it is cordoned'
      : `of its taint ${refused.key}`;
  }
  return misplacement(node, spec);
}

/** Why the template itself keeps its pods off the node, whatever state that is in. */
export function misplacement(node: AnyObject, spec: PodSpec): string | undefined {
  const labels = node.metadata.labels ?? {};
  if (spec.nodeName !== undefined && spec.nodeName !== node.metadata.name)
    return `the template names node ${spec.nodeName}`;
  for (const [key, value] of Object.entries(spec.nodeSelector ?? {})) {
    if (labels[key] !== value) return `of the node selector ${key}=${value}`;
  }
  const terms =
    spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms;
  const matches = (term: SelectorTerm): boolean =>
    (term.matchExpressions?.length ?? 0) + (term.matchFields?.length ?? 0) > 0 &&
    (term.matchExpressions ?? []).every((requirement) => meets(requirement, labels[requirement.key])) &&
    (term.matchFields ?? []).every((requirement) => meets(requirement, node.metadata.name));
  return terms && !terms.some(matches) ? 'of the node affinity' : undefined;
}

/** What makes an estimate worthless: then the scheduler is asked by creating the pod. */
function unknowable({ nodes, podSpec, resource }: CapacityInput): string | undefined {
  if ((podSpec.schedulingGates?.length ?? 0) > 0) return 'the template has scheduling gates';
  if ((podSpec.resourceClaims?.length ?? 0) > 0)
    return 'the template claims devices (dynamic resource allocation)';
  if (podSpec.schedulerName && podSpec.schedulerName !== 'default-scheduler') {
    return `the template is scheduled by ${podSpec.schedulerName}`;
  }
  if (podSpec.affinity?.podAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.length) {
    return 'the template requires pod affinity';
  }
  if (podSpec.affinity?.podAntiAffinity?.requiredDuringSchedulingIgnoredDuringExecution?.length) {
    return 'the template requires pod anti-affinity';
  }
  if (podSpec.topologySpreadConstraints?.some((each) => each.whenUnsatisfiable !== 'ScheduleAnyway')) {
    return 'the template has a hard topology spread';
  }
  if (nodes === undefined) return 'the nodes are not seen';
  if (!nodes.some((node) => node.status?.allocatable?.[resource] !== undefined)) {
    return `no node reports ${resource}`;
  }
  return undefined;
}

/** Pods' worth of quota left, or undefined where none limits the resource. */
function quotaLeft(input: CapacityInput, perPod: number): number | undefined {
  let left: number | undefined;
  for (const quota of input.quotas) {
    if (quota.spec?.scopes?.length || quota.spec?.scopeSelector) continue;
    for (const key of [`requests.${input.resource}`, `limits.${input.resource}`]) {
      const hard = quota.status?.hard?.[key];
      if (hard === undefined) continue;
      const free = Math.max(0, quantityOf(hard) - quantityOf(quota.status?.used?.[key]));
      left = Math.min(left ?? Number.POSITIVE_INFINITY, Math.floor(free / perPod));
    }
  }
  return left;
}

export function estimateCapacity(input: CapacityInput): Capacity {
  const perPod = podRequest(input.podSpec, input.resource);
  if (perPod === 0) return { known: false, perPod, message: `no ${input.resource} is asked for` };
  const why = unknowable(input);
  if (why) return { known: false, perPod, message: `free ${input.resource} cannot be estimated: ${why}` };

  const used = new Map<string, number>();
  const releasing = new Map<string, number>();
  const add = (map: Map<string, number>, key: string, amount: number): void => {
    map.set(key, (map.get(key) ?? 0) + amount);
  };
  for (const pod of input.pods) {
    const node: string | undefined = pod.spec?.nodeName;
    if (!node || pod.status?.phase === 'Succeeded' || pod.status?.phase === 'Failed') continue;
    const amount = podRequest(pod.spec, input.resource);
    if (amount === 0) continue;
    const { without } = input;
    if (without?.names.has(pod.metadata.name) && pod.metadata.namespace === without.namespace) continue;
    add(used, node, amount);
    if (pod.metadata.deletionTimestamp) add(releasing, node, amount);
  }

  const nodes: NodeCapacity[] = (input.nodes ?? [])
    .map((node) => {
      const excluded = exclusionOf(node, input.podSpec);
      return {
        name: node.metadata.name,
        allocatable: quantityOf(node.status?.allocatable?.[input.resource]),
        used: used.get(node.metadata.name) ?? 0,
        releasing: releasing.get(node.metadata.name) ?? 0,
        ...(excluded ? { excluded } : {}),
      };
    })
    .filter((node) => node.allocatable > 0)
    .sort((a, b) => (a.name < b.name ? -1 : 1));

  const fitting = (free: (node: NodeCapacity) => number): number =>
    nodes.reduce((sum, node) => sum + (node.excluded ? 0 : Math.floor(Math.max(0, free(node)) / perPod)), 0);
  const left = quotaLeft(input, perPod);
  const limit = left ?? Number.POSITIVE_INFINITY;
  const onNodes = fitting((node) => node.allocatable - node.used);
  const fits = Math.min(limit, onNodes);
  const fitsAfterReleases = Math.min(
    limit,
    fitting((node) => node.allocatable - node.used + node.releasing),
  );
  return {
    known: true,
    resource: input.resource,
    perPod,
    nodes,
    fits,
    fitsAfterReleases,
    message:
      limit < onNodes
        ? `the namespace's quota of ${input.resource} leaves room for ${limit} more pods of ${perPod}`
        : describe(nodes, perPod),
  };
}

/** "4 GPUs needed on one node, 2 free on node-a": the node with most free first, three at most. */
function describe(nodes: readonly NodeCapacity[], perPod: number): string {
  const gpus = (count: number): string => `${count} GPU${count === 1 ? '' : 's'}`;
  const needed = `${gpus(perPod)} needed on one node`;
  const usable = nodes.filter((node) => !node.excluded);
  if (usable.length === 0) {
    const first = nodes[0];
    return first
      ? `${needed}, ${first.name} is not usable because ${first.excluded}`
      : `${needed}, no node has any`;
  }
  const free = (node: NodeCapacity): number => Math.max(0, node.allocatable - node.used);
  const shown = [...usable].sort((a, b) => free(b) - free(a) || (a.name < b.name ? -1 : 1)).slice(0, 3);
  return `${needed}, ${shown.map((node) => `${free(node)} of ${node.allocatable} free on ${node.name}`).join(', ')}`;
}
