/**
 * Plays kube-proxy: listens where each Service is reached and forwards TCP connections, round robin, to its endpoints.
 * With root that is the Service's own cluster IP, a /32 on lo; otherwise, or where that port is taken, a port of
 * 127.0.0.1. A Service without endpoints has no listener, so that connections are refused at once. Connections stay
 * with their endpoint until either side ends them, whatever happens to the Service.
 * In: Services and EndpointSlices. Out: where each is reached. Must not know what is served.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { type KubeClient, type KubeObject, type ResourceType, resources } from '../operator/kube/client.ts';
import type { Guard } from './guard.ts';
import {
  addLoopbackAddress,
  loopbackProblem,
  removeLoopbackAddress,
  removeStaleLoopbackAddresses,
} from './loopback.ts';
import { follow } from './node/follow.ts';
import { freePort } from './ports.ts';
import { type Endpoint, type ServicePort, servicePorts } from './service-endpoints.ts';

export interface ServiceProxyOptions {
  readonly client: KubeClient;
  readonly guard: Guard;
  /** False: never cluster IPs, always ports of 127.0.0.1. Default: cluster IPs where the machine allows it. */
  readonly clusterIps?: boolean;
  /** One line about what a user should know. */
  readonly onMessage?: (line: string) => void;
}

export interface ServiceProxy {
  /** Why Services are reached by ports of 127.0.0.1, in words; undefined when by their own addresses. */
  readonly hostPortsBecause: string | undefined;
  /** Where a Service's port is reached, as host:port, whether or not it has endpoints; undefined when not known yet. */
  addressOf(service: string, port: number): string | undefined;
  /** Ends all connections and removes the addresses. */
  stop(): Promise<void>;
}

export async function startServiceProxy(options: ServiceProxyOptions): Promise<ServiceProxy> {
  const { client, guard, onMessage = () => {} } = options;
  const hostPortsBecause = options.clusterIps === false ? 'it was asked for' : await loopbackProblem();
  if (hostPortsBecause === undefined) await removeStaleLoopbackAddresses();

  const abort = new AbortController();
  const forwarders = new Map<string, Forwarder>();
  /** Of Services that are gone: their connections still need the address. */
  const draining = new Set<Forwarder>();
  const addresses = new ClusterAddresses(guard);
  const services = new Map<string, KubeObject>();
  const slices = new Map<string, KubeObject>();

  /** One at a time, and once more when something changed meanwhile. */
  let running: Promise<void> | undefined;
  let changed = false;
  const changeSeen = () => {
    changed = true;
    running ??= (async () => {
      while (changed && !abort.signal.aborted) {
        changed = false;
        await synchronize(servicePorts(services.values(), slices.values()));
      }
      running = undefined;
    })();
  };

  const synchronize = async (wanted: readonly ServicePort[]) => {
    const byKey = new Map(wanted.map((port) => [`${port.service}|${port.port}|${port.clusterIp}`, port]));
    for (const [key, forwarder] of forwarders) {
      if (byKey.has(key)) continue;
      forwarders.delete(key);
      draining.add(forwarder);
      forwarder.drain().then(() => {
        draining.delete(forwarder);
        changeSeen();
      });
    }
    const wantedIps = new Set(wanted.map((port) => port.clusterIp));
    for (const forwarder of draining) wantedIps.add(forwarder.host);
    wantedIps.delete('127.0.0.1');
    if (hostPortsBecause === undefined) await addresses.keep(wantedIps, onMessage);
    for (const [key, port] of byKey) {
      let forwarder = forwarders.get(key);
      if (forwarder === undefined) {
        forwarder = await newForwarder(port);
        forwarders.set(key, forwarder);
      }
      await forwarder.use(port.endpoints);
    }
  };

  const newForwarder = async (port: ServicePort): Promise<Forwarder> => {
    const { service, clusterIp } = port;
    if (hostPortsBecause !== undefined) return new Forwarder('127.0.0.1', await freePort());
    const problem = addresses.has(clusterIp)
      ? await listenProblem(clusterIp, port.port)
      : 'its address is not ours';
    if (problem === undefined) return new Forwarder(clusterIp, port.port);
    const hostPort = await freePort();
    onMessage(
      `Service ${service}: ${clusterIp}:${port.port} cannot be used (${problem}); it is at 127.0.0.1:${hostPort}`,
    );
    return new Forwarder('127.0.0.1', hostPort);
  };

  const mirror = (type: ResourceType, objects: Map<string, KubeObject>) =>
    follow(client, type, {
      signal: abort.signal,
      onList: (list) => {
        objects.clear();
        for (const object of list) objects.set(keyOf(object), object);
        changeSeen();
      },
      onEvent: (event, object) => {
        if (event === 'DELETED') objects.delete(keyOf(object));
        else objects.set(keyOf(object), object);
        changeSeen();
      },
      // It is tried again, and meanwhile all stays as it is.
      onFailure: () => {},
    });
  const mirrors = [mirror(resources.services, services), mirror(resources.endpointSlices, slices)];

  return {
    hostPortsBecause,
    addressOf(service, port) {
      for (const [key, forwarder] of forwarders) {
        if (key.startsWith(`${service}|${port}|`)) return `${forwarder.host}:${forwarder.port}`;
      }
      return undefined;
    },
    async stop() {
      abort.abort();
      await Promise.all([...mirrors, running]);
      for (const forwarder of [...forwarders.values(), ...draining]) forwarder.destroy();
      await addresses.keep(new Set(), onMessage);
    },
  };
}

/** The cluster IPs that are ours on lo. */
class ClusterAddresses {
  readonly #guard: Guard;
  readonly #held = new Set<string>();
  readonly #refused = new Set<string>();

  constructor(guard: Guard) {
    this.#guard = guard;
  }

  has(address: string): boolean {
    return this.#held.has(address);
  }

  async keep(wanted: ReadonlySet<string>, onMessage: (line: string) => void): Promise<void> {
    for (const address of this.#held) {
      if (wanted.has(address)) continue;
      this.#held.delete(address);
      await removeLoopbackAddress(address, this.#guard);
    }
    for (const address of wanted) {
      if (this.#held.has(address) || this.#refused.has(address)) continue;
      try {
        await addLoopbackAddress(address, this.#guard);
        this.#held.add(address);
      } catch (error) {
        this.#refused.add(address);
        onMessage((error as Error).message);
      }
    }
  }
}

/** Connections to one port of one Service. Listens only while there are endpoints. */
class Forwarder {
  readonly host: string;
  readonly port: number;
  readonly #connections = new Set<Socket>();
  #endpoints: readonly Endpoint[] = [];
  #next = 0;
  #server: Server | undefined;

  constructor(host: string, port: number) {
    this.host = host;
    this.port = port;
  }

  async use(endpoints: readonly Endpoint[]): Promise<void> {
    this.#endpoints = endpoints;
    if (endpoints.length === 0) this.#stopListening();
    else if (this.#server === undefined) await this.#listen();
  }

  /** Takes no more connections; resolves when the last has ended. */
  async drain(): Promise<void> {
    this.#stopListening();
    while (this.#connections.size > 0) {
      const [connection] = this.#connections;
      await new Promise((resolve) => connection!.once('close', resolve));
    }
  }

  destroy(): void {
    this.#stopListening();
    for (const socket of this.#connections) socket.destroy();
  }

  async #listen(): Promise<void> {
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#forward(socket));
    this.#server = server;
    await new Promise<void>((resolve) => {
      server.once('listening', resolve);
      // The port was free when it was chosen; taken since, it is tried again at the next change.
      server.once('error', () => {
        this.#server = undefined;
        resolve();
      });
      server.listen({ host: this.host, port: this.port, backlog: 4096 });
    });
  }

  /** Closes the listening socket at once; connections go on. */
  #stopListening(): void {
    this.#server?.close();
    this.#server = undefined;
  }

  #forward(socket: Socket): void {
    const endpoint = this.#endpoints[this.#next++ % this.#endpoints.length];
    if (endpoint === undefined) {
      socket.resetAndDestroy();
      return;
    }
    // As with kube-proxy the choice is final: an endpoint that refuses makes the client see a reset.
    const upstream = connect({
      host: endpoint.address,
      port: endpoint.port,
      allowHalfOpen: true,
      noDelay: true,
    });
    this.#connections.add(socket);
    this.#connections.add(upstream);
    for (const [one, other] of [
      [socket, upstream],
      [upstream, socket],
    ] as const) {
      one.on('error', () => other.resetAndDestroy());
      one.once('close', () => {
        this.#connections.delete(one);
        // Nobody is left to read what it might still send.
        other.destroySoon();
      });
      one.pipe(other);
    }
  }
}

/** Undefined when one can listen there. */
function listenProblem(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', (error) => resolve(error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(undefined)));
  });
}

function keyOf({ metadata }: KubeObject): string {
  return `${metadata.namespace}/${metadata.name}`;
}
