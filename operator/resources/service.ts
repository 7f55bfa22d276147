/**
 * The Service of an InferenceService. It selects the runtime pods of every revision and so never changes: which of them
 * get requests is a matter of readiness and replica counts. Pure.
 */
import type { AnyObject } from '../api/objects.ts';
import { ownerReference, serviceSelector } from './labels.ts';
import { httpPortName } from './pod-template.ts';

export function clusterService(service: AnyObject): AnyObject {
  const { name, namespace = '' } = service.metadata;
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: {
      name,
      namespace,
      labels: serviceSelector(name),
      ownerReferences: [ownerReference(service)],
    },
    spec: {
      type: 'ClusterIP',
      selector: serviceSelector(name),
      ports: [{ name: 'http', port: 80, protocol: 'TCP', targetPort: httpPortName }],
    },
  };
}

export function serviceUrl(service: AnyObject): string {
  return `http://${service.metadata.name}.${service.metadata.namespace ?? ''}.svc`;
}
