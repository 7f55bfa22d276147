import assert from 'node:assert';
import { afterEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { GenerationEvent, GenerationRequest } from '../../../runtime/generation.ts';
import type { LoopOptions } from '../../../runtime/llm/loop.ts';
import { LLM, type LoadHooks } from '../../../runtime/llm.ts';
import { defaultSampling, type SamplingParameters } from '../../../runtime/sampling/parameters.ts';
import { letters } from '../../support/letters.ts';
import { referenceGreedy } from '../../support/reference-engine.ts';
import type { ReferenceThreadOptions } from '../../support/reference-thread.ts';

const thread = new URL('../../support/reference-thread.ts', import.meta.url);
const greedy: Partial<SamplingParameters> = { temperature: 0, ignoreEos: true };
const opened: LLM[] = [];

async function start(
  options: Partial<ReferenceThreadOptions & LoopOptions> = {},
  hooks: LoadHooks = {},
): Promise<LLM> {
  const llm = await LLM.start(thread, letters, { blockCount: 256, ...options }, hooks);
  opened.push(llm);
  return llm;
}

afterEach(async () => {
  await Promise.all(opened.splice(0).map((llm) => llm.close()));
});

let requests = 0;

function requestOf(
  prompt: readonly number[],
  sampling: Partial<SamplingParameters>,
  rest: Partial<GenerationRequest> = {},
): GenerationRequest {
  return {
    id: `${requests++}`,
    prompt,
    stop: [],
    sampling: { ...defaultSampling, ...greedy, ...sampling },
    ...rest,
  };
}

async function all(events: AsyncIterable<GenerationEvent>): Promise<GenerationEvent[]> {
  return Array.fromAsync(events);
}

/** The engine's thread tells what it holds a moment later. */
async function released(llm: LLM): Promise<void> {
  while (llm.statistics().blocksUsed > 0 || llm.statistics().waiting > 0) await sleep(5);
}

describe('a request', () => {
  test('gives the prompt’s event, then tokens with their text, then the end', async () => {
    const llm = await start();
    const events = await all(llm.generate(requestOf([5, 6, 7], { maxTokens: 6 })));
    const answer = referenceGreedy([5, 6, 7], 6);
    const [first] = events;
    assert(first?.type === 'prompt' && first.queuedMs! >= 0);
    assert.equal(first.cachedTokens, 0);
    const deltas = events.filter((event) => event.type === 'delta');
    assert.deepEqual(
      deltas.flatMap((delta) => delta.tokenIds),
      answer,
    );
    assert.equal(deltas.map((delta) => delta.text).join(''), letters.decode(answer));
    assert.deepEqual(events.at(-1), {
      type: 'finish',
      choice: 0,
      reason: 'length',
      stopReason: null,
      completionTokens: 6,
    });
  });

  test('ends before a stop string that spans tokens, and counts no token after it', async () => {
    const llm = await start({ maxNumSteps: 8 });
    const answer = referenceGreedy([5, 6, 7], 30);
    const text = letters.decode(answer.slice(0, 5)) + letters.decode(answer.slice(5, 7));
    const stop = text.slice(-letters.decode([answer[6]!]).length - 1);
    const at = letters.decode(answer).indexOf(stop);
    let tokens = 0;
    while (letters.decode(answer.slice(0, tokens)).length < at + stop.length) tokens++;
    const { choices } = await llm.complete([5, 6, 7], { ...greedy, maxTokens: 30 }, { stop: [stop] });
    const events = await all(llm.generate(requestOf([5, 6, 7], { maxTokens: 30 }, { stop: [stop] })));
    assert.deepEqual(
      { ...choices[0] },
      {
        text: letters.decode(answer).slice(0, at),
        tokenIds: answer.slice(0, tokens),
        logprobs: [],
        reason: 'stop',
        stopReason: stop,
      },
    );
    const finish = events.at(-1)!;
    assert(finish.type === 'finish');
    assert.equal(finish.completionTokens, tokens);
    await released(llm);
  });

  test('gives out at its end what might have begun a stop string', async () => {
    const llm = await start();
    const answer = referenceGreedy([5, 6, 7], 6);
    const text = letters.decode(answer);
    const { choices } = await llm.complete(
      [5, 6, 7],
      { ...greedy, maxTokens: 6 },
      { stop: [`${text.slice(-2)}never`] },
    );
    assert.equal(choices[0]!.text, text);
  });

  test('a stop token is reported and counted, its text is not', async () => {
    const llm = await start();
    const answer = referenceGreedy([5, 6, 7], 6);
    const end = answer.indexOf(answer[3]!);
    const { choices } = await llm.complete([5, 6, 7], {
      ...greedy,
      maxTokens: 30,
      stopTokenIds: [answer[3]!],
    });
    const { tokenIds, text, stopReason } = choices[0]!;
    assert.deepEqual(
      [tokenIds, text, stopReason],
      [answer.slice(0, end + 1), letters.decode(answer.slice(0, end)), answer[3]],
    );
  });

  test('stop strings are not looked for in the first min_tokens tokens', async () => {
    const llm = await start();
    const answer = referenceGreedy([5, 6, 7], 12);
    const stop = letters.decode(answer.slice(0, 1));
    const { choices } = await llm.complete(
      [5, 6, 7],
      { ...greedy, maxTokens: 12, minTokens: 4 },
      { stop: [stop] },
    );
    assert(choices[0]!.tokenIds.length >= 5);
    assert.deepEqual(choices[0]!.tokenIds.slice(0, 4), answer.slice(0, 4));
  });

  test('log-probabilities come with their tokens', async () => {
    const llm = await start();
    const { choices, promptLogprobs } = await llm.complete([5, 6, 7], {
      ...greedy,
      maxTokens: 5,
      logprobs: 3,
      promptLogprobs: 2,
    });
    assert.deepEqual(
      choices[0]!.logprobs.map(({ id, top }) => [id, top[0]!.id, top.length]),
      referenceGreedy([5, 6, 7], 5).map((id) => [id, id, 3]),
    );
    assert.deepEqual(
      promptLogprobs.map((entry) => entry?.id ?? null),
      [null, 6, 7],
    );
  });

  test('of best_of choices the likeliest n come, best first, without log-probabilities nobody asked for', async () => {
    const llm = await start();
    const parameters = { seed: 3, maxTokens: 6, ignoreEos: true };
    const every = await llm.complete([5, 6, 7], { ...parameters, n: 5, bestOf: 5, logprobs: 0 });
    const best = await llm.complete([5, 6, 7], { ...parameters, n: 2, bestOf: 5 });
    const score = ({ logprobs }: { logprobs: readonly { logprob: number }[] }) =>
      logprobs.reduce((sum, { logprob }) => sum + logprob, 0) / logprobs.length;
    const expected = every.choices.toSorted((a, b) => score(b) - score(a)).slice(0, 2);
    assert.deepEqual(
      best.choices.map((choice) => choice.tokenIds),
      expected.map((choice) => choice.tokenIds),
    );
    assert.deepEqual(best.choices[0]!.logprobs, []);
  });

  test('without a seed two requests differ', async () => {
    const llm = await start();
    const sampling = { maxTokens: 20, ignoreEos: true };
    const [first, second] = await Promise.all([llm.complete([5], sampling), llm.complete([5], sampling)]);
    assert.notDeepEqual(first!.choices[0]!.tokenIds, second!.choices[0]!.tokenIds);
  });

  const refused: [string, Partial<SamplingParameters>, readonly number[], Record<string, unknown>][] = [
    ['an empty prompt', {}, [], { code: 'request_invalid', param: 'prompt' }],
    [
      'a token id beyond the vocabulary',
      {},
      [1, 64],
      { code: 'request_invalid', message: /token 1 .* 64.*0 to 63/ },
    ],
    ['a token id that is none', {}, [1.5], { code: 'request_invalid' }],
    ['a token id that would wrap around', {}, [2 ** 32], { code: 'request_invalid' }],
    [
      'a bias on an unknown token',
      { logitBias: [[99, 1]] },
      [1],
      { code: 'request_invalid', param: 'logit_bias' },
    ],
    ['best_of less than n', { n: 3, bestOf: 2 }, [1], { code: 'request_invalid', param: 'best_of' }],
    ['a prompt that cannot fit', {}, Array(256).fill(1), { code: 'context_exceeded', message: /256 tokens/ }],
  ];
  for (const [name, sampling, prompt, error] of refused) {
    test(`${name} is refused, by the iterator`, async () => {
      const llm = await start();
      await assert.rejects(all(llm.generate(requestOf(prompt, sampling))), error);
      assert.equal((await llm.complete([1], { ...greedy, maxTokens: 2 })).choices[0]!.tokenIds.length, 2);
    });
  }

  test('beyond the queue’s length is refused as overload', async () => {
    const llm = await start({ maxQueueSize: 2, maxBatchSize: 1, sleepAt: 63 });
    const outcomes = await Promise.allSettled(
      Array.from({ length: 8 }, () => llm.complete([63, 20], { ...greedy, maxTokens: 2 })),
    );
    const codes = outcomes.map((outcome) => (outcome.status === 'rejected' ? outcome.reason.code : 'served'));
    assert(codes.includes('overloaded') && codes.includes('served'));
    assert(codes.every((code) => code === 'overloaded' || code === 'served'));
  });
});

describe('readers', () => {
  test('that stop reading free the sequence, those that go on get everything', async () => {
    const llm = await start({ maxBatchSize: 16 });
    const outcomes = await Promise.all(
      Array.from({ length: 64 }, async (_, i) => {
        const prompt = [1 + (i % 60), 2, 3];
        const tokens: number[] = [];
        for await (const event of llm.generate(requestOf(prompt, { maxTokens: 40 }))) {
          if (event.type === 'delta') tokens.push(...event.tokenIds);
          if (i % 2 === 1 && tokens.length >= 7) break;
        }
        return { prompt, tokens };
      }),
    );
    outcomes.forEach(({ prompt, tokens }, i) => {
      if (i % 2 === 0) assert.deepEqual(tokens, referenceGreedy(prompt, 40));
      else assert.deepEqual(tokens, referenceGreedy(prompt, tokens.length));
    });
    await released(llm);
    assert.deepEqual([llm.statistics().running, llm.statistics().blocksUsed], [0, 0]);
  });

  test('that are slow hold up nobody, and find everything in few events', async () => {
    const llm = await start();
    const slow = llm.generate(requestOf([5, 6, 7], { maxTokens: 100 }));
    await slow.next();
    await llm.complete([8, 9], { ...greedy, maxTokens: 150 });
    await released(llm);
    // Reports come in order: once a later request has been answered, all of this one's have come.
    await llm.complete([1], { ...greedy, maxTokens: 1 });
    const events = await all(slow);
    assert.deepEqual(
      events.map((event) => event.type),
      ['delta', 'finish'],
    );
    assert.deepEqual(
      events.flatMap((event) => (event.type === 'delta' ? event.tokenIds : [])),
      referenceGreedy([5, 6, 7], 100),
    );
  });

  test('a stream that nobody reads is freed by return', async () => {
    const llm = await start();
    const stream = llm.generate(requestOf([5, 6, 7], { maxTokens: 200 }));
    await stream.return!();
    await released(llm);
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });

  test('a signal ends every choice with abort, also while the reader waits', async () => {
    const llm = await start({ sleepAt: 63 });
    const controller = new AbortController();
    const reading = all(
      llm.generate(requestOf([63, 20], { n: 2, bestOf: 2, maxTokens: 50 }), controller.signal),
    );
    await sleep(20);
    controller.abort();
    const finishes = (await reading).filter((event) => event.type === 'finish');
    assert.deepEqual(
      finishes.map(({ choice, reason }) => [choice, reason]),
      [
        [0, 'abort'],
        [1, 'abort'],
      ],
    );
    await released(llm);
  });

  test('a signal that has fired already runs nothing', async () => {
    const llm = await start();
    const events = await all(llm.generate(requestOf([5], {}), AbortSignal.abort()));
    assert.deepEqual(
      events.map((event) => event.type === 'finish' && event.reason),
      ['abort'],
    );
    await released(llm);
  });
});

describe('the engine’s life', () => {
  test('loading reports progress, and fails with the engine’s own words', async () => {
    const phases: string[] = [];
    await assert.rejects(
      start({ loadError: 'model.safetensors: truncated' }, { onProgress: ({ phase }) => phases.push(phase) }),
      { code: 'checkpoint_invalid', message: 'model.safetensors: truncated' },
    );
    assert.deepEqual(phases, ['weights']);
  });

  test('loading ends when its signal fires', async () => {
    const controller = new AbortController();
    const loading = start(
      { loadForever: true },
      { signal: controller.signal, onProgress: () => controller.abort() },
    );
    await assert.rejects(loading, { name: 'AbortError' });
  });

  for (const [name, options, message] of [
    ['throws', { failAt: 33 }, 'rank 1 is gone'],
    ['ends its thread', { exitAt: 33 }, "the engine's thread ended with code 7"],
  ] as const) {
    test(`when it ${name}, those who wait get the error, and so do those who come`, async () => {
      const { promise: told, resolve } = Promise.withResolvers<Error>();
      const llm = await start(options, { onFailure: resolve });
      const waiting = all(llm.generate(requestOf([5, 6, 7], { maxTokens: 200 })));
      const fatal = llm.complete([33], greedy);
      const error = { code: 'engine_failed', message };
      await Promise.all([assert.rejects(waiting, error), assert.rejects(fatal, error)]);
      await assert.rejects(llm.complete([1], greedy), error);
      assert.equal((await told).message, message);
      assert.equal(llm.failure?.message, message);
    });
  }

  test('silence is measured while a long step runs, and there is none without work', async () => {
    const llm = await start({ sleepAt: 63 });
    assert.equal(llm.silentMs(), 0);
    const running = llm.complete([63, 30], { ...greedy, maxTokens: 1 });
    let silent = 0;
    for (let i = 0; i < 1000 && silent < 100; i++) {
      await sleep(5);
      silent = Math.max(silent, llm.silentMs());
    }
    assert(silent >= 100, `${silent} ms`);
    await running;
    assert.equal(llm.silentMs(), 0);
  });

  test('drained, it finishes what runs and takes no more', async () => {
    const llm = await start();
    const running = llm.complete([5, 6, 7], { ...greedy, maxTokens: 100 });
    const drained = llm.drain();
    await assert.rejects(llm.complete([1], greedy), { code: 'unavailable' });
    await drained;
    assert.equal((await running).choices[0]!.tokenIds.length, 100);
  });

  test('closed, it ends what runs with an error, and its thread', async () => {
    const llm = await start();
    const running = llm.complete([5, 6, 7], { ...greedy, maxTokens: 200 });
    await Promise.all([assert.rejects(running, { code: 'unavailable' }), llm.close()]);
    await llm.close();
    await assert.rejects(llm.complete([1], greedy), { code: 'unavailable' });
  });

  test('statistics count what was done', async () => {
    const llm = await start({ maxBatchSize: 4 });
    await Promise.all(
      Array.from({ length: 8 }, (_, i) => llm.complete([i + 1, 9, 9], { ...greedy, maxTokens: 10 })),
    );
    await released(llm);
    const { generatedTokens, promptTokens, steps, stepSequences, blocksTotal } = llm.statistics();
    assert.deepEqual([generatedTokens, promptTokens, blocksTotal], [80, 24, 256]);
    assert.equal(stepSequences, 80);
    assert(steps <= 80);
  });
});
