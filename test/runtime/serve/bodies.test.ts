/** Bodies that nobody wants, and bodies that come slowly: over plain connections, where it shows who reads what and when. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Agent, type ClientRequest, type IncomingMessage, request } from 'node:http';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pausing, type Running, ScriptedBackend, startServer } from './scripted-backend.ts';

const path = '/v1/completions';
const completion = Buffer.from(JSON.stringify({ model: 'tiny', prompt: 'Hi' }));
const megabytes = (count: number) => Buffer.alloc(count << 20, ' ');

/** The head of a request alone; the body is the caller's. */
function begin({ url }: Running, length: number, agent?: Agent): ClientRequest {
  const headers = { 'content-type': 'application/json', 'content-length': length };
  const sent = request(url + path, { method: 'POST', headers, ...(agent === undefined ? {} : { agent }) });
  sent.flushHeaders();
  return sent;
}

function answered(sent: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => sent.on('response', resolve).on('error', reject));
}

async function errorCode(response: IncomingMessage): Promise<string> {
  return (JSON.parse(await text(response)) as { error: { code: string } }).error.code;
}

test('with a full queue the answer comes before the body, and the connection is kept', async () => {
  const running = await startServer('--max-queue-size=2');
  const backend = new ScriptedBackend();
  backend.waiting = 2;
  running.server.ready(backend);
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const body = megabytes(5);
  const refused = begin(running, body.length, agent);
  const response = await answered(refused);
  assert.equal(response.statusCode, 429);
  assert.ok(Number(response.headers['retry-after']) > 0);
  assert.equal(await errorCode(response), 'rate_limit_exceeded');
  const { socket } = refused;
  refused.end(body);
  backend.waiting = 0;
  const next = begin(running, completion.length, agent);
  next.end(completion);
  const served = await answered(next);
  assert.equal(served.statusCode, 200);
  assert.equal(next.socket, socket);
  await text(served);
  agent.destroy();
  await running.server.shutdown(0, 0);
});

test('bodies that are being received have a limit together, of which what has been read or left is free again', async () => {
  const running = await startServer('--max-body-bytes=1KiB');
  const backend = new ScriptedBackend();
  const { promise, resolve } = Promise.withResolvers<void>();
  backend.script = pausing(promise);
  running.server.ready(backend);
  const body = Buffer.alloc(1024, ' ');
  body.set(completion);
  const slow = Array.from({ length: 16 }, () => begin(running, body.length));
  const answers = slow.map(answered);
  const text = JSON.stringify({ prompt: 'Hi' }).padEnd(body.length);
  while ((await running.post('/tokenize', text)).status !== 429);
  // One client leaves, the body of another has been read: its answer takes its time.
  slow[0]!.destroy();
  await assert.rejects(answers[0]!);
  slow[1]!.end(body);
  while (backend.running === 0) await sleep(5);
  const more = Array.from({ length: 2 }, () => begin(running, body.length));
  const late = more.map(answered);
  for (const each of more) each.end(body);
  while (backend.running < 3) await sleep(5);
  for (const each of slow.slice(2)) each.end(body);
  resolve();
  for (const each of await Promise.all([...answers.slice(1), ...late])) assert.equal(each.statusCode, 200);
  await running.server.shutdown(0, 0);
});

/** As many clients do: listens only when all has been sent. Rejects when the server closes before. */
async function sendThenListen({ url }: Running, body: Buffer): Promise<string> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  const failed = once(socket, 'error').then(([error]) => Promise.reject(error));
  const sent = async () => {
    socket.write(`POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n`);
    await new Promise((resolve) => socket.write(body, resolve));
    return text(socket);
  };
  return Promise.race([sent(), failed]);
}

describe('an answer that closes the connection waits for the body, so that it is not lost', () => {
  test('too long for the server: 413', async () => {
    const running = await startServer('--max-body-bytes=1MiB');
    running.server.ready(new ScriptedBackend());
    const answer = await sendThenListen(running, megabytes(20));
    assert.match(answer, /^HTTP\/1.1 413 .*\r\nconnection: close\r\n.*"body_too_large"/s);
    await running.server.shutdown(0, 0);
  });

  test('while the server ends: 503', async () => {
    const running = await startServer();
    const backend = new ScriptedBackend();
    const { promise, resolve } = Promise.withResolvers<void>();
    backend.script = pausing(promise);
    running.server.ready(backend);
    const long = running.post(path, { model: 'tiny', prompt: 'Hi' });
    while (backend.running === 0) await sleep(5);
    const ended = running.server.shutdown(0, 3_600_000);
    while ((await running.get('/v1/models')).status === 200);
    const answer = await sendThenListen(running, megabytes(20));
    assert.match(answer, /^HTTP\/1.1 503 .*"unavailable"/s);
    resolve();
    assert.equal((await long).status, 200);
    await ended;
  });
});

test('an answer that began before the server ends says that it is the last of its connection', async () => {
  const running = await startServer();
  const backend = new ScriptedBackend();
  const { promise, resolve } = Promise.withResolvers<void>();
  backend.script = pausing(promise);
  running.server.ready(backend);
  const sent = begin(running, completion.length, new Agent({ keepAlive: true }));
  sent.end(completion);
  while (backend.running === 0) await sleep(5);
  const ended = running.server.shutdown(0, 3_600_000);
  resolve();
  const response = await answered(sent);
  assert.equal(response.headers.connection, 'close');
  await text(response);
  assert.equal(await ended, 0);
});

test('the time to the first token, the time in the queue and the whole time begin with the arrival', async () => {
  const running = await startServer();
  running.server.ready(new ScriptedBackend());
  const sent = begin(running, completion.length);
  const bodyMs = 300;
  await sleep(bodyMs);
  sent.end(completion);
  await text(await answered(sent));
  const metrics = await (await running.get('/metrics')).text();
  for (const name of ['time_to_first_token', 'request_queue', 'request_duration']) {
    const sum = new RegExp(`^sluice_${name}_seconds_sum (\\S+)$`, 'm').exec(metrics)?.[1];
    // The head may have been a little longer on its way.
    assert.ok(Number(sum) > bodyMs / 2000, `${name}: ${sum}`);
  }
  await running.server.shutdown(0, 0);
});
