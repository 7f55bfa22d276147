/**
 * The PodDisruptionBudget of a service with several replicas: a drain takes one pod at a time, and one that is not ready
 * anyway does not hold a node back. A single replica has none, or its node could never be drained. Pure.
 */
import type { AnyObject } from '../api/objects.ts';
import { ownerReference, serviceSelector } from './labels.ts';

export function podDisruptionBudget(service: AnyObject): AnyObject {
  const { name, namespace = '' } = service.metadata;
  return {
    apiVersion: 'policy/v1',
    kind: 'PodDisruptionBudget',
    metadata: {
      name,
      namespace,
      labels: serviceSelector(name),
      ownerReferences: [ownerReference(service)],
    },
    spec: {
      maxUnavailable: 1,
      selector: { matchLabels: serviceSelector(name) },
      unhealthyPodEvictionPolicy: 'AlwaysAllow',
    },
  };
}
