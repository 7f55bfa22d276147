/** The Deployment of a revision, always from its frozen record. Pure. */
import type { AnyObject } from '../api/objects.ts';
import type { RevisionData } from './controller-revision.ts';
import { ownerReference } from './labels.ts';

export function revisionDeployment(
  service: AnyObject,
  name: string,
  record: Pick<RevisionData, 'deployment' | 'deploymentLabels'>,
  replicas: number,
): AnyObject {
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: {
      name,
      namespace: service.metadata.namespace ?? '',
      labels: { ...record.deploymentLabels, ...recordedLabels(record) },
      ownerReferences: [ownerReference(service)],
    },
    spec: { ...record.deployment, replicas },
  };
}

/** The labels that a revision's objects were made with: those its pods are selected by, whatever would be rendered now. */
export function recordedLabels({ deployment }: Pick<RevisionData, 'deployment'>): Record<string, string> {
  return (deployment as { selector?: { matchLabels?: Record<string, string> } }).selector?.matchLabels ?? {};
}
