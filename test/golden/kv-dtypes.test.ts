/** Keys and values kept in fewer bits: near the reference on a dense checkpoint, nearer the more bits there are. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkGolden, meanLogprobDifference, openGolden, readGolden } from './harness.ts';

for (const name of ['llama-basic', 'llama3-rope']) {
  test(`${name} with bfloat16 and int8 KV stays near the reference, float32 KV equals it`, async () => {
    const golden = readGolden(name);
    const differences: number[] = [];
    for (const kvDType of ['float32', 'bfloat16', 'int8'] as const) {
      const engine = await openGolden({ name, ranks: 2, kvDType });
      try {
        if (kvDType === 'float32') checkGolden(engine, golden, { concurrent: 2, chunk: 23 });
        differences.push(meanLogprobDifference(engine, golden));
      } finally {
        engine.close();
      }
    }
    const [exact, half, byte] = differences as [number, number, number];
    assert.ok(exact < 1e-4, `float32: ${exact}`);
    assert.ok(half > exact && half <= 0.02, `bfloat16: ${half}, at most 0.02 on average`);
    assert.ok(byte > exact && byte <= 0.05, `int8: ${byte}, at most 0.05 on average`);
  });
}
