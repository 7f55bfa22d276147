/** The downward API: what a pod may learn about itself. Pure. */
import type { Pod, ResourceFieldRef } from './pod-types.ts';
import { divideQuantity } from './quantity.ts';

export interface PodAddresses {
  readonly podIP: string;
  readonly hostIP: string;
}

/** Undefined for a path that there is no value for. */
export function readField(pod: Pod, fieldPath: string, addresses: PodAddresses): string | undefined {
  const { metadata, spec } = pod;
  const keyed = /^metadata\.(labels|annotations)\['([^']+)'\]$/.exec(fieldPath);
  if (keyed) return metadata[keyed[1] as 'labels' | 'annotations']?.[keyed[2]!] ?? '';
  switch (fieldPath) {
    case 'metadata.name':
      return metadata.name;
    case 'metadata.namespace':
      return metadata.namespace;
    case 'metadata.uid':
      return metadata.uid;
    case 'metadata.labels':
      return mapLines(metadata.labels);
    case 'metadata.annotations':
      return mapLines(metadata.annotations);
    case 'spec.nodeName':
      return spec.nodeName;
    case 'spec.serviceAccountName':
      return spec.serviceAccountName;
    case 'status.podIP':
    case 'status.podIPs':
      return addresses.podIP;
    case 'status.hostIP':
    case 'status.hostIPs':
      return addresses.hostIP;
    default:
      return undefined;
  }
}

/** A limit that is not set is the node's own capacity, a request that is not set is zero. */
export function readResource(
  pod: Pod,
  ref: ResourceFieldRef,
  ownContainer: string,
  allocatable: Readonly<Record<string, string>>,
): string | undefined {
  const name = ref.containerName || ownContainer;
  const container = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])].find(
    (candidate) => candidate.name === name,
  );
  const match = /^(limits|requests)\.(.+)$/.exec(ref.resource);
  if (!container || !match) return undefined;
  const [, kind, resource] = match as unknown as [string, 'limits' | 'requests', string];
  const quantity =
    container.resources?.[kind]?.[resource] ?? (kind === 'limits' ? (allocatable[resource] ?? '0') : '0');
  return divideQuantity(quantity, ref.divisor);
}

function mapLines(map: Readonly<Record<string, string>> | undefined): string {
  return Object.entries(map ?? {})
    .toSorted(([left], [right]) => (left < right ? -1 : 1))
    .map(([key, value]) => `${key}=${JSON.stringify(value)}`)
    .join('\n');
}
