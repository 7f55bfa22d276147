/** An HTTP server that answers as a test says, with a kubeconfig for it: what a real API server does not do at will. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';
import {
  type ConnectedKubeClient,
  createKubeClient,
  type KubeClientOptions,
} from '../../operator/kube/rest-client.ts';

export type Handler = (request: IncomingMessage & { body: string }, response: ServerResponse) => void;

export interface FaultServer {
  readonly url: string;
  readonly client: ConnectedKubeClient;
  /** Method and path of each request, in order. */
  readonly requests: string[];
  handler: Handler;
  closeConnections(): void;
}

export async function faultServer(
  t: TestContext,
  handler: Handler,
  options: KubeClientOptions & { user?: object } = {},
): Promise<FaultServer> {
  const server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8');
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => {
      faults.requests.push(`${request.method} ${request.url}`);
      faults.handler(Object.assign(request, { body }), response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const { user = {}, ...clientOptions } = options;
  const client = createKubeClient({ kubeconfig: kubeconfig(t, { server: url, user }), ...clientOptions });
  const faults: FaultServer = {
    url,
    client,
    requests: [],
    handler,
    closeConnections: () => server.closeAllConnections(),
  };
  t.after(() => {
    client.close();
    server.closeAllConnections();
    server.close();
  });
  return faults;
}

/** A kubeconfig file with one cluster and one user, removed after the test. */
export function kubeconfig(t: TestContext, { server, user = {} }: { server: string; user?: object }): string {
  const file = path.join(folder(t), 'kubeconfig');
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'test',
    contexts: [{ name: 'test', context: { cluster: 'test', user: 'test', namespace: 'from-context' } }],
    clusters: [{ name: 'test', cluster: { server, 'insecure-skip-tls-verify': true } }],
    users: [{ name: 'test', user }],
  };
  writeFileSync(file, JSON.stringify(config));
  return file;
}

export function folder(t: TestContext): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'sluice-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export function answer(response: ServerResponse, code: number, body: unknown, headers = {}): void {
  response.writeHead(code, { 'content-type': 'application/json', ...headers });
  response.end(typeof body === 'string' ? body : JSON.stringify(body));
}

export function status(code: number, reason: string, message: string, details?: object): object {
  return { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message, details };
}

export function event(type: string, name: string, resourceVersion: number, more: object = {}): string {
  const object = {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: { namespace: 'test', name, uid: name, resourceVersion: String(resourceVersion) },
    ...more,
  };
  return `${JSON.stringify({ type, object })}\n`;
}
