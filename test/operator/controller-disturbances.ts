/** A line to the real API server that can be cut, and the server itself killed and started again. Linux: reads /proc. */
import { readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { type Child, startChild } from '../../local/child.ts';
import { childEnvironment } from '../../local/config.ts';
import { type ConnectedKubeClient, createKubeClient } from '../../operator/kube/rest-client.ts';
import type { TestControlPlane } from '../support/control-plane.ts';
import { folder } from './kube-fault-server.ts';

export interface Wire {
  /** Reaches the API server over this wire only. */
  readonly client: ConnectedKubeClient;
  /** Breaks all connections there are. */
  reset(): void;
  /** From now on nothing passes, in either direction, and nobody is told. */
  hush(): void;
}

export async function wire(t: TestContext, plane: TestControlPlane): Promise<Wire> {
  const { hostname, port } = new URL(plane.url);
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(port), hostname);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        near.destroy();
        far.destroy();
      });
    }
    near.pipe(far).pipe(near);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port: ownPort } = server.address() as { port: number };
  const file = path.join(folder(t), 'kubeconfig');
  writeFileSync(
    file,
    readFileSync(plane.kubeconfig, 'utf8').replace(plane.url, `https://127.0.0.1:${ownPort}`),
  );
  const client = createKubeClient({ kubeconfig: file });
  const reset = () => {
    for (const socket of sockets) socket.resetAndDestroy();
  };
  t.after(() => {
    client.close();
    server.close();
    reset();
  });
  return {
    client,
    reset,
    hush: () => {
      for (const socket of sockets) {
        socket.unpipe();
        socket.pause();
      }
    },
  };
}

/** kill -9, and the same program with the same arguments again; resolves when it is ready. */
export async function restartApiServer(t: TestContext, plane: TestControlPlane): Promise<void> {
  const old = plane.processes['kube-apiserver']!;
  const [command, ...args] = readFileSync(`/proc/${old.pid}/cmdline`, 'utf8').split('\0').filter(Boolean);
  old.kill('SIGKILL');
  await old.exited;
  const child: Child = await startChild({
    name: 'kube-apiserver',
    command: command!,
    args,
    directory: plane.directory,
    environment: childEnvironment(),
    logFile: old.logFile,
    guard: plane.guard,
  });
  t.after(() => child.stop(1_000));
  while (child.running && !(await plane.client.getText('/readyz').catch(() => ''))) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
