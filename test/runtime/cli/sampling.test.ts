/** Fields that choose tokens, over HTTP with the real demo model: what one answer says is checked by other answers. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { ServeProcess } from './program.ts';

interface Choice {
  readonly index: number;
  readonly token_ids: number[];
  readonly finish_reason: string;
  readonly stop_reason: number | null;
  readonly logprobs: {
    readonly tokens: string[];
    readonly token_logprobs: (number | null)[];
    readonly top_logprobs: (Record<string, number> | null)[];
  };
}

interface Answer {
  readonly choices: Choice[];
  readonly usage: {
    readonly completion_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number };
  };
}

async function complete(program: ServeProcess, fields: object): Promise<Answer> {
  const common = { model: 'tiny', ignore_eos: true, return_token_ids: true, max_tokens: 16 };
  const response = await program.post('/v1/completions', { ...common, ...fields });
  assert.equal(response.status, 200, await response.clone().text());
  return (await response.json()) as Answer;
}

/** Ids that are no words: nothing of them is in the cache unless the test has put it there. */
const idsOf = (seed: number, length: number) =>
  Array.from({ length }, (_, i) => 300 + ((seed * 7919 + i * 31 + ((i * i) % 97)) % 1500));

const block = 32;

describe('one server', () => {
  let program: ServeProcess;
  before(async () => {
    program = await ServeProcess.ready(['--kv-cache-page-size=32']);
  });
  after(() => program[Symbol.asyncDispose]());

  const prompt = [942, 3, 17, 940];
  const greedy = async (fields: object = {}, from = prompt) => {
    const { choices } = await complete(program, { prompt: from, temperature: 0, ...fields });
    return choices[0]!;
  };

  test('a bias of 100 chooses its token each time, one of -100 the second most likely', async () => {
    assert.deepEqual((await greedy({ logit_bias: { 77: 100 } })).token_ids, Array(16).fill(77));
    const [first] = (await greedy({ max_tokens: 1 })).token_ids;
    const [other] = (await greedy({ max_tokens: 1, logit_bias: { [first!]: -100 } })).token_ids;
    const { logprobs } = await greedy({ max_tokens: 1, logprobs: 2, return_tokens_as_token_ids: true });
    const ranked = Object.entries(logprobs.top_logprobs[0]!).sort(([, a], [, b]) => b - a);
    assert.deepEqual(
      ranked.map(([token]) => token),
      [`token_id:${first}`, `token_id:${other}`],
    );
  });

  const penalties: [string, object, (count: number) => number][] = [
    ['presence', { presence_penalty: 1.5 }, () => 1.5],
    ['frequency', { frequency_penalty: 0.75 }, (count) => 0.75 * count],
    ['both', { presence_penalty: -0.5, frequency_penalty: 1.25 }, (count) => 1.25 * count - 0.5],
  ];
  for (const [name, fields, penalty] of penalties)
    test(`penalties of ${name}: as if each token so far had a bias against it`, async () => {
      const whole = (await greedy({ max_tokens: 48, ...fields })).token_ids;
      assert.notDeepEqual(whole, (await greedy({ max_tokens: 48 })).token_ids);
      for (let length = 0; length < whole.length; length++) {
        const before = whole.slice(0, length);
        const counts = Map.groupBy(before, (id) => id);
        const bias = Object.fromEntries([...counts].map(([id, each]) => [id, -penalty(each.length)]));
        const next = await greedy({ max_tokens: 1, logit_bias: bias }, [...prompt, ...before]);
        assert.deepEqual(next.token_ids, [whole[length]]);
      }
    });

  test('a penalty on repetition reaches the tokens of the prompt too', async () => {
    const repeated = [...prompt, ...(await greedy()).token_ids];
    const fresh = (await greedy({ repetition_penalty: 10 }, repeated)).token_ids;
    assert.equal(new Set([...repeated, ...fresh]).size, new Set(repeated).size + fresh.length);
  });

  test('a stop token ends the answer and is named', async () => {
    const { token_ids: whole } = await greedy();
    const stop = whole[5]!;
    const answer = await greedy({ stop_token_ids: [stop] });
    assert.deepEqual(answer.token_ids, whole.slice(0, whole.indexOf(stop) + 1));
    assert.deepEqual([answer.finish_reason, answer.stop_reason], ['stop', stop]);
  });

  test('best_of gives the likeliest of its choices, best first', async () => {
    const fields = { prompt, seed: 11, temperature: 1, max_tokens: 8, logprobs: 0 };
    const every = await complete(program, { ...fields, n: 5 });
    const best = await complete(program, { ...fields, n: 2, best_of: 5 });
    const score = ({ logprobs: { token_logprobs } }: Choice) =>
      token_logprobs.reduce<number>((sum, each) => sum + each!, 0);
    const expected = every.choices.toSorted((a, b) => score(b) - score(a)).slice(0, 2);
    assert.deepEqual(
      best.choices.map((choice) => choice.token_ids),
      expected.map((choice) => choice.token_ids),
    );
    assert.deepEqual(
      best.choices.map(({ index }) => index),
      [0, 1],
    );
  });

  test('log-probabilities of a chat: the token’s own first, alternatives in order', async () => {
    const messages = [{ role: 'user', content: 'Hello!' }];
    const fields = {
      model: 'tiny',
      messages,
      temperature: 0,
      max_tokens: 4,
      logprobs: true,
      top_logprobs: 3,
    };
    const response = await program.post('/v1/chat/completions', fields);
    const { choices } = (await response.json()) as {
      choices: {
        logprobs: {
          content: { token: string; logprob: number; top_logprobs: { token: string; logprob: number }[] }[];
        };
      }[];
    };
    const { content } = choices[0]!.logprobs;
    assert.ok(content.length > 0);
    for (const { token, logprob, top_logprobs: top } of content) {
      assert.equal(top.length, 3);
      assert.deepEqual(top[0], { ...top[0], token, logprob });
      assert.deepEqual(
        top,
        top.toSorted((a, b) => b.logprob - a.logprob),
      );
    }
  });

  test('a random answer depends on its seed, choice and position only, however busy the batch is', async () => {
    const fields = { prompt, seed: 7, temperature: 1, max_tokens: 24 };
    const tokens = ({ choices }: Answer) => choices.map((choice) => choice.token_ids);
    const alone = tokens(await complete(program, { ...fields, n: 2 }));
    assert.notDeepEqual(alone[0], alone[1]);
    const others = Array.from({ length: 20 }, (_, i) =>
      complete(program, { prompt: idsOf(i, 5 + 9 * i), temperature: 1.5, max_tokens: 40 }),
    );
    const busy = tokens(await complete(program, { ...fields, n: 4 }));
    await Promise.all(others);
    assert.deepEqual(busy.slice(0, 2), alone);
    const short = tokens(await complete(program, { ...fields, max_tokens: 9 }));
    assert.deepEqual(short, [alone[0]!.slice(0, 9)]);
    const cut = alone[0]!.slice(0, 9);
    const goingOn = await complete(program, { ...fields, prompt: [...prompt, ...cut], max_tokens: 15 });
    assert.deepEqual(tokens(goingOn), [alone[0]!.slice(9)]);
    assert.notDeepEqual(tokens(await complete(program, { ...fields, seed: 8 })), [alone[0]]);
  });

  test('a prompt that shares one and a half blocks reports so many rows, and writes none of them', async () => {
    const shared = 1.5 * block;
    const first = idsOf(100, 3 * block);
    const second = [...first.slice(0, shared), ...idsOf(200, 2 * block)];
    const ask = (ids: readonly number[]) => complete(program, { prompt: ids, temperature: 0 });
    const cached = ({ usage }: Answer) => usage.prompt_tokens_details.cached_tokens;
    const before = await ask(first);
    assert.equal(cached(before), 0);
    assert.equal(cached(await ask(second)), shared);
    const again = await ask(first);
    // The last token must run, to have logits.
    assert.equal(cached(again), first.length - 1);
    assert.deepEqual(again.choices, before.choices);
  });

  test('with a salt a prompt is found by the same salt alone', async () => {
    const salted = async (salt: string | undefined) => {
      const fields = salt === undefined ? {} : { cache_salt: salt };
      const { usage } = await complete(program, { prompt: idsOf(300, 2 * block), max_tokens: 1, ...fields });
      return usage.prompt_tokens_details.cached_tokens;
    };
    assert.deepEqual(
      [await salted('a'), await salted('b'), await salted(undefined), await salted('a'), await salted('b')],
      [0, 0, 0, 2 * block - 1, 2 * block - 1],
    );
  });
});

test('of those that wait the lowest priority number is first, equals by arrival', async () => {
  await using program = await ServeProcess.ready(['--max-batch-size=1']);
  const order: string[] = [];
  const ask = async (name: string, priority: number | undefined, tokens: number) => {
    const fields = priority === undefined ? {} : { priority };
    await complete(program, { prompt: idsOf(name.length, 8), max_tokens: tokens, ...fields });
    order.push(name);
  };
  const waiting = async (count: number) => {
    while ((await program.metric('sluice_requests_waiting')) < count);
  };
  const all = [ask('running', undefined, 900)];
  while ((await program.metric('sluice_requests_running')) < 1);
  for (const [name, priority] of [
    ['late', 5],
    ['usual', undefined],
    ['first', -1],
    ['usual too', 0],
  ] as const) {
    all.push(ask(name, priority, 1));
    await waiting(all.length - 1);
  }
  await Promise.all(all);
  assert.deepEqual(order, ['running', 'first', 'usual', 'usual too', 'late']);
});
