/** What the routes take, refuse and answer, with a scripted model behind them. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { SluiceError } from '../../../runtime/errors.ts';
import { events, pausing, type Running, ScriptedBackend, saying, startServer } from './scripted-backend.ts';

const backend = new ScriptedBackend();
let running: Running;

before(async () => {
  running = await startServer('--max-body-bytes=64KiB');
  running.server.ready(backend);
});
after(() => running.server.shutdown(0, 0));
beforeEach(() => {
  backend.script = saying('Hel', 'lo');
  backend.requests.length = 0;
});

const completion = { model: 'tiny', prompt: 'Hi' };
const chat = { model: 'tiny', messages: [{ role: 'user', content: 'Hi' }] };

interface ErrorAnswer {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
  };
}

describe('requests that are refused, with the field at fault', () => {
  const cases: [
    name: string,
    route: string,
    body: unknown,
    status: number,
    param: string | null,
    message: RegExp,
  ][] = [
    ['no JSON', '/v1/completions', '{"model": ', 400, null, /not JSON/],
    ['no object', '/v1/completions', '[1]', 400, null, /no JSON object/],
    ['empty body', '/v1/completions', '', 400, null, /not JSON/],
    ['too long', '/v1/completions', { ...completion, prompt: 'x'.repeat(70_000) }, 413, null, /too large/i],
    ['no model', '/v1/completions', { prompt: 'x' }, 400, 'model', /name of the model/],
    [
      'unknown model',
      '/v1/completions',
      { ...completion, model: 'gpt' },
      404,
      'model',
      /`gpt` does not exist/,
    ],
    ['no prompt', '/v1/completions', { model: 'tiny' }, 400, 'prompt', /required/],
    ['empty prompt', '/v1/completions', { ...completion, prompt: '' }, 400, 'prompt', /at least one/],
    ['empty list', '/v1/completions', { ...completion, prompt: [] }, 400, 'prompt', /list/],
    ['mixed list', '/v1/completions', { ...completion, prompt: ['a', 1] }, 400, 'prompt', /only/],
    ['negative id', '/v1/completions', { ...completion, prompt: [-1] }, 400, 'prompt', /integers from 0/],
    [
      'id of no token',
      '/v1/completions',
      { ...completion, prompt: [2048] },
      400,
      'prompt',
      /2048.*0 to 2047/,
    ],
    [
      'bad id in the second',
      '/v1/completions',
      { ...completion, prompt: [[1], [9999]] },
      400,
      'prompt[1]',
      /9999/,
    ],
    ['temperature', '/v1/completions', { ...completion, temperature: 2.5 }, 400, 'temperature', /2\.5.*<=2/],
    [
      'temperature as text',
      '/v1/chat/completions',
      { ...chat, temperature: 'x' },
      400,
      'temperature',
      /number/,
    ],
    ['top_p', '/v1/completions', { ...completion, top_p: 1.1 }, 400, 'top_p', /1\.1/],
    ['n = 0', '/v1/completions', { ...completion, n: 0 }, 400, 'n', /0/],
    ['logprobs', '/v1/completions', { ...completion, logprobs: 21 }, 400, 'logprobs', /21/],
    [
      'best_of below n',
      '/v1/completions',
      { ...completion, n: 3, best_of: 2 },
      400,
      'best_of',
      /less than n/,
    ],
    [
      'best_of streamed',
      '/v1/completions',
      { ...completion, best_of: 2, stream: true },
      400,
      'best_of',
      /stream/,
    ],
    ['suffix', '/v1/completions', { ...completion, suffix: 'x' }, 400, 'suffix', /not supported/],
    ['empty stop', '/v1/completions', { ...completion, stop: ['a', ''] }, 400, 'stop', /empty string/],
    ['bias of text', '/v1/completions', { ...completion, logit_bias: { a: 1 } }, 400, 'logit_bias.a', /key/i],
    [
      'bias too big',
      '/v1/completions',
      { ...completion, logit_bias: { 1: 101 } },
      400,
      'logit_bias.1',
      /101/,
    ],
    [
      'stream_options alone',
      '/v1/completions',
      { ...completion, stream_options: {} },
      400,
      'stream_options',
      /stream/,
    ],
    ['min over max', '/v1/completions', { ...completion, min_tokens: 20 }, 400, 'min_tokens', /20.*16/],
    [
      'guided decoding',
      '/v1/completions',
      { ...completion, guided_regex: 'a' },
      400,
      'guided_regex',
      /not supported/,
    ],
    [
      'context',
      '/v1/completions',
      { ...completion, max_tokens: 100 },
      400,
      'max_tokens',
      /64.*\b1\b.*100.*101/,
    ],
    [
      'prompt beyond it',
      '/v1/completions',
      { ...completion, prompt: Array(64).fill(5) },
      400,
      'prompt',
      /64.*64/,
    ],
    ['no messages', '/v1/chat/completions', { model: 'tiny' }, 400, 'messages', /array/],
    ['empty messages', '/v1/chat/completions', { ...chat, messages: [] }, 400, 'messages', /1/],
    [
      'unknown role',
      '/v1/chat/completions',
      { ...chat, messages: [{ role: 'robot', content: 'x' }] },
      400,
      'messages[0].role',
      /robot/,
    ],
    [
      'an image',
      '/v1/chat/completions',
      { ...chat, messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      400,
      'messages[0].content[0].type',
      /image_url.*text only/,
    ],
    [
      'top_logprobs alone',
      '/v1/chat/completions',
      { ...chat, top_logprobs: 2 },
      400,
      'top_logprobs',
      /logprobs: true/,
    ],
    [
      'tool required',
      '/v1/chat/completions',
      { ...chat, tool_choice: 'required' },
      400,
      'tool_choice',
      /not parsed/,
    ],
    [
      'tool named',
      '/v1/chat/completions',
      { ...chat, tool_choice: { type: 'function', function: { name: 'f' } } },
      400,
      'tool_choice',
      /not parsed/,
    ],
    [
      'json object',
      '/v1/chat/completions',
      { ...chat, response_format: { type: 'json_object' } },
      400,
      'response_format',
      /structured/,
    ],
    ['audio', '/v1/chat/completions', { ...chat, modalities: ['text', 'audio'] }, 400, 'modalities', /text/],
    ['audio voice', '/v1/chat/completions', { ...chat, audio: { voice: 'x' } }, 400, 'audio', /audio/],
    [
      'effort',
      '/v1/chat/completions',
      { ...chat, reasoning_effort: 'high' },
      400,
      'reasoning_effort',
      /template/,
    ],
    ['functions', '/v1/chat/completions', { ...chat, functions: [{ name: 'f' }] }, 400, 'functions', /tools/],
    ['neither', '/tokenize', { model: 'tiny' }, 400, 'prompt', /one of them/],
    ['both', '/tokenize', { prompt: 'x', messages: chat.messages }, 400, 'prompt', /one of them/],
    ['tokens of none', '/detokenize', { tokens: [5000] }, 400, 'tokens', /5000/],
    ['unknown path', '/v1/embeddings', {}, 404, null, /no such path/],
  ];
  for (const [name, route, body, status, param, message] of cases)
    test(`${name}: ${status}`, async () => {
      const response = await running.post(route, body);
      const { error } = (await response.json()) as ErrorAnswer;
      assert.equal(response.status, status, error.message);
      assert.equal(error.param, param);
      assert.match(error.message, message);
      assert.equal(error.type, 'invalid_request_error');
      assert.equal(backend.requests.length, 0);
    });

  test('the code of a full context is the one that clients look for', async () => {
    const response = await running.post('/v1/completions', { ...completion, max_tokens: 100 });
    assert.equal(((await response.json()) as ErrorAnswer).error.code, 'context_length_exceeded');
  });
});

describe('fields that reach the sampler', () => {
  const cases: [string, string, object, object][] = [
    [
      'silence: greedy is not the default',
      '/v1/completions',
      {},
      { temperature: 1, topP: 1, maxTokens: 16, n: 1 },
    ],
    [
      'null is absent',
      '/v1/completions',
      { temperature: null, stop: null, n: null },
      { temperature: 1, n: 1 },
    ],
    ['a chat may fill the context', '/v1/chat/completions', {}, { maxTokens: 64 - 12 }],
    [
      'the newer limit wins',
      '/v1/chat/completions',
      { max_tokens: 3, max_completion_tokens: 4 },
      { maxTokens: 4 },
    ],
    [
      'all of them',
      '/v1/completions',
      {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 7,
        min_p: 0.1,
        seed: 3,
        max_tokens: 9,
        min_tokens: 2,
        ignore_eos: true,
        stop_token_ids: [4],
        n: 2,
        best_of: 3,
        presence_penalty: 1,
        frequency_penalty: -1,
        repetition_penalty: 1.2,
        logit_bias: { 5: -100 },
        logprobs: 4,
      },
      {
        temperature: 0.5,
        topP: 0.9,
        topK: 7,
        minP: 0.1,
        seed: 3,
        maxTokens: 9,
        minTokens: 2,
        ignoreEos: true,
        stopTokenIds: [4],
        n: 2,
        bestOf: 3,
        presencePenalty: 1,
        frequencyPenalty: -1,
        repetitionPenalty: 1.2,
        logitBias: [[5, -100]],
        logprobs: 4,
      },
    ],
    [
      'echo with logprobs asks for those of the prompt',
      '/v1/completions',
      { echo: true, logprobs: 2 },
      { promptLogprobs: 2 },
    ],
    ['logprobs of a chat', '/v1/chat/completions', { logprobs: true, top_logprobs: 5 }, { logprobs: 5 }],
    ['logprobs without alternatives', '/v1/chat/completions', { logprobs: true }, { logprobs: 0 }],
    [
      'documented fields without effect pass',
      '/v1/chat/completions',
      {
        user: 'me',
        metadata: {},
        store: true,
        service_tier: 'auto',
        parallel_tool_calls: false,
        modalities: ['text'],
        response_format: { type: 'text' },
        tool_choice: 'auto',
        tools: [],
      },
      {},
    ],
    ['fields of nobody pass', '/v1/completions', { no_such_field: 1 }, {}],
  ];
  for (const [name, route, fields, expected] of cases)
    test(name, async () => {
      const response = await running.post(route, {
        ...(route === '/v1/completions' ? completion : chat),
        ...fields,
      });
      assert.equal(response.status, 200, await response.clone().text());
      assert.partialDeepStrictEqual(backend.requests[0]!.sampling, expected);
    });

  test('stop strings, as one or several', async () => {
    await running.post('/v1/completions', { ...completion, stop: 'a' });
    await running.post('/v1/completions', { ...completion, stop: ['a', 'b'] });
    assert.deepEqual(
      backend.requests.map(({ stop }) => stop),
      [['a'], ['a', 'b']],
    );
  });

  test('every form of a prompt', async () => {
    for (const prompt of ['Hello!', ['Hello!', 'Hello!'], [942, 3], [[942, 3], [942]]]) {
      backend.requests.length = 0;
      await running.post('/v1/completions', { ...completion, prompt });
      assert.deepEqual(Array.from(backend.requests[0]!.prompt), [942, 3], JSON.stringify(prompt));
      assert.equal(backend.requests.length, Array.isArray(prompt) && typeof prompt[0] !== 'number' ? 2 : 1);
    }
  });
});

describe('answers', () => {
  test('several prompts and choices are numbered prompt by prompt', async () => {
    const response = await running.post('/v1/completions', { ...completion, prompt: ['a', 'b'], n: 2 });
    const { choices, usage } = (await response.json()) as {
      choices: { index: number; text: string; finish_reason: string }[];
      usage: object;
    };
    assert.deepEqual(
      choices.map(({ index, text, finish_reason }) => [index, text, finish_reason]),
      [
        [0, 'Hello', 'stop'],
        [1, 'Hello', 'stop'],
        [2, 'Hello', 'stop'],
        [3, 'Hello', 'stop'],
      ],
    );
    assert.partialDeepStrictEqual(usage, { prompt_tokens: 2, completion_tokens: 8, total_tokens: 10 });
  });

  test('echo, token ids and logprobs of a completion', async () => {
    const fields = { echo: true, return_token_ids: true, logprobs: 1, prompt: 'Hello!' };
    const response = await running.post('/v1/completions', { ...completion, ...fields });
    const { choices } = (await response.json()) as { choices: Record<string, unknown>[] };
    assert.partialDeepStrictEqual(choices[0], {
      text: 'Hello!Hello',
      token_ids: [942, 942],
      prompt_token_ids: [942, 3],
      logprobs: {
        tokens: ['Hello', '!', 'Hello', 'Hello'],
        token_logprobs: [null, null, -0.5, -0.5],
        text_offset: [0, 5, 6, 11],
      },
    });
  });

  test('a stream of a completion ends with its reason, its usage and [DONE]', async () => {
    const response = await running.post('/v1/completions', {
      ...completion,
      stream: true,
      stream_options: { include_usage: true },
    });
    assert.match(response.headers.get('content-type')!, /^text\/event-stream/);
    const data = await events(response);
    assert.equal(data.pop(), '[DONE]');
    const chunks = data.map((each) => JSON.parse(each));
    assert.deepEqual(
      chunks.map(({ choices }) =>
        choices.map((c: { text: string; finish_reason: string }) => [c.text, c.finish_reason]),
      ),
      [[['Hel', null]], [['lo', null]], [['', 'stop']], []],
    );
    assert.partialDeepStrictEqual(chunks.at(-1).usage, { completion_tokens: 2 });
    assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
  });

  test('a stream of a chat begins with the role', async () => {
    const response = await running.post('/v1/chat/completions', { ...chat, stream: true, logprobs: true });
    const chunks = (await events(response)).slice(0, -1).map((each) => JSON.parse(each).choices[0]);
    assert.deepEqual(
      chunks.map(({ delta }) => delta),
      [{ role: 'assistant', content: '', refusal: null }, { content: 'Hel' }, { content: 'lo' }, {}],
    );
    assert.deepEqual(chunks[1].logprobs.content[0], {
      token: 'Hello',
      logprob: -0.5,
      bytes: [...Buffer.from('Hello')],
      top_logprobs: [],
    });
  });

  test('a stream that is silent says that it lives, and a whole answer does not', async (context) => {
    context.mock.timers.enable({ apis: ['setInterval'] });
    const { promise, resolve } = Promise.withResolvers<void>();
    backend.script = pausing(promise);
    const [stream, whole] = [true, false].map((stream) =>
      running.post('/v1/completions', { ...completion, stream }),
    );
    while (backend.running < 2) await sleep(5);
    context.mock.timers.tick(15_000);
    context.mock.timers.tick(15_000);
    resolve();
    const parts = (await (await stream!).text()).split('\n\n');
    assert.equal(parts.filter((part) => part === ': keep-alive').length, 2);
    assert.deepEqual(parts.slice(-2), ['data: [DONE]', '']);
    assert.equal(((await (await whole!).json()) as { choices: unknown[] }).choices.length, 1);
  });

  test('an error before the first token has its status, also when a stream was asked for', async () => {
    backend.script = async function* () {
      yield* [];
      throw new SluiceError('overloaded', 'the queue is full');
    };
    const response = await running.post('/v1/completions', { ...completion, stream: true });
    assert.equal(response.status, 429);
    assert.equal(response.headers.get('retry-after'), '2');
  });

  test('an error after it is an event, and the stream ends', async () => {
    backend.script = async function* () {
      yield { type: 'prompt', cachedTokens: 0 };
      yield { type: 'delta', choice: 0, text: 'Hel', tokenIds: [942] };
      throw new SluiceError('engine_failed', 'a thread died');
    };
    const data = await events(await running.post('/v1/completions', { ...completion, stream: true }));
    assert.equal(data.length, 2);
    assert.equal(JSON.parse(data[1]!).error.message, 'a thread died');
  });

  test('a bug of ours tells the client nothing but that', async () => {
    backend.script = async function* () {
      yield* [];
      throw new TypeError('secret detail');
    };
    const response = await running.post('/v1/completions', completion);
    assert.equal(response.status, 500);
    assert.doesNotMatch(await response.text(), /secret/);
  });

  test('tokenize and detokenize', async () => {
    const answer = async (route: string, body: object) => (await running.post(route, body)).json();
    assert.deepEqual(await answer('/tokenize', { prompt: 'Hello!', return_token_strs: true }), {
      count: 2,
      max_model_len: 64,
      tokens: [942, 3],
      token_strs: ['Hello', '!'],
    });
    assert.partialDeepStrictEqual(
      await answer('/tokenize', { messages: [{ role: 'user', content: 'Hello!' }] }),
      {
        tokens: [1, 311, 264, 201, 942, 3, 2, 201, 1, 295, 463, 343, 201],
      },
    );
    assert.partialDeepStrictEqual(
      await answer('/tokenize', {
        messages: [{ role: 'user', content: 'Hello!' }],
        add_generation_prompt: false,
      }),
      { tokens: [1, 311, 264, 201, 942, 3, 2, 201] },
    );
    assert.deepEqual(await answer('/detokenize', { tokens: [942, 3] }), { prompt: 'Hello!' });
  });

  test('long texts are tokenised to the same ids as short ones', async () => {
    const prompt = 'Hello! '.repeat(3000);
    const { tokens } = (await (await running.post('/tokenize', { prompt })).json()) as { tokens: number[] };
    assert.deepEqual(tokens, backend.words.tokenizer.encode(prompt));
    const messages = [{ role: 'user', content: prompt }];
    const answer = (await (await running.post('/tokenize', { messages })).json()) as { tokens: number[] };
    assert.deepEqual(
      answer.tokens,
      backend.words.tokenizer.encode(backend.words.template!.render(messages), {
        addSpecialTokens: false,
      }),
    );
  });

  test('probes are answered while a large body is read', async () => {
    const large = await startServer();
    const model = new ScriptedBackend();
    large.server.ready(model);
    const leave = new AbortController();
    const prompt = 'Hello! '.repeat(700_000);
    const answer = large.post('/tokenize', { prompt }, {}, leave.signal).catch(() => undefined);
    while (model.intake.pending === 0) assert.equal((await large.get('/health')).status, 200);
    for (const route of ['/health', '/livez', '/readyz', '/metrics'])
      assert.equal((await large.get(route)).status, 200);
    assert.equal(model.intake.pending, 1, 'the body is still being read');
    leave.abort();
    await answer;
    await large.server.shutdown(0, 0);
  });

  test('models, by list and by name', async () => {
    const { data } = (await (await running.get('/v1/models')).json()) as { data: { id: string }[] };
    assert.deepEqual(
      data.map(({ id }) => id),
      ['tiny', 'org/alias'],
    );
    assert.equal((await running.get('/v1/models/org/alias')).status, 200);
    assert.equal((await running.get('/v1/models/other')).status, 404);
  });
});
