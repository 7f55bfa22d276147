/** The real program under pressure: more than it takes, longer than it allows, a thread that dies, an end under load. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';
import { ServeProcess } from './program.ts';

const completion = { model: 'tiny', prompt: 'Hello', temperature: 0, ignore_eos: true };
const long = { ...completion, max_tokens: 900 };

interface Body {
  readonly error: { readonly code: string; readonly message: string };
  readonly usage: { readonly completion_tokens: number };
}

/** [status, body, headers] of an answer, whole; a connection that is cut rejects. */
async function answer(response: Promise<Response>): Promise<[number, Body, Headers]> {
  const { status, headers, ...rest } = await response.then(async (each) => ({
    status: each.status,
    headers: each.headers,
    body: await each.text(),
  }));
  return [status, JSON.parse(rest.body), headers];
}

test('of a thousand requests at once each is answered or told to come again', async () => {
  await using program = await ServeProcess.ready(['--max-queue-size=8', '--max-batch-size=1']);
  const first = answer(program.post('/v1/completions', long));
  const answers = await Promise.all(
    Array.from({ length: 1000 }, (_, i) =>
      answer(program.post('/v1/completions', { ...completion, prompt: `Number ${i}`, max_tokens: 4 })),
    ),
  );
  const counts = Map.groupBy(answers, ([status]) => status);
  assert.deepEqual([...counts.keys()].toSorted(), [200, 429]);
  for (const [, body] of counts.get(200)!) assert.equal(body.usage.completion_tokens, 4);
  for (const [, body, headers] of counts.get(429)!) {
    assert.equal(body.error.code, 'rate_limit_exceeded');
    assert.ok(Number(headers.get('retry-after')) > 0);
  }
  assert.equal((await first)[0], 200);
  assert.equal(await program.metric('sluice_kv_blocks_used'), 0);
});

test('five megabytes of prompt are refused with the numbers, in every form', async () => {
  await using program = await ServeProcess.ready();
  const text = 'word '.repeat(1_000_000);
  const bodies: [string, object][] = [
    ['/v1/completions', { prompt: text }],
    ['/v1/completions', { prompt: ['a', text] }],
    ['/v1/completions', { prompt: Array.from({ length: 1_000_000 }, (_, i) => i % 2000) }],
    ['/v1/chat/completions', { messages: [{ role: 'user', content: text }] }],
  ];
  for (const [route, fields] of bodies) {
    const [status, body] = await answer(program.post(route, { model: 'tiny', max_tokens: 1, ...fields }));
    assert.equal(status, 400);
    assert.equal(body.error.code, 'context_length_exceeded');
    assert.match(body.error.message, /1024 tokens/);
  }
});

test('the event loop goes before the engine’s threads, and both before those that read prompts', async () => {
  await using program = await ServeProcess.ready(['--devices=cpu:0,1']);
  // Long enough for a thread.
  assert.equal((await program.post('/tokenize', { prompt: 'word '.repeat(5000) })).status, 200);
  const tasks = `/proc/${program.pid}/task`;
  const niceness = new Map<string, number>();
  for (const thread of readdirSync(tasks)) {
    const [, name, numbers] = /\((.*)\) (.*)/.exec(readFileSync(path.join(tasks, thread, 'stat'), 'utf8'))!;
    niceness.set(thread === String(program.pid) ? 'event loop' : name!, Number(numbers!.split(' ')[16]));
  }
  const own = niceness.get('event loop')!;
  const more = (by: number) => Math.min(19, own + by);
  assert.deepEqual(
    ['sluice-engine', 'sluice-rank-1', 'sluice-prepare'].map((name) => niceness.get(name)),
    [more(5), more(5), more(10)],
  );
});

test('a request beyond its time is ended with 504, a stream with an event that says so', async () => {
  // Far more than a second of work, whatever the machine.
  const slow = { ...long, n: 32, max_tokens: 1000 };
  await using program = await ServeProcess.ready(['--request-timeout=1', '--max-batch-size=1']);
  const [[status, body], streamed] = await Promise.all([
    answer(program.post('/v1/completions', slow)),
    program.post('/v1/completions', { ...slow, stream: true }).then((each) => each.text()),
  ]);
  assert.equal(status, 504);
  assert.equal(body.error.code, 'timed_out');
  assert.match(streamed, /--request-timeout/);
  while ((await program.metric('sluice_kv_blocks_used')) > 0);
});

test('each request has one line in the log: what it used, how it ended, and its trace', async () => {
  await using program = await ServeProcess.ready();
  const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
  const response = await fetch(`${program.url}/v1/completions`, {
    method: 'POST',
    headers: { traceparent: `00-${trace}-00f067aa0ba902b7-01` },
    body: JSON.stringify({ ...completion, max_tokens: 3 }),
  });
  const { usage } = (await response.json()) as { usage: { prompt_tokens: number } };
  assert.match(response.headers.get('traceparent')!, new RegExp(`^00-${trace}-[0-9a-f]{16}-01$`));
  const id = response.headers.get('x-request-id');
  let line: { msg: string; ttftMs: number; durationMs: number } | undefined;
  while (line === undefined) {
    await program.get('/livez');
    const lines = program.stdout.split('\n').filter((each) => each.includes(`"${id}"`));
    line = lines.map((each) => JSON.parse(each)).find((each) => each.msg === 'request');
  }
  assert.partialDeepStrictEqual(line, {
    route: '/v1/completions',
    status: 200,
    traceId: trace,
    promptTokens: usage.prompt_tokens,
    completionTokens: 3,
    finishReason: 'length',
  });
  assert.ok(line.ttftMs >= 0 && line.durationMs >= line.ttftMs);
});

describe('a rank’s thread that dies', () => {
  for (const busy of [false, true]) {
    test(`${busy ? 'under load: requests get an error' : 'without work'}, probes fail, the program says why and exits with 1`, async () => {
      const folder = mkdtempSync(path.join(tmpdir(), 'sluice-death-'));
      const sign = path.join(folder, 'now');
      const preload = path.join(folder, 'preload.mjs');
      writeFileSync(preload, mortalRanks);
      try {
        await using program = await ServeProcess.ready(['--devices=cpu:0,1,2'], {
          NODE_OPTIONS: `--import=${preload}`,
          TEST_DEATH_SIGN: sign,
        });
        // Two of them run, the others wait.
        const body = { ...long, n: 16 };
        const count = busy ? 4 : 0;
        const whole = Array.from({ length: count }, () => answer(program.post('/v1/completions', body)));
        const streams = Array.from({ length: count }, async () => {
          const response = await program.post('/v1/completions', { ...body, stream: true });
          return [response.status, await response.text()] as const;
        });
        if (busy) {
          while ((await program.metric('sluice_requests_running')) < 32);
          while ((await program.metric('sluice_requests_waiting')) === 0);
        }
        writeFileSync(sign, '');
        await program.until('/livez', 503);
        for (const [status, { error }] of await Promise.all(whole)) {
          assert.equal(status, 500);
          assert.equal(error.code, 'engine_failed');
        }
        for (const [status, text] of await Promise.all(streams)) {
          // Those that had begun have their error as the last event.
          const last = text.trim().split('\n\n').at(-1)!;
          const { error } = JSON.parse(status === 200 ? last.replace(/^data: /, '') : text) as Body;
          assert.ok(status === 200 || status === 500);
          assert.equal(error.code, 'engine_failed');
        }
        assert.equal(await program.exited, 1);
        assert.match(
          program.stdout,
          /"reason":"[^"]*rank [12]: its thread has died","msg":"the engine has failed/,
        );
        assert.match(program.stderr, /^sluice: .*rank [12]: its thread has died\n$/);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  }
});

/** Ends the threads of ranks, from the thread that started them, as soon as a file is there. */
const mortalRanks = `
import { existsSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import threads from 'node:worker_threads';
const { Worker } = threads;
threads.Worker = class extends Worker {
  constructor(file, options) {
    super(file, options);
    if (options?.workerData?.rank === undefined) return;
    const timer = setInterval(() => {
      if (!existsSync(process.env.TEST_DEATH_SIGN)) return;
      clearInterval(timer);
      this.terminate();
    }, 10);
  }
};
syncBuiltinESMExports();
`;

test('SIGTERM under load: whatever was accepted is answered whole, queued or running, then exit 0', async () => {
  await using program = await ServeProcess.ready([
    '--shutdown-delay=0',
    '--shutdown-grace=600',
    '--max-batch-size=4',
  ]);
  const bodies = Array.from({ length: 32 }, (_, i) => ({
    ...completion,
    prompt: `Go ${i}`,
    max_tokens: 128,
    stream: i % 2 === 0,
  }));
  const whole = bodies.map(async (body) => {
    const response = await program.post('/v1/completions', body);
    return [response.status, await response.text()] as const;
  });
  // In one scrape, so that no request counts twice.
  const counts = async () => {
    const text = await (await program.get('/metrics')).text();
    const lines = text.split('\n').map((line) => line.split(' '));
    const count = (name: string) => Number(lines.find(([each]) => each === `sluice_${name}`)?.[1] ?? 0);
    const ended = count('choices_finished_total{reason="length"}');
    return {
      accepted: count('requests_running') + count('requests_waiting') + ended,
      waiting: count('requests_waiting'),
    };
  };
  while ((await counts()).accepted < 24);
  const before = await counts();
  assert.ok(before.waiting > 0);
  program.kill('SIGTERM');
  const answers = await Promise.all(whole);
  let served = 0;
  for (const [index, [status, text]] of answers.entries()) {
    if (status === 503) continue;
    assert.equal(status, 200);
    served++;
    if (bodies[index]!.stream) assert.ok(text.endsWith('data: [DONE]\n\n'));
    else assert.equal(JSON.parse(text).usage.completion_tokens, 128);
  }
  assert.ok(served >= before.accepted, `${served} served of ${before.accepted}`);
  assert.equal(await program.exited, 0);
});
