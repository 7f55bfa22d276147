/** Every architecture other than Llama, by the plan that is hardest on it: sequences at once, prompts in odd chunks. */
import { test } from 'node:test';
import { checkGolden, openGolden, readGolden } from './harness.ts';

const cases = [
  'mistral',
  'phi3',
  'phi3-longrope',
  'olmo',
  'olmo2',
  'granite',
  'exaone',
  'qwen2',
  'qwen2-window',
  'qwen3',
  'gemma2',
];

for (const name of cases) {
  for (const ranks of [1, 3]) {
    test(`${name} equals the reference with ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`, async () => {
      const engine = await openGolden({ name, ranks, maxBatchSize: 6, maxStepTokens: 64 });
      try {
        checkGolden(engine, readGolden(name), { concurrent: 6, chunk: 23 });
      } finally {
        engine.close();
      }
    });
  }
}
