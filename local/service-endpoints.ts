/**
 * Which addresses a Service's port forwards to, as kube-proxy decides it. In: Services and EndpointSlices. Out: plain
 * lists. Pure.
 */
import type { KubeObject } from '../operator/kube/client.ts';

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

export interface ServicePort {
  /** namespace/name of the Service. */
  readonly service: string;
  readonly portName: string;
  readonly clusterIp: string;
  readonly port: number;
  /** For new connections: the ready endpoints or, while there are none, those that still serve though they end. */
  readonly endpoints: readonly Endpoint[];
}

interface EndpointSlice extends KubeObject {
  readonly addressType: string;
  readonly endpoints?: readonly {
    readonly addresses: readonly string[];
    readonly conditions?: {
      readonly ready?: boolean;
      readonly serving?: boolean;
      readonly terminating?: boolean;
    };
  }[];
  readonly ports?: readonly { readonly name?: string; readonly port?: number; readonly protocol?: string }[];
}

/**
 * TCP ports of the Services that have a cluster IP. default/kubernetes is left out: it has no endpoints here, and its
 * address is the same for every control plane on the machine.
 */
export function servicePorts(services: Iterable<KubeObject>, slices: Iterable<KubeObject>): ServicePort[] {
  const slicesOf = new Map<string, EndpointSlice[]>();
  for (const slice of slices as Iterable<EndpointSlice>) {
    const service = slice.metadata.labels?.['kubernetes.io/service-name'];
    if (service === undefined || slice.addressType !== 'IPv4') continue;
    const key = `${slice.metadata.namespace}/${service}`;
    const known = slicesOf.get(key);
    if (known === undefined) slicesOf.set(key, [slice]);
    else known.push(slice);
  }
  const result: ServicePort[] = [];
  for (const service of services) {
    const key = `${service.metadata.namespace}/${service.metadata.name}`;
    const { clusterIP, ports = [], type } = service.spec ?? {};
    if (!clusterIP || clusterIP === 'None' || type === 'ExternalName' || key === 'default/kubernetes')
      continue;
    for (const { name = '', port, protocol = 'TCP' } of ports) {
      if (protocol !== 'TCP') continue;
      const endpoints = endpointsOf(slicesOf.get(key) ?? [], name);
      result.push({ service: key, portName: name, clusterIp: clusterIP, port, endpoints });
    }
  }
  return result;
}

function endpointsOf(slices: readonly EndpointSlice[], portName: string): Endpoint[] {
  const ready: Endpoint[] = [];
  const draining: Endpoint[] = [];
  for (const slice of slices) {
    const port = slice.ports?.find((candidate) => (candidate.name ?? '') === portName)?.port;
    if (port === undefined) continue;
    for (const { addresses, conditions } of slice.endpoints ?? []) {
      const address = addresses[0];
      if (address === undefined) continue;
      // Absent means true, except for terminating.
      if (conditions?.ready !== false) ready.push({ address, port });
      else if (conditions.serving === true && conditions.terminating === true)
        draining.push({ address, port });
    }
  }
  return unique(ready.length > 0 ? ready : draining);
}

/** An endpoint may be in two slices for a moment. In a stable order, for round robin. */
function unique(endpoints: readonly Endpoint[]): Endpoint[] {
  const byKey = new Map(endpoints.map((endpoint) => [`${endpoint.address}:${endpoint.port}`, endpoint]));
  return [...byKey.keys()].sort().map((key) => byKey.get(key)!);
}
