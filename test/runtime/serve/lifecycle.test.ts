/** Loading, readiness, shutting down, clients that go away and an engine that dies, in an order that the test sets. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { events, pausing, type Running, ScriptedBackend, startServer } from './scripted-backend.ts';

const completion = { model: 'tiny', prompt: 'Hi' };

async function statuses(running: Running): Promise<Record<string, number>> {
  const routes = ['/health', '/readyz', '/livez', '/v1/models'];
  const answers = await Promise.all(
    routes.map(async (route) => [route, (await running.get(route)).status] as const),
  );
  return Object.fromEntries(answers);
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(5);
}

test('while it loads it lives, is not ready, and tells how far it is', async () => {
  const running = await startServer();
  assert.deepEqual(await statuses(running), {
    '/health': 503,
    '/readyz': 503,
    '/livez': 200,
    '/v1/models': 503,
  });
  running.server.reportProgress({ phase: 'weights', done: 1, total: 4 });
  assert.deepEqual(await (await running.get('/health')).json(), {
    status: 'loading',
    reason: 'the model is loading: weights 25%',
    progress: { phase: 'weights', done: 1, total: 4 },
  });
  const refused = await running.post('/v1/completions', completion);
  assert.equal(refused.status, 503);
  assert.equal(refused.headers.get('retry-after'), '2');
  running.server.ready(new ScriptedBackend());
  assert.deepEqual(await statuses(running), {
    '/health': 200,
    '/readyz': 200,
    '/livez': 200,
    '/v1/models': 200,
  });
  assert.equal((await running.post('/v1/completions', completion)).status, 200);
  assert.equal(await running.server.shutdown(0, 0), 0);
});

test('a server that never got ready ends without waiting for the delay', async () => {
  const running = await startServer();
  assert.equal(await running.server.shutdown(3_600_000, 3_600_000), 0);
});

test('an engine that has died makes every probe fail', async () => {
  const running = await startServer();
  const backend = new ScriptedBackend();
  running.server.ready(backend);
  backend.broken = new Error('a rank died');
  assert.deepEqual(await statuses(running), {
    '/health': 503,
    '/readyz': 503,
    '/livez': 503,
    '/v1/models': 503,
  });
  assert.match(await (await running.get('/livez')).text(), /a rank died/);
  await running.server.shutdown(0, 0);
});

test('an engine that is silent for minutes is taken for dead, one in a long step is not', async () => {
  const running = await startServer();
  const backend = new ScriptedBackend();
  running.server.ready(backend);
  backend.silence = 60_000;
  assert.equal((await running.get('/livez')).status, 200);
  backend.silence = 600_000;
  assert.equal((await running.get('/livez')).status, 503);
  await running.server.shutdown(0, 0);
});

describe('shutting down', () => {
  test('requests are taken during the delay, refused after it, and the running one finishes', async () => {
    const running = await startServer();
    const backend = new ScriptedBackend();
    const { promise, resolve } = Promise.withResolvers<void>();
    backend.script = pausing(promise);
    running.server.ready(backend);
    const long = await running.post('/v1/completions', { ...completion, stream: true });
    const ended = running.server.shutdown(200, 3_600_000);
    assert.deepEqual(await statuses(running), {
      '/health': 503,
      '/readyz': 503,
      '/livez': 200,
      '/v1/models': 200,
    });
    // The delay is over when a request is refused; until then they are taken.
    let refused: Response;
    do refused = await running.get('/v1/models');
    while (refused.status === 200);
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.get('connection'), 'close');
    assert.equal((await running.post('/v1/completions', completion)).status, 503);
    assert.equal((await running.get('/livez')).status, 200);
    resolve();
    assert.equal((await events(long)).at(-1), '[DONE]');
    assert.equal(await ended, 0);
    await assert.rejects(running.get('/livez'));
  });

  test('during the delay a streamed answer is the last of its connection too', async () => {
    const running = await startServer();
    running.server.ready(new ScriptedBackend());
    const before = await running.post('/v1/completions', { ...completion, stream: true });
    assert.equal(before.headers.get('connection'), 'keep-alive');
    await before.text();
    const ended = running.server.shutdown(5000, 1000);
    const during = await running.post('/v1/completions', { ...completion, stream: true });
    assert.equal(during.headers.get('connection'), 'close');
    assert.equal((await events(during)).at(-1), '[DONE]');
    assert.equal(await ended, 0);
  });

  test('what runs beyond the grace is cut with an error', async () => {
    const running = await startServer();
    const backend = new ScriptedBackend(pausing(new Promise(() => {})));
    running.server.ready(backend);
    const streamed = await running.post('/v1/completions', { ...completion, stream: true });
    const whole = running.post('/v1/completions', completion);
    await until(() => backend.running === 2);
    assert.equal(await running.server.shutdown(0, 0), 2);
    assert.match((await events(streamed)).at(-1)!, /server_error/);
    assert.equal((await whole).status, 503);
    assert.equal(backend.running, 0);
  });
});

describe('a client that goes away', () => {
  for (const stream of [true, false])
    test(`${stream ? 'from a stream' : 'before a whole answer'}: the model stops and it is counted as 499`, async () => {
      const running = await startServer();
      const backend = new ScriptedBackend(pausing(new Promise(() => {})));
      running.server.ready(backend);
      const controller = new AbortController();
      const answer = running.post('/v1/completions', { ...completion, stream }, {}, controller.signal);
      if (stream) await (await answer).body!.getReader().read();
      await until(() => backend.running === 1);
      controller.abort();
      if (!stream) await assert.rejects(answer);
      await until(() => backend.running === 0);
      const counted = 'sluice_http_requests_total{route="/v1/completions",status="499"} 1';
      await until(async () => (await (await running.get('/metrics')).text()).includes(counted));
      assert.equal(await running.server.shutdown(0, 0), 0);
    });

  test('in mid-request with several prompts: all of them stop', async () => {
    const running = await startServer();
    const backend = new ScriptedBackend(pausing(new Promise(() => {})));
    running.server.ready(backend);
    const controller = new AbortController();
    const answer = running.post(
      '/v1/completions',
      { ...completion, prompt: ['a', 'b', 'c'] },
      {},
      controller.signal,
    );
    await until(() => backend.running === 3);
    controller.abort();
    await assert.rejects(answer);
    await until(() => backend.running === 0);
    await running.server.shutdown(0, 0);
  });
});

test('a port that is taken is a user error that names it', async () => {
  const running = await startServer();
  const port = new URL(running.url).port;
  await assert.rejects(
    startServer(`--port=${port}`),
    new RegExp(`--port ${port} on --host "127\\.0\\.0\\.1": is in use`),
  );
  await running.server.shutdown(0, 0);
});
