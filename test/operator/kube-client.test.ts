/** The real client against a server that misbehaves, and against credentials that change. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { connect, createServer as createTcpServer, type Socket } from 'node:net';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { createServer as createTlsServer } from 'node:tls';
import { createCertificateAuthority } from '../../local/certificates.ts';
import { KubeError, type KubeObject, resources, type WatchEvent } from '../../operator/kube/client.ts';
import { createKubeClient } from '../../operator/kube/rest-client.ts';
import { SluiceError } from '../../runtime/errors.ts';
import {
  answer,
  event,
  type FaultServer,
  faultServer,
  folder,
  kubeconfig,
  status,
} from './kube-fault-server.ts';

const { configMaps } = resources;
const ref = { namespace: 'test', name: 'a' };
const object: KubeObject = {
  apiVersion: 'v1',
  kind: 'ConfigMap',
  metadata: { ...ref, resourceVersion: '1' },
};

async function thrown(promise: Promise<unknown>): Promise<KubeError> {
  const error = await promise.then(
    () => assert.fail('expected an error'),
    (cause: unknown) => cause,
  );
  assert.ok(error instanceof KubeError, String(error));
  return error;
}

/** All events of one watch, and the error that ended it. */
async function follow({ client }: FaultServer): Promise<{ events: WatchEvent[]; error: unknown }> {
  const events: WatchEvent[] = [];
  try {
    const { signal } = new AbortController();
    for await (const seen of client.watch(configMaps, { resourceVersion: '1', signal })) events.push(seen);
  } catch (error) {
    return { events, error };
  }
  return { events, error: undefined };
}

test('a watch survives events cut anywhere, inside a character too', async (t) => {
  const text = 'ä€𝄞\u2028"\\';
  const bytes = Buffer.from(event('ADDED', 'a', 2, { data: { text } }) + event('DELETED', 'b', 3));
  const faults = await faultServer(t, async (_request, response) => {
    response.writeHead(200);
    for (const byte of bytes) {
      response.write(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    response.end();
  });
  const { events, error } = await follow(faults);
  assert.equal(error, undefined);
  assert.deepEqual(
    events.map((seen) => seen.type),
    ['ADDED', 'DELETED'],
  );
  assert.equal(events[0]?.type === 'ADDED' && events[0].object.data.text, text);
});

const badWatches: Record<string, { body: string; cut?: boolean; want: [number, string]; events: number }> = {
  'an ERROR event throws its Status': {
    body:
      event('ADDED', 'a', 2) + JSON.stringify({ type: 'ERROR', object: status(410, 'Expired', 'too old') }),
    want: [410, 'Expired'],
    events: 1,
  },
  'a line that is not JSON throws': {
    body: `${event('ADDED', 'a', 2)}<html>\n`,
    want: [0, 'Unreadable'],
    events: 1,
  },
  'an event without an object throws': { body: '{"type":"ADDED"}\n', want: [0, 'Unreadable'], events: 0 },
  'an event of an unknown type throws': {
    body: event('SURPRISE', 'a', 2),
    want: [0, 'Unreadable'],
    events: 0,
  },
  'a watch that ends in the middle of an event throws': {
    body: event('ADDED', 'a', 2) + event('ADDED', 'b', 3).slice(0, 40),
    want: [0, 'Unreachable'],
    events: 1,
  },
  'a connection that breaks in the middle of an event throws': {
    body: event('ADDED', 'a', 2) + event('ADDED', 'b', 3).slice(0, 40),
    cut: true,
    want: [0, 'Unreachable'],
    events: 1,
  },
};

for (const [name, { body, cut = false, want, events: count }] of Object.entries(badWatches)) {
  test(name, async (t) => {
    const faults = await faultServer(t, (_request, response) => {
      response.writeHead(200);
      const newline = body.endsWith('\n') || want[1] !== 'Expired' ? '' : '\n';
      if (cut) response.write(body, () => response.socket!.resetAndDestroy());
      else response.end(body + newline);
    });
    const { events, error } = await follow(faults);
    assert.ok(error instanceof KubeError, String(error));
    assert.deepEqual([error.status, error.reason, events.length], [...want, count]);
  });
}

test('a bookmark is a position only', async (t) => {
  const faults = await faultServer(t, (_request, response) => {
    const bookmark = { type: 'BOOKMARK', object: { kind: 'ConfigMap', metadata: { resourceVersion: '77' } } };
    answer(response, 200, `${JSON.stringify(bookmark)}\n`);
  });
  assert.deepEqual((await follow(faults)).events, [{ type: 'BOOKMARK', resourceVersion: '77' }]);
  assert.match(faults.requests[0]!, /watch=true.*allowWatchBookmarks=true.*resourceVersion=1/);
});

test('a watch that is refused throws the answer', async (t) => {
  const faults = await faultServer(t, (_request, response) => {
    answer(response, 429, status(429, 'TooManyRequests', 'slow down', { retryAfterSeconds: 7 }));
  });
  const { error } = await follow(faults);
  assert.ok(error instanceof KubeError);
  assert.deepEqual([error.status, error.retryAfterSeconds], [429, 7]);
});

test('an answer that is no Status, as from a proxy in between, is an error with its text', async (t) => {
  const faults = await faultServer(t, (_request, response) => {
    answer(response, 503, 'upstream connect error\n', { 'retry-after': '3' });
  });
  const error = await thrown(faults.client.get(configMaps, ref));
  assert.deepEqual([error.status, error.reason, error.retryAfterSeconds], [503, 'ServiceUnavailable', 3]);
  assert.match(error.message, /503: upstream connect error/);
});

test('an answer that is not JSON is an error with its beginning', async (t) => {
  const faults = await faultServer(t, (_request, response) => answer(response, 200, '<html>hello'));
  const error = await thrown(faults.client.get(configMaps, ref));
  assert.deepEqual([error.status, error.reason], [0, 'Unreadable']);
  assert.match(error.message, /GET \/api\/v1\/namespaces\/test\/configmaps\/a: .*<html>hello/);
});

test('a server that is not there is status 0, with its address', async (t) => {
  const client = createKubeClient({ kubeconfig: kubeconfig(t, { server: 'http://127.0.0.1:9' }) });
  const error = await thrown(client.get(configMaps, ref));
  assert.deepEqual([error.status, error.reason], [0, 'Unreachable']);
  assert.match(error.message, /^GET http:\/\/127\.0\.0\.1:9\/api\/v1\/.*ECONNREFUSED/);
});

const silences: Record<string, (response: import('node:http').ServerResponse) => void> = {
  'a server that never answers': () => {},
  'a server that never ends its answer': (response) => {
    response.writeHead(200);
    response.write('{');
  },
};

for (const [name, handler] of Object.entries(silences)) {
  test(`${name} is given up after the time limit`, async (t) => {
    const faults = await faultServer(t, (_request, response) => handler(response), { requestTimeoutMs: 200 });
    const error = await thrown(faults.client.get(configMaps, ref));
    assert.deepEqual([error.status, error.reason], [0, 'Unreachable']);
  });
  test(`${name} is given up when the signal aborts`, async (t) => {
    const faults = await faultServer(t, (_request, response) => {
      handler(response);
      setImmediate(() => stop.abort(reason));
    });
    const stop = new AbortController();
    const reason = new Error('enough');
    await assert.rejects(faults.client.get(configMaps, ref, { signal: stop.signal }), reason);
  });
}

test('the time limit of a watch ends with the head of the answer', async (t) => {
  const faults = await faultServer(
    t,
    (_request, response) => {
      response.writeHead(200);
      response.flushHeaders();
      setTimeout(() => response.end(event('ADDED', 'a', 2)), 600);
    },
    { requestTimeoutMs: 200 },
  );
  const { events, error } = await follow(faults);
  assert.deepEqual([events.length, error], [1, undefined]);
});

/** Answers the first request, and breaks the kept-alive connection when the second one has arrived on it. */
async function staleConnection(t: TestContext): Promise<FaultServer> {
  let count = 0;
  return await faultServer(t, (request, response) => {
    count += 1;
    if (count === 2) request.socket.resetAndDestroy();
    else answer(response, 200, object);
  });
}

test('a request that meets a connection closed by the server is repeated on a new one', async (t) => {
  const faults = await staleConnection(t);
  await faults.client.get(configMaps, ref);
  assert.deepEqual(await faults.client.apply(configMaps, object, { fieldManager: 'one' }), object);
  assert.equal(faults.requests.length, 3);
});

test('a create is not repeated: it may have been done', async (t) => {
  const faults = await staleConnection(t);
  await faults.client.get(configMaps, ref);
  assert.equal((await thrown(faults.client.create(configMaps, object))).status, 0);
  assert.equal(faults.requests.length, 2);
});

test('a repetition asks beforeSend again', async (t) => {
  const faults = await staleConnection(t);
  await faults.client.get(configMaps, ref);
  let asked = 0;
  const beforeSend = () => {
    asked += 1;
    if (asked === 2) throw new Error('the fence');
  };
  await assert.rejects(faults.client.mergePatch(configMaps, ref, {}, { beforeSend }), /the fence/);
  assert.equal(faults.requests.length, 2);
});

test('beforeSend is asked when the connection is ready: no byte of the request leaves before', async (t) => {
  const authority = createCertificateAuthority('test');
  const { certificatePem, keyPem } = authority.issue({ commonName: 'server', hosts: ['127.0.0.1'] });
  const received: string[] = [];
  const tls = createTlsServer({ cert: certificatePem, key: keyPem }, (socket) => {
    socket.on('data', (data) => received.push(String(data)));
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => tls.listen(0, '127.0.0.1', resolve));
  // Accepts at once, but the handshake waits for the test.
  const held = Promise.withResolvers<Socket>();
  const front = createTcpServer((socket) => held.resolve(socket));
  await new Promise<void>((resolve) => front.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    tls.close();
    front.close();
  });
  const { port } = front.address() as { port: number };
  const client = createKubeClient({ kubeconfig: kubeconfig(t, { server: `https://127.0.0.1:${port}` }) });
  let leader = true;
  const beforeSend = () => {
    if (!leader) throw new Error('the fence');
  };
  const write = client.mergePatch(configMaps, ref, {}, { beforeSend });
  const outcome = assert.rejects(write, /the fence/);
  const socket = await held.promise;
  // The write was asked for while we led; while it waited for its connection, the lease was lost.
  leader = false;
  const back = connect((tls.address() as { port: number }).port, '127.0.0.1');
  for (const end of [socket, back]) end.on('error', () => {});
  socket.pipe(back).pipe(socket);
  await outcome;
  socket.destroy();
  back.destroy();
  assert.deepEqual(received, []);
  client.close();
});

test('a token file that is written anew is read again when the server says 401', async (t) => {
  const tokenFile = path.join(folder(t), 'token');
  writeFileSync(tokenFile, 'first\n');
  const tokens: (string | undefined)[] = [];
  let valid = 'first';
  const faults = await faultServer(
    t,
    (request, response) => {
      tokens.push(request.headers.authorization);
      if (request.headers.authorization === `Bearer ${valid}`) answer(response, 200, object);
      else answer(response, 401, status(401, 'Unauthorized', 'Unauthorized'));
    },
    { user: { 'auth-provider': { name: 'tokenFile', config: { tokenFile } } }, reloadIntervalMs: 0 },
  );
  assert.deepEqual(await faults.client.get(configMaps, ref), object);
  writeFileSync(tokenFile, 'second\n');
  valid = 'second';
  assert.deepEqual(await faults.client.get(configMaps, ref), object);
  valid = 'another';
  assert.equal((await thrown(faults.client.get(configMaps, ref))).status, 401);
  const [first, second] = ['Bearer first', 'Bearer second'];
  assert.deepEqual(tokens, [first, first, second, second, second]);
});

test('an exec plugin gives the token, and is run again when the server says 401', async (t) => {
  const script = path.join(folder(t), 'plugin.mjs');
  const counter = path.join(folder(t), 'counter');
  writeFileSync(counter, '0');
  writeFileSync(
    script,
    `import { readFileSync, writeFileSync } from 'node:fs';
     const count = Number(readFileSync(${JSON.stringify(counter)}, 'utf8')) + 1;
     writeFileSync(${JSON.stringify(counter)}, String(count));
     const status = { token: 'token-' + count };
     console.log(JSON.stringify({ apiVersion: 'client.authentication.k8s.io/v1', kind: 'ExecCredential', status }));`,
  );
  const tokens: (string | undefined)[] = [];
  const faults = await faultServer(
    t,
    (request, response) => {
      tokens.push(request.headers.authorization);
      if (tokens.length === 2) answer(response, 401, status(401, 'Unauthorized', 'Unauthorized'));
      else answer(response, 200, object);
    },
    {
      user: {
        exec: {
          apiVersion: 'client.authentication.k8s.io/v1',
          command: process.execPath,
          args: [script],
          interactiveMode: 'Never',
        },
      },
      reloadIntervalMs: 0,
    },
  );
  await faults.client.get(configMaps, ref);
  await faults.client.get(configMaps, ref);
  assert.deepEqual(tokens, ['Bearer token-1', 'Bearer token-1', 'Bearer token-2']);
});

test('many requests at once are not throttled, and connections are reused', async (t) => {
  const sockets = new Set<unknown>();
  const faults = await faultServer(t, (request, response) => {
    sockets.add(request.socket);
    answer(response, 200, object);
  });
  const burst = () => Promise.all(Array.from({ length: 50 }, () => faults.client.get(configMaps, ref)));
  await burst();
  const opened = sockets.size;
  await burst();
  assert.equal(faults.requests.length, 100);
  assert.equal(sockets.size, opened);
});

test('what is sent: paths, queries and bodies', async (t) => {
  const bodies: string[] = [];
  const faults = await faultServer(t, (request, response) => {
    bodies.push(`${request.headers['content-type'] ?? '-'} ${request.body}`);
    answer(response, 200, object);
  });
  const { client } = faults;
  await client.apply(configMaps, object, { fieldManager: 'sluice-operator', force: true, dryRun: true });
  await client.mergePatch(resources.deployments, ref, { spec: {} }, { subresource: 'scale' });
  await client.remove(configMaps, ref, { uid: 'u', propagationPolicy: 'Foreground', gracePeriodSeconds: 0 });
  await client.create(resources.nodes, { apiVersion: 'v1', kind: 'Node', metadata: { name: 'n' } });
  await client.list(configMaps, { namespace: 'a b', labelSelector: 'x in (y,z)', limit: 5 });
  const base = '/api/v1/namespaces/test/configmaps/a';
  assert.deepEqual(faults.requests, [
    `PATCH ${base}?fieldManager=sluice-operator&force=true&fieldValidation=Strict&dryRun=All`,
    'PATCH /apis/apps/v1/namespaces/test/deployments/a/scale?fieldValidation=Strict',
    `DELETE ${base}`,
    'POST /api/v1/nodes?fieldValidation=Strict',
    'GET /api/v1/namespaces/a%20b/configmaps?labelSelector=x%20in%20(y%2Cz)&limit=5',
  ]);
  assert.deepEqual(bodies, [
    `application/apply-patch+yaml ${JSON.stringify(object)}`,
    'application/merge-patch+json {"spec":{}}',
    'application/json {"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"uid":"u"},' +
      '"propagationPolicy":"Foreground","gracePeriodSeconds":0}',
    'application/json {"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}',
    '- ',
  ]);
  assert.deepEqual([client.server, client.namespace], [faults.url, 'from-context']);
});

test("the server's warnings are handed on", async (t) => {
  const warnings: string[] = [];
  const warning = '299 - "v1beta1 is deprecated", 299 - "a \\"quoted\\", one"';
  const faults = await faultServer(t, (_request, response) => answer(response, 200, object, { warning }), {
    onWarning: (text) => warnings.push(text),
  });
  await faults.client.get(configMaps, ref);
  assert.deepEqual(warnings, ['v1beta1 is deprecated', 'a "quoted", one']);
});

const badConfigurations: Record<string, { text?: string; context?: string; message: RegExp }> = {
  'a kubeconfig that is not there': { message: /^kubeconfig ".*\/kubeconfig" cannot be read: ENOENT/ },
  'a kubeconfig that is not YAML': { text: '{', message: /^kubeconfig ".*" cannot be read: / },
  'a kubeconfig that is a list': { text: '[]', message: /^kubeconfig ".*"/ },
  'a kubeconfig without contexts': { text: '{}', message: /^kubeconfig ".*" names no API server/ },
  'a context that the kubeconfig lacks': {
    text: JSON.stringify({
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      clusters: [],
      users: [],
    }),
    context: 'y',
    message: /has no context "y": it has x$/,
  },
};

for (const [name, { text, context, message }] of Object.entries(badConfigurations)) {
  test(`${name} is one clear line`, (t) => {
    const file = path.join(folder(t), 'kubeconfig');
    if (text !== undefined) writeFileSync(file, text);
    assert.throws(
      () => createKubeClient({ kubeconfig: file, ...(context === undefined ? {} : { context }) }),
      (error) => error instanceof SluiceError && error.exitCode === 2 && message.test(error.message),
    );
  });
}

test('an object without a namespace or a name is refused before anything is sent', async (t) => {
  const faults = await faultServer(t, (_request, response) => answer(response, 200, object));
  await assert.rejects(faults.client.get(configMaps, { name: 'a' }), /ConfigMap "a" without a namespace/);
  await assert.rejects(faults.client.get(configMaps, { namespace: 'test', name: '' }), /without a name/);
  assert.deepEqual(faults.requests, []);
});
