import assert from 'node:assert';
import { describe, test } from 'node:test';
import { GenerationLoop, type LoopOptions } from '../../../runtime/llm/loop.ts';
import type { FailureReport, PromptReport } from '../../../runtime/llm/messages.ts';
import { defaultLoopOptions } from '../../../runtime/llm.ts';
import { defaultSampling, type SamplingParameters } from '../../../runtime/sampling/parameters.ts';
import {
  ReferenceEngine,
  type ReferenceEngineOptions,
  referenceGreedy,
  referenceLogits,
} from '../../support/reference-engine.ts';

const greedy: Partial<SamplingParameters> = { temperature: 0, ignoreEos: true };
const promptOf = (i: number) => Array.from({ length: 5 + i * 3 }, (_, at) => (at < 8 ? at : at * i) % 64);

/** A loop and what it reported, by handle and choice. */
class Trial {
  readonly engine: ReferenceEngine;
  readonly loop: GenerationLoop;
  readonly answers = new Map<string, number[]>();
  readonly endings = new Map<string, unknown>();
  readonly prompts = new Map<number, PromptReport>();
  readonly failures: FailureReport[] = [];
  clockMs = 0;
  readonly logprobs = new Map<string, number[]>();

  constructor(options: Partial<LoopOptions> = {}, engine: Partial<ReferenceEngineOptions> = {}) {
    this.engine = new ReferenceEngine({ blockCount: 64, ...engine });
    this.loop = new GenerationLoop(
      this.engine,
      [0],
      { ...defaultLoopOptions, ...options },
      () => this.clockMs,
    );
  }

  submit(
    handle: number,
    prompt: readonly number[],
    sampling: Partial<SamplingParameters>,
    cacheSalt = '',
  ): this {
    this.loop.submit({
      handle,
      prompt: Int32Array.from(prompt),
      sampling: { ...defaultSampling, ...sampling },
      seed: sampling.seed ?? 1,
      submittedAtMs: this.clockMs,
      priority: 0,
      cacheSalt,
    });
    return this;
  }

  turn(): boolean {
    const report = this.loop.turn();
    if (report === undefined) return false;
    for (const prompt of report.prompts) {
      assert(!this.prompts.has(prompt.handle), 'a prompt is reported twice');
      this.prompts.set(prompt.handle, prompt);
    }
    for (const { handle, choice, id, ending, logprob } of report.tokens) {
      const key = `${handle}.${choice}`;
      assert(!this.endings.has(key), 'a token after the end');
      if (id !== undefined) this.answers.set(key, [...(this.answers.get(key) ?? []), id]);
      if (logprob !== undefined) this.logprobs.set(key, [...(this.logprobs.get(key) ?? []), logprob.logprob]);
      if (ending !== undefined) this.endings.set(key, ending);
    }
    this.failures.push(...report.failures);
    return true;
  }

  finish(): this {
    while (this.turn());
    assert(this.loop.idle);
    assert.equal(this.loop.statistics().blocksUsed, 0);
    return this;
  }
}

describe('the loop', () => {
  const policies: [string, Partial<LoopOptions>, Partial<ReferenceEngineOptions>][] = [
    ['as it is by default', {}, {}],
    ['without prefix caching', { prefixCaching: false }, {}],
    ['without chunked prefill', { chunkedPrefill: false }, { maxStepTokens: 20 }],
    ['without in-flight batching', { inFlightBatching: false }, { maxStepTokens: 20 }],
    ['with eight steps on a visit', { maxNumSteps: 8 }, {}],
    ['with chunks of three tokens', {}, { maxStepTokens: 3 }],
    ['one at a time', {}, { maxBatchSize: 1 }],
    ['with a pool so small that sequences are preempted', {}, { blockCount: 17 }],
    ['growing from one rotary table into another', {}, { ropeLimit: 20 }],
    [
      'growing into another rotary table in chunks, with eight steps on a visit',
      { maxNumSteps: 8 },
      { ropeLimit: 21, maxStepTokens: 7 },
    ],
    [
      'growing into another rotary table while preempted',
      { maxNumSteps: 8 },
      { ropeLimit: 22, blockCount: 17 },
    ],
    [
      'preempted, with eight steps on a visit and no cache',
      { maxNumSteps: 8, prefixCaching: false },
      { blockCount: 17 },
    ],
  ];
  for (const [name, options, engine] of policies) {
    test(`gives the same greedy tokens ${name}`, () => {
      const trial = new Trial(options, engine);
      for (let i = 0; i < 12; i++) trial.submit(i, promptOf(i), { ...greedy, maxTokens: 20 });
      trial.finish();
      for (let i = 0; i < 12; i++)
        assert.deepEqual(trial.answers.get(`${i}.0`), referenceGreedy(promptOf(i), 20));
      if (engine.blockCount === 17) assert(trial.loop.statistics().preemptions > 0);
    });

    test(`gives the same random tokens ${name}`, () => {
      const run = (trial: Trial) => {
        for (let i = 0; i < 6; i++) {
          trial.submit(i, promptOf(i), {
            n: 3,
            bestOf: 3,
            seed: i,
            maxTokens: 12,
            ignoreEos: true,
            presencePenalty: 1,
          });
        }
        return trial.finish().answers;
      };
      const alone = run(new Trial({ prefixCaching: false }, { maxBatchSize: 1, blockCount: 64 }));
      const together = run(new Trial(options, engine));
      assert.equal(alone.size, 18);
      for (const [key, tokens] of alone) assert.deepEqual(together.get(key), tokens, key);
    });
  }

  test('choices share the prompt and differ from each other', () => {
    const trial = new Trial()
      .submit(1, promptOf(4), { n: 4, bestOf: 4, seed: 9, maxTokens: 10, ignoreEos: true })
      .finish();
    assert.equal(new Set([...trial.answers.values()].map(String)).size, 4);
    assert.equal(trial.loop.statistics().promptTokens, promptOf(4).length);
  });

  test('prompts on both sides of the limit share blocks only with their own side', () => {
    const prompt = (length: number) => Array.from({ length }, (_, i) => 1 + (i % 50));
    const trial = new Trial({}, { ropeLimit: 20 });
    const answer = (handle: number, length: number, maxTokens: number) => {
      trial.submit(handle, prompt(length), { ...greedy, maxTokens }).finish();
      assert.deepEqual(trial.answers.get(`${handle}.0`), referenceGreedy(prompt(length), maxTokens));
      return trial.prompts.get(handle)!.cachedTokens;
    };
    assert.equal(answer(1, 16, 2), 0);
    assert.equal(answer(2, 24, 2), 0, 'the first 16 tokens are cached, but turned by the other table');
    assert.equal(answer(3, 30, 2), 24);
    assert.equal(answer(4, 18, 1), 16);
    assert.equal(answer(5, 19, 9), 16, 'grows beyond the limit on cached blocks and is run anew');
    assert.equal(trial.loop.statistics().preemptions, 0, 'growing is no preemption');
  });

  test('a prompt that shares one and a half blocks reports what it found by rows', () => {
    const trial = new Trial().submit(1, [1, 2, 3, 4, 5, 6, 7, 8], { ...greedy, maxTokens: 1 }).finish();
    trial.submit(2, [1, 2, 3, 4, 5, 6, 9, 9, 9], { ...greedy, maxTokens: 5 }).finish();
    assert.equal(trial.prompts.get(2)!.cachedTokens, 6);
    assert.deepEqual(trial.answers.get('2.0'), referenceGreedy([1, 2, 3, 4, 5, 6, 9, 9, 9], 5));
    assert.equal(trial.loop.statistics().prefixHitTokens, 6);
  });

  test('an answer is found by the conversation that goes on from it', () => {
    const first = promptOf(3);
    const trial = new Trial().submit(1, first, { ...greedy, maxTokens: 9 }).finish();
    const second = [...first, ...trial.answers.get('1.0')!, 1, 2, 3];
    trial.submit(2, second, { ...greedy, maxTokens: 3 }).finish();
    assert(trial.prompts.get(2)!.cachedTokens >= first.length);
    assert.deepEqual(trial.answers.get('2.0'), referenceGreedy(second, 3));
  });

  test('a salt keeps requests from finding each other’s tokens', () => {
    const trial = new Trial().submit(1, promptOf(4), { ...greedy, maxTokens: 1 }, 'a').finish();
    trial.submit(2, promptOf(4), { ...greedy, maxTokens: 1 }, 'b').finish();
    trial.submit(3, promptOf(4), { ...greedy, maxTokens: 1 }, 'a').finish();
    assert.deepEqual(
      [trial.prompts.get(2)!.cachedTokens, trial.prompts.get(3)!.cachedTokens],
      [0, promptOf(4).length - 1],
    );
  });

  for (const [name, options] of [
    ['in one piece', {}],
    ['in chunks', { maxStepTokens: 4 }],
    ['preempted midway', { maxStepTokens: 6, blockCount: 12 }],
  ] as const) {
    test(`prompt log-probabilities are the model’s, ${name}`, () => {
      const trial = new Trial({}, options);
      for (let i = 0; i < 6; i++)
        trial.submit(i, promptOf(i), { ...greedy, maxTokens: 14, promptLogprobs: 1 });
      trial.finish();
      for (let i = 0; i < 6; i++) {
        const prompt = promptOf(i);
        const { promptLogprobs, cachedTokens } = trial.prompts.get(i)!;
        assert.equal(cachedTokens, 0);
        assert.equal(promptLogprobs!.length, prompt.length);
        assert.equal(promptLogprobs![0], null);
        for (let at = 1; at < prompt.length; at++) {
          const logits = new Float32Array(64);
          referenceLogits(prompt.slice(0, at), logits);
          const total = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
          assert.equal(promptLogprobs![at]!.id, prompt[at]);
          assert(Math.abs(promptLogprobs![at]!.logprob - (logits[prompt[at]!]! - total)) < 1e-6);
          assert.equal(promptLogprobs![at]!.top[0]!.id, logits.indexOf(Math.max(...logits)));
        }
        assert.deepEqual(trial.answers.get(`${i}.0`), referenceGreedy(prompt, 14));
      }
    });
  }

  test('time in the queue ends with the first step, not with the last of the prompt', () => {
    const trial = new Trial({}, { maxBatchSize: 1, maxStepTokens: 4 });
    trial
      .submit(1, promptOf(1), { ...greedy, maxTokens: 1 })
      .submit(2, promptOf(2), { ...greedy, maxTokens: 1 });
    for (let more = true; more; trial.clockMs += 10) more = trial.turn();
    // The first prompt has 8 tokens, so takes two steps; the second begins with the third.
    assert.deepEqual([trial.prompts.get(1)!.queuedMs, trial.prompts.get(2)!.queuedMs], [0, 20]);
  });

  test('with no new tokens wanted, only the prompt is run', () => {
    const trial = new Trial().submit(1, promptOf(2), { maxTokens: 0, promptLogprobs: 0 }).finish();
    assert.equal(trial.answers.size, 0);
    assert.deepEqual([...trial.endings], [['1.0', { reason: 'length', stopReason: null }]]);
    assert.equal(trial.prompts.get(1)!.promptLogprobs!.length, promptOf(2).length);
  });

  test('ends at a stop token, at the limit, or where the sequence fits no more', () => {
    const answer = referenceGreedy([5, 6], 60);
    const trial = new Trial({}, { maxLength: 20 });
    trial.submit(1, [5, 6], { ...greedy, maxTokens: 30, stopTokenIds: [answer[4]!] });
    trial.submit(2, [5, 6], { ...greedy, maxTokens: 3 });
    trial.submit(3, [5, 6], { ...greedy, maxTokens: 30 });
    trial.finish();
    assert.deepEqual(
      [1, 2, 3].map((i) => [trial.answers.get(`${i}.0`)!.length, trial.endings.get(`${i}.0`)]),
      [
        [answer.indexOf(answer[4]!) + 1, { reason: 'stop', stopReason: answer[4] }],
        [3, { reason: 'length', stopReason: null }],
        [18, { reason: 'length', stopReason: null }],
      ],
    );
  });

  test('a prompt as long as the context is refused, with the numbers, and harms nobody', () => {
    const trial = new Trial({}, { maxLength: 20 });
    const long = Array.from({ length: 20 }, () => 1);
    assert.throws(() => trial.submit(1, long, greedy), {
      code: 'context_exceeded',
      message: /20 tokens.*fit 20/,
    });
    trial.submit(2, promptOf(1), { ...greedy, maxTokens: 2 }).finish();
    assert.equal(trial.answers.get('2.0')!.length, 2);
  });

  test('an aborted request’s blocks are free at once, whatever it was doing', () => {
    const trial = new Trial({}, { maxStepTokens: 8 });
    trial.submit(1, promptOf(6), { n: 3, bestOf: 3, maxTokens: 50, ignoreEos: true });
    trial.loop.abort(1);
    assert(trial.loop.idle);
    trial.submit(2, promptOf(6), { n: 3, bestOf: 3, maxTokens: 50, ignoreEos: true });
    trial.turn();
    trial.loop.abort(2);
    assert.equal(trial.loop.statistics().blocksUsed, 0);
    trial.submit(3, promptOf(6), { n: 3, bestOf: 3, maxTokens: 50, ignoreEos: true });
    for (let i = 0; i < 6; i++) trial.turn();
    trial.loop.abort(3, 1);
    assert.equal(trial.loop.statistics().running, 2);
    trial.loop.abort(3);
    trial.loop.abort(3);
    assert.deepEqual([trial.loop.statistics().blocksUsed, trial.loop.idle], [0, true]);
  });

  test('a row without a number fails its request and no other', () => {
    const trial = new Trial();
    const { step } = trial.engine;
    trial.engine.step = (batch, onRow) => {
      step.call(trial.engine, batch, (slice, row, logits) => {
        const { values, row: changed } = logits.copy();
        if (batch.slices[slice]!.tokens.length === 7) values.fill(Number.NaN);
        onRow(slice, row, changed);
      });
    };
    trial
      .submit(1, [9, 9, 9, 9, 9, 9, 9], greedy)
      .submit(2, [8, 8, 8], { ...greedy, maxTokens: 4 })
      .finish();
    assert.deepEqual(
      trial.failures.map(({ handle, code }) => [handle, code]),
      [[1, 'engine_failed']],
    );
    assert.deepEqual(trial.answers.get('2.0'), referenceGreedy([8, 8, 8], 4));
  });

  test('thirty-two requests that share a prefix run it once', () => {
    const shared = Array.from({ length: 40 }, (_, i) => i);
    const trial = new Trial({}, { blockCount: 200, maxBatchSize: 32, maxStepTokens: 64 });
    for (let i = 0; i < 32; i++) trial.submit(i, [...shared, i, i], { ...greedy, maxTokens: 4 });
    trial.finish();
    assert.equal(trial.loop.statistics().promptTokens, 42 + 31 * 2);
    for (let i = 0; i < 32; i++)
      assert.deepEqual(trial.answers.get(`${i}.0`), referenceGreedy([...shared, i, i], 4));
  });
});
