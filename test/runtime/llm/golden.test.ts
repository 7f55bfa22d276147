/**
 * The reference's greedy tokens and log-probabilities, from the real engine, in every policy and on one to three ranks.
 */
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { createEngine } from '../../../runtime/engine/create-engine.ts';
import type { Engine } from '../../../runtime/engine/engine.ts';
import type { TokenLogprob } from '../../../runtime/generation.ts';
import { GenerationLoop, type LoopOptions } from '../../../runtime/llm/loop.ts';
import { defaultLoopOptions, LLM } from '../../../runtime/llm.ts';
import { defaultSampling, type SamplingParameters } from '../../../runtime/sampling/parameters.ts';
import { loadTokenizer } from '../../../runtime/tokenizer/hugging-face.ts';

interface Golden {
  readonly prompts: readonly {
    readonly ids: readonly number[];
    readonly greedy: readonly number[];
    readonly greedy_text: string;
    readonly logits_full: readonly number[];
    readonly logprobs_all: readonly number[];
  }[];
}

interface TinyCase {
  readonly prompt_ids: readonly number[];
  readonly output_ids: readonly number[];
  readonly text: string;
  readonly finish_reason: string;
}

const folderOf = (name: string) => new URL(`../../goldens/${name}`, import.meta.url).pathname;
const goldenOf = (folder: string): Golden => JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'));
const greedy: SamplingParameters = { ...defaultSampling, temperature: 0, maxTokens: 24, ignoreEos: true };
const limits = { maxBatchSize: 32, maxStepTokens: 96, blockTokens: 8, blockCount: 600 };

interface Answers {
  readonly tokens: number[][];
  readonly promptLogprobs: (readonly (TokenLogprob | null)[] | undefined)[];
  readonly loop: GenerationLoop;
}

/** Runs prompts together over an engine that may be shown as smaller than it is. */
function run(
  engine: Engine,
  prompts: readonly (readonly number[])[],
  options: {
    loop?: Partial<LoopOptions>;
    info?: Partial<Engine['info']>;
    sampling?: Partial<SamplingParameters>;
  } = {},
): Answers {
  const shown: Engine = {
    info: { ...engine.info, ...options.info },
    step: (batch, onRow) => engine.step(batch, onRow),
    close: () => {},
  };
  const loop = new GenerationLoop(shown, [], { ...defaultLoopOptions, ...options.loop }, () => 0);
  const answers: Answers = {
    tokens: prompts.map(() => []),
    promptLogprobs: prompts.map(() => undefined),
    loop,
  };
  prompts.forEach((prompt, handle) => {
    const sampling = { ...greedy, ...options.sampling };
    loop.submit({
      handle,
      prompt: Int32Array.from(prompt),
      sampling,
      seed: 1,
      submittedAtMs: 0,
      priority: 0,
      cacheSalt: '',
    });
  });
  while (!loop.idle) {
    const report = loop.turn();
    for (const { handle, id } of report?.tokens ?? []) if (id !== undefined) answers.tokens[handle]!.push(id);
    for (const { handle, promptLogprobs } of report?.prompts ?? [])
      answers.promptLogprobs[handle] = promptLogprobs;
  }
  assert.equal(loop.statistics().blocksUsed, 0);
  return answers;
}

/** Runs requests one after another through one cache; `cached` gets the tokens that each found there. */
function sequence(
  engine: Engine,
  requests: readonly { ids: readonly number[]; sampling: Partial<SamplingParameters> }[],
  cached: number[],
): number[][] {
  const shown: Engine = {
    info: engine.info,
    step: (batch, onRow) => engine.step(batch, onRow),
    close: () => {},
  };
  const loop = new GenerationLoop(shown, [], defaultLoopOptions, () => 0);
  return requests.map(({ ids, sampling }, handle) => {
    loop.submit({
      handle,
      prompt: Int32Array.from(ids),
      sampling: { ...greedy, ...sampling },
      seed: 1,
      submittedAtMs: 0,
      priority: 0,
      cacheSalt: '',
    });
    const tokens: number[] = [];
    while (!loop.idle) {
      const report = loop.turn();
      for (const { id } of report?.tokens ?? []) if (id !== undefined) tokens.push(id);
      for (const { cachedTokens } of report?.prompts ?? []) cached.push(cachedTokens);
    }
    return tokens;
  });
}

/** The others whose layers are Llama's but for details: what holds for one policy holds for all. */
for (const name of ['mistral', 'qwen2', 'qwen3', 'granite', 'olmo2', 'phi3']) {
  test(`${name}: greedy tokens equal the reference in every policy, on two ranks`, async () => {
    const folder = folderOf(name);
    const { prompts } = goldenOf(folder);
    const many = Array.from({ length: 24 }, (_, i) => prompts[i % prompts.length]!);
    const engine = await createEngine({
      checkpoint: { path: folder },
      devices: { kind: 'cpu', indices: [0, 1] },
      ...limits,
    });
    try {
      const policies: [Partial<LoopOptions>, Partial<Engine['info']>][] = [
        [{}, {}],
        [{ prefixCaching: false, maxNumSteps: 8 }, { maxStepTokens: 7 }],
        [{ inFlightBatching: false, chunkedPrefill: false }, { blockCount: 20 }],
      ];
      for (const [loop, info] of policies) {
        const { tokens } = run(
          engine,
          many.map(({ ids }) => ids),
          { loop, info },
        );
        for (const [i, found] of tokens.entries()) assert.deepEqual(found, many[i]!.greedy, `request ${i}`);
      }
    } finally {
      engine.close();
    }
  });
}

for (const name of ['llama-basic', 'llama3-rope', 'llama-sharded']) {
  for (const ranks of [1, 2, 3]) {
    describe(`${name} on ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`, () => {
      const folder = folderOf(name);
      const { prompts } = goldenOf(folder);
      const many = Array.from({ length: 24 }, (_, i) => prompts[i % prompts.length]!);
      let engine: Engine;

      before(async () => {
        const indices = Array.from({ length: ranks }, (_, i) => i);
        engine = await createEngine({
          checkpoint: { path: folder },
          devices: { kind: 'cpu', indices },
          ...limits,
        });
      });

      after(() => engine?.close());

      test('greedy tokens equal the reference, one request at a time', () => {
        for (const { ids, greedy } of prompts) assert.deepEqual(run(engine, [ids]).tokens, [greedy]);
      });

      const policies: [string, Partial<LoopOptions>, Partial<Engine['info']>][] = [
        ['as usual', {}, {}],
        ['without prefix caching', { prefixCaching: false }, {}],
        ['with prefix caching, but not aware of it when scheduling', { prefixAware: false }, {}],
        ['without chunked prefill', { chunkedPrefill: false }, {}],
        ['in chunks of seven tokens', { prefixCaching: false }, { maxStepTokens: 7 }],
        ['without in-flight batching', { inFlightBatching: false }, {}],
        ['with eight steps on a visit', { maxNumSteps: 8 }, {}],
        ['one at a time', {}, { maxBatchSize: 1 }],
        ['three at a time', {}, { maxBatchSize: 3 }],
        [
          'preempted, with eight steps on a visit and neither chunks nor in-flight batches',
          { prefixAware: false, maxNumSteps: 8, chunkedPrefill: false, inFlightBatching: false },
          { blockCount: 20 },
        ],
        ['in so few blocks that sequences are preempted', { prefixAware: false }, { blockCount: 20 }],
        ['preempted, without prefix caching', { prefixCaching: false }, { blockCount: 20 }],
      ];
      // Aware of prefixes, these requests share so many blocks that nobody is preempted: those policies go by arrival.
      for (const [policy, loop, info] of policies) {
        test(`greedy tokens equal the reference, 24 requests at once, ${policy}`, () => {
          const answers = run(
            engine,
            many.map(({ ids }) => ids),
            { loop, info },
          );
          answers.tokens.forEach((tokens, i) => {
            assert.deepEqual(tokens, many[i]!.greedy, `request ${i}`);
          });
          const { preemptions, prefixHitTokens } = answers.loop.statistics();
          if (info.blockCount !== undefined) assert(preemptions > 0);
          assert.equal(prefixHitTokens > 0, loop.prefixCaching !== false);
        });
      }

      test('prompt log-probabilities equal the reference', () => {
        const sampling = { promptLogprobs: 0, maxTokens: 0 };
        const answers = run(
          engine,
          many.map(({ ids }) => ids),
          { sampling, info: { maxStepTokens: 50 } },
        );
        answers.promptLogprobs.forEach((logprobs, i) => {
          const { ids, logits_full: logits, logprobs_all: expected } = many[i]!;
          const tolerance = 2e-3 * (Math.max(...logits) - Math.min(...logits));
          assert.equal(logprobs!.length, ids.length);
          expected.forEach((logprob, at) => {
            const found = logprobs![at + 1]!;
            assert.equal(found.id, ids[at + 1]);
            assert(
              Math.abs(found.logprob - logprob) < tolerance,
              `${found.logprob} at ${at + 1}, not ${logprob}`,
            );
          });
        });
      });

      test('choices of greedy requests equal the reference too, also when they are preempted', () => {
        for (const blockCount of [limits.blockCount, 24]) {
          const shown = prompts.filter(({ ids }) => ids.length + 24 < 8 * 20);
          const { tokens } = run(
            engine,
            shown.map(({ ids }) => ids),
            { sampling: { n: 3, bestOf: 3 }, info: { blockCount } },
          );
          tokens.forEach((found, i) => {
            const expected = shown[i]!.greedy;
            const wanted = expected.flatMap((id) => [id, id, id]).toSorted();
            assert.deepEqual(found.toSorted(), wanted, `request ${i}`);
          });
        }
      });

      test('a request for prompt log-probabilities reads no cache and fills it', () => {
        const { ids, greedy: expected } = prompts.toSorted((a, b) => b.ids.length - a.ids.length)[0]!;
        const cached: number[] = [];
        const found = sequence(
          engine,
          [
            { ids, sampling: { maxTokens: 4 } },
            { ids, sampling: { maxTokens: 4, promptLogprobs: 0 } },
            { ids, sampling: {} },
          ],
          cached,
        );
        assert.deepEqual(found, [expected.slice(0, 4), expected.slice(0, 4), expected]);
        const held = (rows: number) => Math.min(ids.length - 1, rows - (rows % limits.blockTokens));
        assert.deepEqual(cached, [0, 0, held(ids.length + 3)]);
        const fresh: number[] = [];
        sequence(
          engine,
          [
            { ids, sampling: { maxTokens: 0, promptLogprobs: 0 } },
            { ids, sampling: {} },
          ],
          fresh,
        );
        assert.deepEqual(fresh, [0, held(ids.length)]);
      });

      test('a prompt that shares one and a half blocks reports rows, and writes no block that it shares', () => {
        const long = prompts.toSorted((a, b) => b.ids.length - a.ids.length)[0]!.ids;
        assert(long.length >= 16);
        const first = long.slice(0, 16);
        const second = [
          ...long.slice(0, 12),
          (long[12]! + 1) % engine.info.vocabulary,
          ...long.slice(13, 16),
        ];
        const cached: number[] = [];
        const [before, between, after] = sequence(
          engine,
          [first, second, first].map((ids) => ({ ids, sampling: { maxTokens: 8 } })),
          cached,
        );
        assert.deepEqual(cached, [0, 12, 15]);
        assert.deepEqual(after, before);
        assert.deepEqual(between, run(engine, [second], { sampling: { maxTokens: 8 } }).tokens[0]);
      });

      test('choices of one prompt copy what they share before they write', () => {
        const seeded = { temperature: 1, n: 4, bestOf: 4 };
        for (const { ids } of prompts) {
          const shared = run(engine, [ids], { sampling: seeded });
          const apart = run(engine, [ids], {
            sampling: seeded,
            loop: { prefixCaching: false },
            info: { maxBatchSize: 1 },
          });
          assert.deepEqual(shared.tokens[0]!.toSorted(), apart.tokens[0]!.toSorted());
        }
      });
    });
  }
}

describe('the embedded model, on a thread', () => {
  const folder = new URL('../../../examples/models/tiny', import.meta.url).pathname;
  const { cases } = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8')) as { cases: TinyCase[] };

  test('answers with the reference’s text, many at once, and leaves no block in use', async () => {
    const llm = await LLM.load(loadTokenizer(folder), { checkpoint: { path: folder }, ...limits });
    try {
      const sampling = { temperature: 0, maxTokens: 64 };
      const all = Array.from({ length: 24 }, (_, i) => cases[i % cases.length]!);
      const answers = await Promise.all(all.map(({ prompt_ids }) => llm.complete(prompt_ids, sampling)));
      answers.forEach(({ choices }, i) => {
        assert.deepEqual(choices[0]!.tokenIds, all[i]!.output_ids);
        assert.equal(choices[0]!.text, all[i]!.text);
        assert.equal(choices[0]!.reason, all[i]!.finish_reason);
      });
      assert.equal(llm.statistics().blocksUsed, 0);
    } finally {
      await llm.close();
    }
  });
});
