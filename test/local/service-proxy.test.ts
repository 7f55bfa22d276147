/** The service proxy against a real API server: Services and EndpointSlices in, TCP connections through. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import os from 'node:os';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Guard, startGuard } from '../../local/guard.ts';
import { loopbackProblem } from '../../local/loopback.ts';
import { type ServiceProxy, startServiceProxy } from '../../local/service-proxy.ts';
import { type KubeObject, resources } from '../../operator/kube/client.ts';
import { controlPlane, type TestControlPlane } from '../support/control-plane.ts';

/** An endpoint may not be a loopback address. */
const hostAddress = Object.values(os.networkInterfaces())
  .flat()
  .find((address) => address?.family === 'IPv4' && !address.internal)?.address;

interface Backend {
  readonly port: number;
  readonly sockets: Set<Socket>;
  close(): Promise<void>;
}

/** Greets with its name, then echoes. */
async function startBackend(name: string): Promise<Backend> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    socket.on('error', () => {});
    socket.write(`${name}\n`);
    socket.pipe(socket);
  });
  server.listen({ host: '0.0.0.0', port: 0 });
  await once(server, 'listening');
  return {
    port: (server.address() as { port: number }).port,
    sockets,
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

async function readUntil(socket: Socket, text: string): Promise<string> {
  let read = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    read += chunk;
    if (read.includes(text)) return read;
  }
  return assert.fail(`the connection ended after ${JSON.stringify(read)}; expected ${JSON.stringify(text)}`);
}

async function eventually<T>(
  what: string,
  attempt: () => Promise<T | undefined> | T | undefined,
): Promise<T> {
  for (let tries = 0; tries < 600; tries++) {
    const result = await attempt();
    if (result !== undefined) return result;
    await sleep(50);
  }
  return assert.fail(`did not happen: ${what}`);
}

/** The code of the error that connecting ends with, or undefined when it succeeds. */
function connectError(address: string): Promise<string | undefined> {
  const [host, port] = address.split(':');
  return new Promise((resolve) => {
    const socket = connect({ host: host!, port: Number(port) });
    socket.once('connect', () => {
      socket.destroy();
      resolve(undefined);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code));
  });
}

async function greeting(address: string): Promise<string> {
  const [host, port] = address.split(':');
  const socket = connect({ host: host!, port: Number(port) });
  await once(socket, 'connect');
  const text = await readUntil(socket, '\n');
  socket.destroy();
  return text.trim();
}

const modes = [
  { title: 'by ports of 127.0.0.1', clusterIps: false },
  { title: 'by cluster IPs on lo', clusterIps: true },
];

for (const { title, clusterIps } of modes) {
  const reason = clusterIps ? await loopbackProblem() : undefined;
  const skip = reason === undefined ? false : `this machine cannot: ${reason}`;

  describe(`the service proxy, ${title}`, { skip }, () => {
    let plane: TestControlPlane;
    let guard: Guard;
    let proxy: ServiceProxy;
    let namespace: string;
    let a: Backend;
    let b: Backend;

    before(async (t) => {
      assert.ok(hostAddress, 'this test needs an IPv4 address that is not loopback');
      plane = await controlPlane(t);
      guard = startGuard();
      proxy = await startServiceProxy({ client: plane.client, guard, clusterIps });
      namespace = `proxy-${clusterIps ? 'ip' : 'port'}`;
      await plane.client.create(resources.namespaces, {
        apiVersion: 'v1',
        kind: 'Namespace',
        metadata: { name: namespace },
      });
      a = await startBackend('a');
      b = await startBackend('b');
    });

    after(async () => {
      await Promise.all([a.close(), b.close()]);
      await proxy.stop();
      await guard.close();
    });

    async function createService(name: string): Promise<string> {
      await plane.client.create(resources.services, {
        apiVersion: 'v1',
        kind: 'Service',
        metadata: { name, namespace },
        spec: { ports: [{ name: 'http', port: 80, targetPort: 8000 }] },
      });
      return eventually('the proxy knows the Service', () => proxy.addressOf(`${namespace}/${name}`, 80));
    }

    /** One slice per endpoint, as backends listen on ports of one address. */
    async function setEndpoint(service: string, backend: Backend, conditions: object): Promise<void> {
      const slice: KubeObject = {
        apiVersion: 'discovery.k8s.io/v1',
        kind: 'EndpointSlice',
        metadata: {
          name: `${service}-${backend.port}`,
          namespace,
          labels: { 'kubernetes.io/service-name': service },
        },
        addressType: 'IPv4',
        ports: [{ name: 'http', port: backend.port, protocol: 'TCP' }],
        endpoints: [{ addresses: [hostAddress], conditions }],
      };
      await plane.client.apply(resources.endpointSlices, slice, { fieldManager: 'test', force: true });
    }
    const ready = { ready: true, serving: true, terminating: false };
    const draining = { ready: false, serving: true, terminating: true };
    const ended = { ready: false, serving: false, terminating: true };

    test('connections go to all ready endpoints in turn', async () => {
      const address = await createService('turn');
      await setEndpoint('turn', a, ready);
      await setEndpoint('turn', b, ready);
      await eventually('both answer', async () => {
        if ((await connectError(address)) !== undefined) return undefined;
        const names = [await greeting(address), await greeting(address)];
        return new Set(names).size === 2 ? true : undefined;
      });
      const counts: Record<string, number> = { a: 0, b: 0 };
      for (let connection = 0; connection < 10; connection++) counts[await greeting(address)]!++;
      assert.deepEqual(counts, { a: 5, b: 5 });
    });

    test('without a ready endpoint a connection is refused, not left hanging', async () => {
      const address = await createService('empty');
      assert.equal(await connectError(address), 'ECONNREFUSED');
      await setEndpoint('empty', a, ready);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      await setEndpoint('empty', a, ended);
      await eventually('it is refused again', async () =>
        (await connectError(address)) === 'ECONNREFUSED' ? true : undefined,
      );
    });

    test('a connection outlives its endpoint’s readiness and its Service, new ones go elsewhere', async () => {
      const address = await createService('drain');
      await setEndpoint('drain', a, ready);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      const [host, port] = address.split(':');
      const old = connect({ host: host!, port: Number(port) });
      await once(old, 'connect');
      assert.equal(await readUntil(old, '\n'), 'a\n');

      await setEndpoint('drain', a, draining);
      await setEndpoint('drain', b, ready);
      await eventually('new ones go to b', async () =>
        (await greeting(address)) === 'b' ? true : undefined,
      );
      for (let connection = 0; connection < 4; connection++) assert.equal(await greeting(address), 'b');
      old.write('still here');
      assert.equal(await readUntil(old, 'still here'), 'still here');

      await plane.client.remove(resources.services, { namespace, name: 'drain' });
      await eventually('the Service is forgotten', () =>
        proxy.addressOf(`${namespace}/drain`, 80) === undefined ? true : undefined,
      );
      old.write('and here');
      assert.equal(await readUntil(old, 'and here'), 'and here');
      old.destroy();
    });

    test('while all endpoints drain, new connections still go to one that serves', async () => {
      const address = await createService('last');
      await setEndpoint('last', a, draining);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      assert.equal(await greeting(address), 'a');
    });

    test('an endpoint that refuses makes the client see a reset, and one that dies ends its connections', async () => {
      const address = await createService('dead');
      const doomed = await startBackend('doomed');
      await setEndpoint('dead', doomed, ready);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      const [host, port] = address.split(':');
      const open = connect({ host: host!, port: Number(port) });
      await once(open, 'connect');
      await readUntil(open, '\n');
      const closed = once(open, 'close');
      open.on('error', () => {});
      open.resume();
      await doomed.close();
      await closed;

      const refused = connect({ host: host!, port: Number(port) });
      refused.resume();
      const [error] = await once(refused, 'error');
      assert.equal((error as NodeJS.ErrnoException).code, 'ECONNRESET');
    });

    test('a client that goes away is seen by the endpoint', async () => {
      const address = await createService('away');
      const backend = await startBackend('c');
      await setEndpoint('away', backend, ready);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      await eventually('probes are gone', () => (backend.sockets.size === 0 ? true : undefined));
      const [host, port] = address.split(':');
      const client = connect({ host: host!, port: Number(port) });
      await once(client, 'connect');
      await readUntil(client, '\n');
      assert.equal(backend.sockets.size, 1);
      client.resetAndDestroy();
      await eventually('the backend lost it', () => (backend.sockets.size === 0 ? true : undefined));
      await backend.close();
    });

    test('half-closed connections still carry the answer', async () => {
      const address = await createService('half');
      await setEndpoint('half', a, ready);
      await eventually('it is accepted', async () =>
        (await connectError(address)) === undefined ? true : undefined,
      );
      const [host, port] = address.split(':');
      const client = connect({ host: host!, port: Number(port), allowHalfOpen: true });
      client.end('the whole request');
      let answer = '';
      for await (const chunk of client) answer += chunk;
      assert.equal(answer, 'a\nthe whole request');
    });
  });
}
