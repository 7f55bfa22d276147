/**
 * One probe, or one HTTP hook, carried out: an HTTP request, a TCP connection, a command. In: the action and where the
 * container is; out: whether it succeeded and, in a kubelet's words, why not. Must not know thresholds or containers'
 * lives; see prober.ts.
 */
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import type { ContainerPort, HttpGetAction, Probe, TcpSocketAction } from './pod-types.ts';
import type { ExecResult } from './sandbox.ts';

export interface ProbeTarget {
  readonly podIP: string;
  readonly ports: readonly ContainerPort[];
  readonly exec: (command: readonly string[], timeoutMs: number) => Promise<ExecResult>;
}

export interface ProbeOutcome {
  readonly ok: boolean;
  readonly message: string;
}

const bodyLimit = 10_240;

/** Never rejects. */
export async function executeProbe(probe: Probe, target: ProbeTarget): Promise<ProbeOutcome> {
  const timeoutMs = (probe.timeoutSeconds ?? 1) * 1000;
  if (probe.httpGet) return await probeHttp(probe.httpGet, target, timeoutMs, 'kube-probe/1.36');
  if (probe.tcpSocket) return await probeTcp(probe.tcpSocket, target, timeoutMs);
  const { code, output } = await target.exec(probe.exec?.command ?? [], timeoutMs);
  if (code === undefined) return { ok: false, message: `command timed out after ${timeoutMs / 1000}s` };
  return { ok: code === 0, message: output.trim() || `command exited with code ${code}` };
}

/** Never rejects. Any status from 200 to 399 is a success; redirects are not followed. */
export function probeHttp(
  action: HttpGetAction,
  target: ProbeTarget,
  timeoutMs: number,
  userAgent: string,
): Promise<ProbeOutcome> {
  const port = resolvePort(action.port, target.ports);
  if (port === undefined) return Promise.resolve(unknownPort(action.port));
  const secure = action.scheme?.toUpperCase() === 'HTTPS';
  const host = action.host || target.podIP;
  const path = action.path || '/';
  const url = `${secure ? 'https' : 'http'}://${host}:${port}${path.startsWith('/') ? path : `/${path}`}`;
  const headers: Record<string, string | string[]> = { 'user-agent': userAgent, accept: '*/*' };
  for (const { name, value } of action.httpHeaders ?? []) headers[name.toLowerCase()] = value;
  return new Promise((resolve) => {
    let request: http.ClientRequest | undefined;
    const timer = setTimeout(() => {
      finish(false, `Get "${url}": context deadline exceeded (no answer within ${timeoutMs / 1000}s)`);
    }, timeoutMs);
    const finish = (ok: boolean, message: string) => {
      clearTimeout(timer);
      request?.destroy();
      resolve({ ok, message });
    };
    try {
      request = (secure ? https : http).get(
        url,
        { headers, agent: false, ...(secure ? { rejectUnauthorized: false } : {}) },
        (response) => {
          const status = response.statusCode ?? 0;
          let body = '';
          response.on('data', (chunk) => {
            if (body.length < bodyLimit) body += chunk;
          });
          response.once('error', (error) => finish(false, `Get "${url}": ${error.message}`));
          response.once('end', () => {
            if (status >= 200 && status < 400) finish(true, body);
            else finish(false, `HTTP probe failed with statuscode: ${status}`);
          });
        },
      );
      request.on('error', (error) => finish(false, `Get "${url}": ${error.message}`));
    } catch (error) {
      finish(false, `Get "${url}": ${(error as Error).message}`);
    }
  });
}

function probeTcp(action: TcpSocketAction, target: ProbeTarget, timeoutMs: number): Promise<ProbeOutcome> {
  const port = resolvePort(action.port, target.ports);
  if (port === undefined) return Promise.resolve(unknownPort(action.port));
  const host = action.host || target.podIP;
  return new Promise((resolve) => {
    const socket = net.connect({ host, port });
    const finish = (ok: boolean, message: string) => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ ok, message });
    };
    const timer = setTimeout(() => finish(false, `dial tcp ${host}:${port}: i/o timeout`), timeoutMs);
    socket.once('connect', () => finish(true, ''));
    socket.once('error', (error) => finish(false, `dial tcp ${host}:${port}: ${error.message}`));
  });
}

function resolvePort(port: number | string, ports: readonly ContainerPort[]): number | undefined {
  if (typeof port === 'number') return port;
  return ports.find((candidate) => candidate.name === port)?.containerPort ?? (Number(port) || undefined);
}

function unknownPort(port: number | string): ProbeOutcome {
  return { ok: false, message: `couldn't find port: ${port}` };
}
