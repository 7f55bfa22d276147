/**
 * The labels and annotations that children carry. They are the contract between the operator's versions: a Service's or a
 * Deployment's selector cannot change without losing the pods. Pure.
 */
import { group } from '../api/inference-service.ts';
import type { AnyObject, OwnerReference } from '../api/objects.ts';

export const serviceLabel = `${group}/service`;
export const revisionLabel = `${group}/revision`;
export const roleLabel = `${group}/role`;
const runtimeRole = 'runtime';
/** Pods of the Job that looks a model up; no Service selects them. */
export const resolveRole = 'resolve';

/** Kueue's: which queue a workload waits in. */
export const queueLabel = 'kueue.x-k8s.io/queue-name';

/** The hash of the manifest that was applied last: equal to the manifest's, and nothing needs to be written. */
export const appliedAnnotation = `${group}/applied`;

/** All runtime pods of a service, of whatever revision. */
export function serviceSelector(serviceName: string): Record<string, string> {
  return { [serviceLabel]: serviceName, [roleLabel]: runtimeRole };
}

export function revisionLabels(serviceName: string, revision: string): Record<string, string> {
  return { ...serviceSelector(serviceName), [revisionLabel]: revision };
}

export function selectorText(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(',');
}

/** Makes `owner` the controller: its deletion deletes the child. */
export function ownerReference(owner: AnyObject): OwnerReference {
  return {
    apiVersion: owner.apiVersion,
    kind: owner.kind,
    name: owner.metadata.name,
    uid: owner.metadata.uid ?? '',
    controller: true,
    blockOwnerDeletion: true,
  };
}
