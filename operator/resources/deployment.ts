/** The Deployment of a revision, always from its frozen record. Pure. */
import type { AnyObject } from '../api/objects.ts';
import type { RevisionData } from './controller-revision.ts';
import { ownerReference, revisionLabels } from './labels.ts';

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
      labels: { ...record.deploymentLabels, ...revisionLabels(service.metadata.name, name) },
      ownerReferences: [ownerReference(service)],
    },
    spec: { ...record.deployment, replicas },
  };
}
