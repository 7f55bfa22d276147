/**
 * Checkpoints that were published quantized, in every format: exact with float32 products, near with int8 ones.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { availableInstructionSets, type CpuKernels } from '../../runtime/engine/kernels/x64/processor.ts';
import { openCheckpoint } from '../../runtime/weights/open.ts';
import { splitGguf } from '../support/split-gguf.ts';
import { checkGolden, goldenFolder, meanLogprobDifference, openGolden, readGolden } from './harness.ts';

const cases = ['gptq-4bit', 'gptq-8bit', 'gptq-act', 'awq', 'gguf-q4_0', 'gguf-q8_0', 'gguf-k'];

for (const name of cases) {
  for (const ranks of [1, 2]) {
    test(`${name} equals the reference with ${ranks} ${ranks === 1 ? 'rank' : 'ranks'} in float32`, async () => {
      const engine = await openGolden({ name, ranks, maxBatchSize: 6, quantizedCompute: 'float32' });
      try {
        const golden = readGolden(name);
        checkGolden(engine, golden, { concurrent: 1, chunk: 1000 });
        checkGolden(engine, golden, { concurrent: 6, chunk: 23 });
      } finally {
        engine.close();
      }
    });
  }

  const forms: readonly {
    title: string;
    cpuKernels: CpuKernels;
    prefillWeights: 'none' | 'auto';
    most: number;
  }[] = [
    ...[...availableInstructionSets(), 'portable' as const].map((cpuKernels) => ({
      title: `int8 activations and ${cpuKernels} kernels`,
      cpuKernels,
      prefillWeights: 'none' as const,
      most: 0.1,
    })),
    {
      title: 'int8 weights and activations for many rows',
      cpuKernels: 'portable',
      prefillWeights: 'auto',
      most: 0.2,
    },
  ];
  for (const { title, cpuKernels, prefillWeights, most } of forms) {
    test(`${name} stays near the reference with ${title}`, async () => {
      const engine = await openGolden({
        name,
        ranks: 1,
        quantizedCompute: 'int8',
        cpuKernels,
        prefillWeights,
      });

      try {
        assert.equal(engine.info.prefillWeightBytes > 0, prefillWeights === 'auto');
        const difference = meanLogprobDifference(engine, readGolden(name));
        assert.ok(
          difference <= most,
          `log-probabilities differ by ${difference} on average, at most ${most}`,
        );
        assert.ok(difference > 0, 'int8 products cannot be exact: float32 ones were used');
      } finally {
        engine.close();
      }
    });
  }
}

test('a GGUF in two parts is the whole, named by its folder or by any part, and answers as the reference', async () => {
  const name = 'gguf-k';
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-split-'));
  try {
    const file = path.join(goldenFolder(name), 'model-Q4_K_M.gguf');
    const parts = splitGguf(file, folder, 2);
    const whole = openCheckpoint(file);
    for (const place of [folder, ...parts]) {
      const { config, tensors, weightBytes } = openCheckpoint(place);
      assert.deepEqual(config, whole.config);
      assert.equal(weightBytes, whole.weightBytes);
      assert.deepEqual([...tensors.keys()], [...whole.tensors.keys()]);
      for (const [tensor, stored] of tensors) {
        assert.deepEqual(stored.read(), whole.tensors.get(tensor)!.read(), tensor);
      }
    }
    const engine = await openGolden({ name, place: parts[1]!, ranks: 1, quantizedCompute: 'float32' });
    try {
      checkGolden(engine, readGolden(name), { concurrent: 1, chunk: 1000 });
    } finally {
      engine.close();
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
