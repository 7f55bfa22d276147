/**
 * Stands between a program and a real API server, passes everything on, and counts the changes that the program makes in one
 * namespace. At the n-th it can cut: before the server has seen it, or when the server has done it and the program does not
 * know yet. Ends with the test.
 */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { request } from 'node:https';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { buffer } from 'node:stream/consumers';
import type { TestContext } from 'node:test';
import type { ControlPlane } from '../../local/control-plane.ts';
import { Credentials } from '../../operator/kube/credentials.ts';

interface Cut {
  /** From 1. */
  readonly change: number;
  readonly side: 'before' | 'after';
  /** What happens instead of the answer, which never comes. */
  readonly happen: () => Promise<void>;
}

export interface CountingProxy {
  readonly kubeconfig: string;
  /** Changes since the count began, as in `PATCH deployments/chat-1`. */
  readonly changes: readonly string[];
  /** Begins a new count, in this namespace alone. */
  count(namespace: string, cut?: Cut): void;
}

export async function countingProxy(t: TestContext, plane: ControlPlane): Promise<CountingProxy> {
  const credentials = new Credentials({ kubeconfig: plane.kubeconfig });
  let counted = '';
  let cut: Cut | undefined;
  let changes: string[] = [];

  const pass = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const change = changeOf(incoming, counted);
    if (change !== undefined) changes.push(change);
    const due = change !== undefined && changes.length === cut?.change ? cut : undefined;
    const body = await buffer(incoming);
    if (due?.side === 'before') {
      await due.happen();
      outgoing.destroy();
      return;
    }
    const { agent, headers } = await credentials.authenticate();
    const forwarded = request(new URL(incoming.url!, credentials.server), {
      method: incoming.method!,
      agent,
      headers: { ...incoming.headers, host: credentials.server.host, ...headers },
    });
    // A watch lasts as long as its reader.
    outgoing.on('close', () => forwarded.destroy());
    forwarded.end(body);
    const [answer] = (await once(forwarded, 'response')) as [IncomingMessage];
    if (due !== undefined) {
      await buffer(answer);
      await due.happen();
      outgoing.destroy();
      return;
    }
    outgoing.writeHead(answer.statusCode!, answer.headers);
    outgoing.flushHeaders();
    answer.on('error', () => outgoing.destroy());
    answer.pipe(outgoing);
  };

  const server = createServer((incoming, outgoing) => {
    pass(incoming, outgoing).catch(() => outgoing.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
    credentials.close();
  });
  const { port } = server.address() as AddressInfo;
  const kubeconfig = path.join(plane.directory, `counting-proxy-${port}.json`);
  writeFileSync(
    kubeconfig,
    JSON.stringify({
      apiVersion: 'v1',
      kind: 'Config',
      // Said so that HTTP is accepted.
      clusters: [
        { name: 'proxy', cluster: { server: `http://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true } },
      ],
      users: [{ name: 'anyone', user: {} }],
      contexts: [{ name: 'proxy', context: { cluster: 'proxy', user: 'anyone' } }],
      'current-context': 'proxy',
    }),
  );
  return {
    kubeconfig,
    get changes() {
      return changes;
    },
    count(namespace, wanted) {
      counted = namespace;
      cut = wanted;
      changes = [];
    },
  };
}

/**
 * What a request changes in the namespace; undefined for none. A dry run changes nothing; Events are told beside the work, at
 * times of their own, so that counting them would make it chance which change is the n-th.
 */
function changeOf({ method = '', url = '' }: IncomingMessage, namespace: string): string | undefined {
  const { pathname, searchParams } = new URL(url, 'http://server');
  const place = `/namespaces/${namespace}/`;
  const at = pathname.indexOf(place);
  if (method === 'GET' || at < 0 || searchParams.has('dryRun')) return undefined;
  const what = pathname.slice(at + place.length);
  return what === 'events' || what.startsWith('events/') ? undefined : `${method} ${what}`;
}
