/** The real program with the real demo model: OpenAI's own client, many clients, signals. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI from 'openai';
import { ServeProcess, tiny } from './program.ts';

interface GoldenCase {
  readonly messages?: OpenAI.ChatCompletionMessageParam[];
  readonly prompt?: string;
  readonly prompt_ids: number[];
  readonly output_ids: number[];
  readonly text: string;
  readonly finish_reason: 'stop' | 'length';
}

const golden: GoldenCase[] = JSON.parse(readFileSync(path.join(tiny, 'golden.json'), 'utf8')).cases;
const chats = golden.filter((each) => each.messages !== undefined);

describe("with OpenAI's client", () => {
  let program: ServeProcess;
  let client: OpenAI;
  before(async () => {
    program = await ServeProcess.ready();
    client = new OpenAI({ baseURL: `${program.url}/v1`, apiKey: 'none', maxRetries: 0 });
  });
  after(() => program[Symbol.asyncDispose]());

  test('the program says that it serves its demo model', () => {
    assert.match(program.stdout, /no --model-path: serving the small demo model/);
  });

  test('the golden chats, whole', async () => {
    assert.ok(chats.length > 5);
    for (const each of chats) {
      const answer = await client.chat.completions.create({
        model: 'tiny',
        messages: each.messages!,
        temperature: 0,
        max_completion_tokens: 64,
      });
      assert.equal(answer.choices[0]!.message.content, each.text);
      assert.equal(answer.choices[0]!.finish_reason, each.finish_reason);
      assert.equal(answer.usage?.prompt_tokens, each.prompt_ids.length);
      assert.equal(answer.usage?.completion_tokens, each.output_ids.length);
    }
  });

  test('the golden chats, streamed, all at once', async () => {
    await Promise.all(
      chats.map(async (each) => {
        const stream = await client.chat.completions.create({
          model: 'tiny',
          messages: each.messages!,
          temperature: 0,
          max_completion_tokens: 64,
          stream: true,
          stream_options: { include_usage: true },
        });
        let text = '';
        let reason: string | null = null;
        let tokens = 0;
        for await (const chunk of stream) {
          text += chunk.choices[0]?.delta.content ?? '';
          reason = chunk.choices[0]?.finish_reason ?? reason;
          tokens = chunk.usage?.completion_tokens ?? tokens;
        }
        assert.equal(text, each.text);
        assert.equal(reason, each.finish_reason);
        assert.equal(tokens, each.output_ids.length);
      }),
    );
  });

  test('the same prompts as token ids give the same token ids', async () => {
    for (const each of golden) {
      const response = await program.post('/v1/completions', {
        model: 'tiny',
        prompt: each.prompt_ids,
        temperature: 0,
        max_tokens: 64,
        return_token_ids: true,
      });
      const { choices } = (await response.json()) as {
        choices: { token_ids: number[]; prompt_token_ids: number[] }[];
      };
      assert.deepEqual(choices[0]!.token_ids, each.output_ids);
      assert.deepEqual(choices[0]!.prompt_token_ids, each.prompt_ids);
    }
  });

  test("log-probabilities of an answer are those that its tokens have as a prompt's", async () => {
    const ask = async (fields: object) => {
      const response = await program.post('/v1/completions', {
        model: 'tiny',
        temperature: 0,
        logprobs: 3,
        ...fields,
      });
      const { choices } = (await response.json()) as {
        choices: {
          text: string;
          token_ids: number[];
          prompt_token_ids: number[];
          logprobs: OpenAI.CompletionChoice.Logprobs;
        }[];
      };
      return choices[0]!;
    };
    const first = await ask({ prompt: 'Kubernetes is', max_tokens: 8, return_token_ids: true, ...ignoreEos });
    const prompt = [...first.prompt_token_ids, ...first.token_ids];
    const again = await ask({ prompt, max_tokens: 0, echo: true });
    assert.equal(again.text, `Kubernetes is${first.text}`);
    assert.equal(again.logprobs.tokens!.length, prompt.length);
    const tail = again.logprobs.token_logprobs!.slice(-8);
    tail.forEach((value, index) => {
      assert.ok(Math.abs(value! - first.logprobs.token_logprobs![index]!) < 1e-3);
    });
  });

  test('n choices with a seed are the same again', async () => {
    const ask = () =>
      client.chat.completions.create({
        model: 'tiny',
        messages: [{ role: 'user', content: 'Tell me a story.' }],
        n: 3,
        seed: 5,
        temperature: 1.2,
        max_tokens: 16,
      });
    const [first, second] = [await ask(), await ask()];
    const texts = first.choices.map(({ message }) => message.content);
    assert.deepEqual(
      texts,
      second.choices.map(({ message }) => message.content),
    );
    assert.equal(new Set(texts).size, 3);
  });

  test('a stop string ends the answer before itself', async () => {
    const answer = await client.chat.completions.create({
      model: 'tiny',
      messages: [{ role: 'user', content: 'Hello!' }],
      temperature: 0,
      stop: [' can I'],
    });
    assert.equal(answer.choices[0]!.message.content, 'Hello! How');
    assert.equal(answer.choices[0]!.finish_reason, 'stop');
  });

  test("errors are the client's own classes", async () => {
    await assert.rejects(client.models.retrieve('gpt'), OpenAI.NotFoundError);
    await assert.rejects(
      client.completions.create({ model: 'tiny', prompt: 'x', max_tokens: 5000 }),
      (error) =>
        error instanceof OpenAI.BadRequestError &&
        error.code === 'context_length_exceeded' &&
        /1024/.test(error.message),
    );
  });

  test('of 64 streams half are cut: the others are whole, and every block is free again', async () => {
    const before = await program.metric('sluice_kv_blocks_used');
    assert.equal(before, 0);
    const outcomes = await Promise.all(
      Array.from({ length: 64 }, async (_, index) => {
        const stream = await client.completions.create({
          model: 'tiny',
          prompt: `Request ${index} goes on`,
          max_tokens: 64,
          stream: true,
          temperature: 1,
          ...ignoreEos,
        });
        let chunks = 0;
        for await (const chunk of stream) {
          chunks++;
          if (index % 2 === 0 && chunks === 5) break;
          if (chunk.choices[0]?.finish_reason) return chunk.choices[0].finish_reason;
        }
        return 'cut';
      }),
    );
    assert.deepEqual(
      outcomes,
      Array.from({ length: 64 }, (_, index) => (index % 2 === 0 ? 'cut' : 'length')),
    );
    while ((await program.metric('sluice_requests_running')) > 0) await sleep(20);
    assert.equal(await program.metric('sluice_kv_blocks_used'), before);
    assert.equal(await program.metric('sluice_requests_waiting'), 0);
  });

  test('a whole answer that nobody waits for any more is given up', async () => {
    const controller = new AbortController();
    const request = program.post(
      '/v1/completions',
      { model: 'tiny', prompt: 'x', max_tokens: 900, n: 8, ...ignoreEos },
      controller.signal,
    );
    while ((await program.metric('sluice_requests_running')) < 8) await sleep(5);
    controller.abort();
    await assert.rejects(request);
    while ((await program.metric('sluice_requests_running')) > 0) await sleep(5);
    assert.equal(await program.metric('sluice_kv_blocks_used'), 0);
    // It was cut and did not run to its end.
    assert.ok((await program.metric('sluice_choices_finished_total{reason="abort"}')) >= 8);
  });
});

const ignoreEos = { ignore_eos: true } as object;

describe('from start to end', () => {
  test('it listens while it loads: health tells, requests are refused, then both are fine', async () => {
    await using program = await ServeProcess.listen(['--served-model-name=a,b']);
    assert.equal((await program.get('/livez')).status, 200);
    const early = await program.get('/health');
    if (early.status !== 200) {
      assert.equal(early.status, 503);
      assert.equal(((await early.json()) as { status: string }).status, 'loading');
    }
    await program.until('/health', 200);
    const { data } = (await (await program.get('/v1/models')).json()) as { data: { id: string }[] };
    assert.deepEqual(
      data.map(({ id }) => id),
      ['a', 'b'],
    );
  });

  test('SIGTERM: not ready at once, requests are taken during the delay, running ones finish, exit 0', async () => {
    await using program = await ServeProcess.ready(['--shutdown-delay=2']);
    const long = await program.post('/v1/completions', {
      model: 'tiny',
      prompt: 'x',
      max_tokens: 300,
      stream: true,
      ...ignoreEos,
    });
    program.kill('SIGTERM');
    await program.until('/readyz', 503);
    assert.equal((await program.get('/livez')).status, 200);
    const during = await program.post('/v1/completions', { model: 'tiny', prompt: 'Hello', max_tokens: 1 });
    assert.equal(during.status, 200);
    assert.equal(during.headers.get('connection'), 'close');
    const stream = await long.text();
    assert.match(stream, /"finish_reason":"length"/);
    assert.match(stream, /data: \[DONE\]\n\n$/);
    assert.equal(await program.exited, 0);
  });

  test('SIGTERM without a delay: requests are refused while the running ones finish', async () => {
    await using program = await ServeProcess.ready(['--shutdown-delay=0', '--shutdown-grace=600']);
    const body = { model: 'tiny', prompt: 'x', max_tokens: 900, n: 16, stream: true, ...ignoreEos };
    const long = await program.post('/v1/completions', body);
    program.kill('SIGTERM');
    await program.until('/readyz', 503);
    const refused = await program.post('/v1/completions', { model: 'tiny', prompt: 'Hello', max_tokens: 1 });
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.get('connection'), 'close');
    assert.equal((await long.text()).match(/"finish_reason":"length"/g)?.length, 16);
    assert.equal(await program.exited, 0);
  });

  test('SIGTERM with a short grace: what still runs is cut, exit 0', async () => {
    await using program = await ServeProcess.ready(['--shutdown-delay=0', '--shutdown-grace=0']);
    const body = { model: 'tiny', prompt: 'x', max_tokens: 900, n: 16, stream: true, ...ignoreEos };
    const long = await program.post('/v1/completions', body);
    program.kill('SIGTERM');
    assert.doesNotMatch(await long.text(), /\[DONE\]/);
    assert.equal(await program.exited, 0);
  });

  test('a second SIGTERM ends it at once', async () => {
    await using program = await ServeProcess.ready(['--shutdown-delay=3600']);
    program.kill('SIGTERM');
    await program.until('/readyz', 503);
    program.kill('SIGTERM');
    assert.equal(await program.exited, 143);
  });

  test('metrics have a port of their own when one is given', async () => {
    await using program = await ServeProcess.ready(['--metrics-port=0']);
    assert.equal((await program.get('/metrics')).status, 404);
    const url = /"metricsUrl":"([^"]+)"/.exec(program.stdout)![1]!;
    assert.match(await (await fetch(`${url}/metrics`)).text(), /^sluice_kv_blocks_total \d+$/m);
  });
});
