/**
 * Whether a pod can run on this node, asked once before anything is made for it: fields that are not supported, GPUs
 * that are not free. In: the pod and the node's means; out: a refusal, or what the containers are given. Changes
 * nothing but the pool of GPUs.
 */
import { type GpuPool, gpuResource } from './gpus.ts';
import { isSidecar } from './pod-status.ts';
import type { ContainerSpec, Pod, PodSpec, SecurityContext } from './pod-types.ts';
import type { SandboxKind } from './sandbox.ts';
import { inspectFields } from './supported-fields.ts';

/** For a pod's status. */
export interface Failure {
  readonly reason: string;
  readonly message: string;
}

export interface Admission {
  readonly refusal: Failure | undefined;
  /** Warning events. */
  readonly warnings: readonly Failure[];
  /** Ids by container. */
  readonly gpus: ReadonlyMap<string, readonly string[]>;
}

export interface AdmissionContext {
  readonly sandboxKind: SandboxKind;
  readonly isRoot: boolean;
  readonly gpus: GpuPool;
}

export function admitPod(pod: Pod, context: AdmissionContext): Admission {
  const { spec } = pod;
  const { warned, unsupported } = inspectFields(spec);
  if (unsupported.length > 0) {
    const message = `a process node does not support ${named(unsupported)}`;
    return { refusal: { reason: 'UnsupportedField', message }, warnings: [], gpus: new Map() };
  }
  const warnings: Failure[] = [];
  const mayChangeUser = context.isRoot && context.sandboxKind !== 'user-namespaces';
  const notEnforced = [...warned, ...(mayChangeUser ? [] : userFields(spec))];
  if (notEnforced.length > 0) {
    const message = `a process node accepts but does not enforce ${named(notEnforced)}`;
    warnings.push({ reason: 'NotEnforced', message });
  }
  if (context.sandboxKind === 'plain' && spec.volumes?.length) {
    warnings.push({
      reason: 'NoMountNamespace',
      message:
        'this machine allows no mount namespaces: volumes are not at their mount paths, which are replaced by ' +
        'the paths of their folders in command lines and environments',
    });
  }
  return { warnings, ...takeGpus(pod, context.gpus) };
}

function named(fields: readonly string[]): string {
  return fields.map((field) => `spec.${field}`).join(', ');
}

function userFields(spec: PodSpec): string[] {
  const isSet = (context: SecurityContext | undefined) =>
    context?.runAsUser !== undefined || context?.runAsGroup !== undefined;
  return [
    ...(isSet(spec.securityContext) ? ['securityContext.runAsUser'] : []),
    ...spec.containers.flatMap(({ securityContext }, index) =>
      isSet(securityContext) ? [`containers[${index}].securityContext.runAsUser`] : [],
    ),
  ];
}

function takeGpus(pod: Pod, pool: GpuPool): Pick<Admission, 'refusal' | 'gpus'> {
  const { containers, initContainers = [] } = pod.spec;
  const together = [...initContainers.filter(({ name }) => isSidecar(pod, name)), ...containers];
  const before = initContainers.filter(({ name }) => !isSidecar(pod, name));
  const sum = together.reduce((total, container) => total + gpuCount(container), 0);
  // Init containers run before the others and use the same devices.
  const count = Math.max(sum, ...before.map(gpuCount));
  const available = pool.freeCount;
  const ids = pool.take(pod.metadata.uid!, count);
  const gpus = new Map<string, readonly string[]>();
  if (!ids) {
    const message =
      'Allocate failed due to requested number of devices unavailable for ' +
      `${gpuResource}. Requested: ${count}, Available: ${available}, which is unexpected`;
    return { refusal: { reason: 'UnexpectedAdmissionError', message }, gpus };
  }
  let from = 0;
  for (const container of together) {
    gpus.set(container.name, ids.slice(from, from + gpuCount(container)));
    from += gpuCount(container);
  }
  for (const container of before) gpus.set(container.name, ids.slice(0, gpuCount(container)));
  return { refusal: undefined, gpus };
}

function gpuCount(container: ContainerSpec): number {
  return Number(container.resources?.limits?.[gpuResource] ?? 0);
}
