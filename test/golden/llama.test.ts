import { test } from 'node:test';
import { checkGolden, goldenPlans, openGolden, readGolden } from './harness.ts';

const cases = ['llama-basic', 'llama3-rope', 'llama-sharded'];

for (const name of cases) {
  for (const ranks of [1, 2, 3]) {
    test(`${name} equals the reference with ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`, async (t) => {
      const engine = await openGolden({ name, ranks });
      try {
        const golden = readGolden(name);
        for (const plan of goldenPlans) {
          await t.test(plan.name, () => checkGolden(engine, golden, plan));
        }
      } finally {
        engine.close();
      }
    });
  }
}
