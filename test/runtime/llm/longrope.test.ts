/** Two rotary tables through the whole loop and the real engine: by the whole prompt, in chunks, from a warm cache, crossing. */
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { createEngine } from '../../../runtime/engine/create-engine.ts';
import type { Engine } from '../../../runtime/engine/engine.ts';
import { GenerationLoop, type LoopOptions } from '../../../runtime/llm/loop.ts';
import { defaultLoopOptions } from '../../../runtime/llm.ts';
import { defaultSampling } from '../../../runtime/sampling/parameters.ts';

const folder = new URL('../../goldens/phi3-longrope', import.meta.url).pathname;
const { prompts } = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8')) as {
  prompts: { readonly ids: readonly number[]; readonly greedy: readonly number[] }[];
};
/** original_max_position_embeddings: beyond it the long factors count. */
const limit = 64;
const long = prompts.find(({ ids }) => ids.length > limit)!;

describe('longrope', () => {
  let engine: Engine;
  before(async () => {
    engine = await createEngine({
      checkpoint: { path: folder },
      devices: { kind: 'cpu', indices: [0] },
      maxBatchSize: 8,
      maxStepTokens: 32,
      blockTokens: 8,
      blockCount: 200,
    });
  });
  after(() => engine.close());

  const start = (options: Partial<LoopOptions> = {}): GenerationLoop =>
    new GenerationLoop(engine, [], { ...defaultLoopOptions, ...options }, () => 0);
  let handles = 0;
  const answer = (loop: GenerationLoop, prompt: readonly number[], maxTokens: number) => {
    const handle = handles++;
    loop.submit({
      handle,
      prompt: Int32Array.from(prompt),
      sampling: { ...defaultSampling, temperature: 0, maxTokens, ignoreEos: true },
      seed: 1,
      submittedAtMs: 0,
      priority: 0,
      cacheSalt: '',
    });
    const tokens: number[] = [];
    let cachedTokens = 0;
    while (!loop.idle) {
      const report = loop.turn();
      for (const { id } of report?.tokens ?? []) if (id !== undefined) tokens.push(id);
      for (const each of report?.prompts ?? []) cachedTokens = each.cachedTokens;
    }
    return { tokens, cachedTokens };
  };

  test("prompts on both sides of the limit, in chunks of at most 32, give the reference's tokens", () => {
    const loop = start();
    for (const { ids, greedy } of prompts)
      assert.deepEqual(answer(loop, ids, greedy.length).tokens, greedy, `a prompt of ${ids.length} tokens`);
  });

  test('a long prompt takes no block of a short one with the same beginning, but those of a long one', () => {
    const loop = start();
    answer(loop, long.ids.slice(0, limit - 8), 1);
    const cold = answer(loop, long.ids, long.greedy.length);
    assert.equal(cold.cachedTokens, 0);
    const warm = answer(loop, long.ids, long.greedy.length);
    assert.ok(warm.cachedTokens >= long.ids.length - 8, `${warm.cachedTokens} tokens were cached`);
    for (const { tokens } of [cold, warm]) assert.deepEqual(tokens, long.greedy);
  });

  for (const maxNumSteps of [1, 8]) {
    test(`a sequence that crosses the limit goes on as a prompt of its length would, ${maxNumSteps} steps on a visit`, () => {
      const prompt = long.ids.slice(0, limit - 5);
      const { tokens } = answer(start({ maxNumSteps }), prompt, 12);
      tokens.forEach((token, index) => {
        const before = [...prompt, ...tokens.slice(0, index)];
        const [expected] = answer(start({ prefixCaching: false }), before, 1).tokens;
        assert.equal(token, expected, `token ${index}, after ${before.length} tokens`);
      });
    });
  }
});
