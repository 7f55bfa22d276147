/**
 * The part of the kubelet's HTTPS endpoint that the API server asks for logs: GET /containerLogs/{namespace}/{pod}/
 * {container}. Anything else is declined in words. In: a way to find a container's log; out: an address.
 */
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import type { CertificateAuthority } from '../certificates.ts';
import type { ContainerLog, LogLine } from './container-log.ts';

export type LogFinder = (query: {
  readonly namespace: string;
  readonly pod: string;
  readonly container: string;
  readonly previous: boolean;
}) => ContainerLog | { readonly missing: string };

export interface KubeletServer {
  readonly port: number;
  close(): Promise<void>;
}

export interface KubeletServerOptions {
  readonly host: string;
  readonly authority: CertificateAuthority;
  /** Only the authority's own clients are answered; otherwise anyone who reaches `host`. */
  readonly requireClientCertificate: boolean;
  readonly findLog: LogFinder;
}

export async function startKubeletServer(options: KubeletServerOptions): Promise<KubeletServer> {
  const { keyPem, certificatePem } = options.authority.issue({
    commonName: `process-node@${options.host}`,
    hosts: [options.host, 'localhost'],
  });
  const server = https.createServer(
    {
      key: keyPem,
      cert: certificatePem,
      ...(options.requireClientCertificate
        ? { ca: options.authority.certificatePem, requestCert: true, rejectUnauthorized: true }
        : {}),
    },
    (request, response) => answer(request, response, options.findLog),
  );
  server.listen(0, options.host);
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function answer(request: IncomingMessage, response: ServerResponse, findLog: LogFinder): void {
  const url = new URL(request.url ?? '/', 'https://node');
  const [, verb, namespace, pod, container] = url.pathname.split('/').map(decodeURIComponent);
  const refuse = (status: number, message: string) => {
    response.writeHead(status, { 'content-type': 'text/plain' });
    response.end(`${message}\n`);
  };
  if (verb === 'healthz') {
    refuse(200, 'ok');
  } else if (verb !== 'containerLogs' || !namespace || !pod || !container) {
    refuse(
      501,
      `a process node serves logs only, not ${url.pathname}: exec, attach and port-forward do not exist here`,
    );
  } else {
    const log = findLog({ namespace, pod, container, previous: url.searchParams.get('previous') === 'true' });
    if ('missing' in log) refuse(400, log.missing);
    else sendLog(log, url.searchParams, response);
  }
}

function sendLog(log: ContainerLog, parameters: URLSearchParams, response: ServerResponse): void {
  const withTime = parameters.get('timestamps') === 'true';
  const since = sinceTime(parameters);
  let left = Number(parameters.get('limitBytes') ?? Number.POSITIVE_INFINITY);
  const send = (line: LogLine) => {
    if (left <= 0) return;
    const bytes = Buffer.from(`${withTime ? `${line.time} ` : ''}${line.text}\n`, 'utf8').subarray(
      0,
      Math.min(left, Number.MAX_SAFE_INTEGER),
    );
    left -= bytes.length;
    response.write(bytes);
  };
  let lines = log.read().filter((line) => since === undefined || line.time >= since);
  const tail = parameters.get('tailLines');
  if (tail !== null && tail !== '') lines = Number(tail) === 0 ? [] : lines.slice(-Number(tail));
  response.writeHead(200, { 'content-type': 'text/plain' });
  // So that a reader knows at once that its container is there.
  response.flushHeaders();
  for (const line of lines) send(line);
  if (parameters.get('follow') !== 'true') {
    response.end();
    return;
  }
  const stop = log.follow((line) => {
    if (line) send(line);
    else response.end();
  });
  response.once('close', stop);
}

function sinceTime(parameters: URLSearchParams): string | undefined {
  const seconds = parameters.get('sinceSeconds');
  if (seconds) return new Date(Date.now() - Number(seconds) * 1000).toISOString();
  const time = parameters.get('sinceTime');
  return time ? new Date(time).toISOString() : undefined;
}
