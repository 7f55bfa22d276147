import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  type AttentionShape,
  attendReference,
  type KvDType,
} from '../../../runtime/engine/kernels/attention-reference.ts';
import { planCapacity, writePlan } from '../../../runtime/engine/step-message.ts';

import {
  concat,
  kernels,
  limits,
  type MachineCode,
  maxLength,
  maxStepTokens,
  nameOf,
  Pool,
  random,
  rows,
  type Scenario,
  toleranceOf,
  worstDifference,
} from './attention-scenarios.ts';

const shapes = fc
  .record({
    kvHeads: fc.integer({ min: 1, max: 4 }),
    group: fc.integer({ min: 1, max: 9 }),
    halfDim: fc.oneof(fc.integer({ min: 1, max: 24 }), fc.constantFrom(8, 16, 24, 32, 64, 128)),
    lacking: fc.record({ before: fc.integer({ min: 0, max: 8 }), after: fc.integer({ min: 0, max: 8 }) }),
    rotaryShare: fc.constantFrom(0, 0.5, 1),
    window: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 100 })),
    softcap: fc.constantFrom(0, 0, 2, 30),
    scale: fc.constantFrom(0.1, 0.25, 1),
  })
  .map(({ kvHeads, group, lacking, halfDim, rotaryShare, window, softcap, scale }): AttentionShape => {
    // At least one query head is left of the first and of the last KV head's.
    const before = lacking.before % group;
    const after = lacking.after % (kvHeads === 1 ? group - before : group);
    return {
      heads: kvHeads * group - before - after,
      kvHeads,
      group,
      firstInGroup: before,
      headDim: halfDim * 2,
      rotaryDim: Math.floor(halfDim * rotaryShare) * 2,
      window,
      softcap,
      scale,
    };
  });

const scenarios = fc.record({
  kernel: fc.constantFrom(...kernels),
  shape: shapes,
  blockTokens: fc.constantFrom(8, 16, 32, 64, 128),
  dtype: fc.constantFrom<KvDType>('float32', 'bfloat16', 'int8'),
  layers: fc.integer({ min: 1, max: 2 }),
  sequences: fc.array(
    fc.array(fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 40 })), { minLength: 1, maxLength: 6 }),
    { minLength: 1, maxLength: 4 },
  ),
  seed: fc.integer(),
});

test('paged attention equals the reference for random shapes, pages, dtypes and mixed batches', () => {
  fc.assert(
    fc.property(scenarios, (scenario) => {
      const worst = worstDifference(scenario);
      assert.ok(worst < toleranceOf(scenario), `off by ${worst}`);
    }),
    { numRuns: 100 * kernels.length },
  );
});

test('paged attention follows a long prompt in uneven chunks, then single tokens', () => {
  const dtypes = ['float32', 'bfloat16', 'int8'] as const;
  for (const [kernel, dtype] of kernels.flatMap((each) => dtypes.map((dtype) => [each, dtype] as const))) {
    const scenario: Scenario = {
      kernel,
      shape: { heads: 9, kvHeads: 3, headDim: 64, rotaryDim: 64, window: 0, softcap: 0, scale: 0.125 },
      blockTokens: 32,
      dtype,
      layers: 1,
      sequences: [
        [130, 97, 1, 1, 33, 1, 1],
        [1, 1, 63, 1, 64, 1, 1],
      ],
      seed: 7,
    };
    const worst = worstDifference(scenario);
    assert.ok(worst < toleranceOf(scenario), `${nameOf(kernel)}, ${dtype}: off by ${worst}`);
  }
});

test('a row has the same bits alone and in a mixed batch', () => {
  for (const kernel of kernels) for (const headDim of [20, 32]) sameBits(kernel, headDim);
});

function sameBits(kernel: MachineCode | undefined, headDim: number): void {
  const shape = { heads: 6, kvHeads: 2, headDim, rotaryDim: headDim, window: 0, softcap: 0, scale: 0.2 };
  const blockTokens = 16;
  const planWords = planCapacity(limits(2, maxLength, blockTokens));
  const pool = new Pool(
    {
      layers: [shape],
      blockTokens,
      blockCount: 40,
      dtype: 'float32',
      maxStepTokens,
      planWords,
    },
    kernel,
  );
  const next = random(3);
  const q = rows(next, 100 * 6 * headDim);
  const k = rows(next, 100 * 2 * headDim);
  const v = rows(next, 100 * 2 * headDim);
  const blocks = [5, 1, 30, 7, 8, 9, 2];
  const run = (position: number, count: number, other: number): Float32Array => {
    const slices = [
      { tokens: new Array(other).fill(0), position: 0, blocks: [20, 21, 22], logits: 'none' as const },
      { tokens: new Array(count).fill(0), position, blocks, logits: 'none' as const },
    ].filter((slice) => slice.tokens.length > 0);
    const plan = new Int32Array(planWords);
    const words = writePlan(slices, blockTokens, plan);
    pool.attention.begin(plan.subarray(0, words), new Float32Array((count + other) * headDim).fill(0.5));
    const among = (all: Float32Array, heads: number): Float32Array => {
      const width = heads * headDim;
      const own = all.subarray(position * width, (position + count) * width);
      return concat([new Float32Array(other * width).fill(1), own]);
    };
    const out = pool.attend(0, { q: among(q, 6), k: among(k, 2), v: among(v, 2) });
    return out.slice(other * 6 * headDim);
  };
  const whole = run(0, 100, 0);
  const parts = concat([run(0, 37, 3), run(37, 1, 30), run(38, 55, 0), run(93, 7, 11)]);
  assert.deepEqual(parts, whole);
}

test('leftovers of another sequence in a page, even NaN, are not seen', () => {
  const shape = { heads: 2, kvHeads: 1, headDim: 16, rotaryDim: 0, window: 0, softcap: 0, scale: 1 };
  const dtypes = ['float32', 'bfloat16'] as const;
  for (const [kernel, dtype] of kernels.flatMap((each) => dtypes.map((dtype) => [each, dtype] as const))) {
    const planWords = planCapacity(limits(1, 64, 16));
    const pool = new Pool(
      {
        layers: [shape],
        blockTokens: 16,
        blockCount: 2,
        dtype,
        maxStepTokens: 32,
        planWords,
      },
      kernel,
    );
    const run = (count: number, fill: number): Float32Array => {
      const plan = new Int32Array(planWords);
      const slice = {
        tokens: new Array(count).fill(0),
        position: 0,
        blocks: [1, 0],
        logits: 'none' as const,
      };
      const words = writePlan([slice], 16, plan);
      pool.attention.begin(plan.subarray(0, words), new Float32Array(0));
      const filled = (width: number): Float32Array => new Float32Array(count * width).fill(fill);
      return pool.attend(0, { q: filled(32), k: filled(16), v: filled(16) });
    };
    for (const count of [21, 3]) {
      run(32, Number.NaN);
      assert.deepEqual([...run(count, 0.5)], new Array(count * 32).fill(0.5));
    }
  }
});

test('copying a block copies the first rows of every layer and no more', () => {
  const shape = { heads: 2, kvHeads: 2, headDim: 16, rotaryDim: 0, window: 0, softcap: 0, scale: 1 };
  const dtypes = ['float32', 'bfloat16', 'int8'] as const;
  for (const [kernel, dtype] of kernels.flatMap((each) => dtypes.map((dtype) => [each, dtype] as const))) {
    const planWords = planCapacity(limits(1, 64, 16));
    const pool = new Pool(
      {
        layers: [shape, shape],
        blockTokens: 16,
        blockCount: 4,
        dtype,
        maxStepTokens: 32,
        planWords,
      },
      kernel,
    );
    const next = random(11);
    const data = [rows(next, 16 * 32), rows(next, 16 * 32)];
    const other = rows(next, 16 * 32);
    const run = (
      layer: number,
      count: number,
      position: number,
      block: number,
      from: Float32Array,
    ): Float32Array => {
      const plan = new Int32Array(planWords);
      const slice = { tokens: new Array(count).fill(0), position, blocks: [block], logits: 'none' as const };
      const words = writePlan([slice], 16, plan);
      pool.attention.begin(plan.subarray(0, words), new Float32Array(0));
      const own = from.slice(position * 32, (position + count) * 32);
      return pool.attend(layer, { q: own, k: own, v: own });
    };
    for (const layer of [0, 1]) {
      run(layer, 16, 0, 2, data[layer]!);
      run(layer, 16, 0, 3, other);
    }
    pool.attention.copyBlock(2, 3, 11);
    for (const layer of [0, 1]) {
      // Rows 0-10 come from block 2; rows 11-15 are the other's still.
      const mixed = concat([data[layer]!.subarray(0, 11 * 32), other.subarray(11 * 32, 16 * 32)]);
      const copied = run(layer, 1, 15, 3, mixed);
      run(layer, 16, 0, 1, mixed);
      assert.deepEqual(copied, run(layer, 1, 15, 1, mixed), `${nameOf(kernel)}, ${dtype}, layer ${layer}`);
    }
  }
});

test('a pool beyond 4 GiB lies in several memories and its far ends work', () => {
  for (const kernel of kernels) farEnds(kernel);
});

function farEnds(kernel: MachineCode | undefined): void {
  const tolerance = kernel?.bfloat16Keys === undefined ? 1e-5 : 1e-2;
  const shape = { heads: 2, kvHeads: 2, headDim: 128, rotaryDim: 0, window: 0, softcap: 0, scale: 0.1 };
  const blockTokens = 256;
  const blockCount = 3000;
  const capacity = limits(1, 512, blockTokens);
  const pool = new Pool(
    {
      layers: [shape, shape, shape],
      blockTokens,
      blockCount,
      dtype: 'float32',
      maxStepTokens,
      planWords: planCapacity(capacity),
    },
    kernel,
  );
  assert.ok(pool.attention.kvBytes > 4 * 2 ** 30);
  const next = random(5);
  const width = shape.heads * shape.headDim;
  const plan = new Int32Array(planCapacity(capacity));
  const begin = (position: number, count: number, block: number): void => {
    const slice = { tokens: new Array(count).fill(0), position, blocks: [block], logits: 'none' as const };
    pool.attention.begin(plan.subarray(0, writePlan([slice], blockTokens, plan)), new Float32Array(0));
  };
  const attend = (layer: number, [q, k, v]: readonly Float32Array[]): Float32Array =>
    pool.attend(layer, { q: q!, k: k!, v: v! });
  // Two tokens in the first and the last block of every layer, all different; then a third that attends to them.
  const places = [0, 1, 2].flatMap((layer) => [0, blockCount - 1].map((block) => ({ layer, block })));
  const stored = places.map(() => [0, 1, 2].map(() => rows(next, 2 * width)));
  const third = [0, 1, 2].map(() => rows(next, width));
  for (const [index, { layer, block }] of places.entries()) {
    begin(0, 2, block);
    attend(layer, stored[index]!);
  }
  for (const [index, { layer, block }] of places.entries()) {
    begin(2, 1, block);
    const out = attend(layer, third);
    const [, k, v] = stored[index]!;
    const expected = attendReference(
      shape,
      1,
      2,
      third[0]!,
      concat([k!, third[1]!]),
      concat([v!, third[2]!]),
    );
    for (let i = 0; i < width; i++)
      assert.ok(Math.abs(out[i]! - expected[i]!) < tolerance, `layer ${layer}, block ${block}`);
  }
}
