/** A small HTTP server of GET routes, for probes and metrics. Must not know what it serves. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Answer {
  readonly status: number;
  readonly body: string;
  readonly contentType?: string;
}

export type Routes = Readonly<Record<string, () => Answer | Promise<Answer>>>;

export interface RunningServer {
  readonly port: number;
  close(): Promise<void>;
}

/** Rejects when the port is taken. */
export async function serveRoutes(host: string, port: number, routes: Routes): Promise<RunningServer> {
  const server = createServer(async (request, response) => {
    const route = routes[(request.url ?? '').split('?')[0]!];
    const answer = await answerOf(request.method ?? '', route);
    response.writeHead(answer.status, { 'content-type': answer.contentType ?? 'text/plain; charset=utf-8' });
    response.end(request.method === 'HEAD' ? undefined : answer.body);
  });
  await listen(server, host, port);
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answerOf(method: string, route: Routes[string] | undefined): Promise<Answer> {
  if (route === undefined) return { status: 404, body: 'not found\n' };
  if (method !== 'GET' && method !== 'HEAD') return { status: 405, body: 'only GET\n' };
  try {
    return await route();
  } catch (error) {
    return { status: 500, body: `${(error as Error).message}\n` };
  }
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
