import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { rotateReference, storeReference } from '../../../runtime/engine/kernels/attention-reference.ts';
import { pageBytes } from '../../../runtime/engine/kernels/paged-attention.ts';
import { attendsInIntegers } from '../../../runtime/engine/kernels/x64/attention.ts';
import type { AttentionForm } from '../../../runtime/engine/kernels/x64/attention-form.ts';
import {
  prepareArguments,
  prepareArgumentWords,
  prepareCode,
  prepareWorkBytes,
} from '../../../runtime/engine/kernels/x64/attention-prepare.ts';
import {
  availableInstructionSets,
  type InstructionSet,
} from '../../../runtime/engine/kernels/x64/processor.ts';
import { writePlan } from '../../../runtime/engine/step-message.ts';
import { addressOf } from '../../../runtime/ort/library.ts';
import { nativeFunction } from '../../../runtime/ort/native-code.ts';

interface Scenario {
  readonly instructions: InstructionSet;
  readonly form: AttentionForm;
  /** Of each slice: where it starts, and its tokens. */
  readonly slices: readonly { readonly position: number; readonly count: number }[];
  readonly rows: { readonly q: Float32Array; readonly k: Float32Array; readonly v: Float32Array };
  readonly angles: Float32Array;
}

const blocksEach = 8;

/** Tables of blocks in an order of their own. */
const tableOf = (slice: number, slices: number): number[] =>
  Array.from({ length: blocksEach }, (_, block) => (blocksEach - 1 - block) * slices + slice);

/** What the code makes of the rows: queries and pages, which were full of `filling`. */
function prepared({ instructions, form, slices, rows, angles }: Scenario): {
  queries: Float32Array;
  pages: Uint8Array;
} {
  const tokens = slices.reduce((sum, { count }) => sum + count, 0);
  const plan = new Int32Array(1 + slices.length * (5 + blocksEach));
  writePlan(
    slices.map(({ position, count }, slice) => ({
      tokens: new Array(count).fill(0),
      position,
      blocks: tableOf(slice, slices.length),
      logits: 'none' as const,
    })),
    form.blockTokens,
    plan,
  );
  const pages = emptyPages(form, slices.length);
  const queries = new Float32Array(tokens * form.shape.heads * form.shape.headDim);
  const work = new Uint8Array(prepareWorkBytes(form));
  const words = new BigUint64Array(prepareArgumentWords);
  const memories = { plan, pages, angles, ...rows, queries, work };
  for (const [name, memory] of Object.entries(memories)) {
    words[prepareArguments[name as keyof typeof prepareArguments]] = addressOf(memory);
  }
  nativeFunction(prepareCode(form, instructions), 1)(words);
  // All of it must live until now.
  return memories;
}

const filling = 0x5a;

function emptyPages({ shape, blockTokens, dtype }: AttentionForm, slices: number): Uint8Array {
  return new Uint8Array(pageBytes(shape, blockTokens, dtype) * blocksEach * slices).fill(filling);
}

/** The same by the reference; bytes of pages are put one by one. */
function expected({ instructions, form, slices, rows, angles }: Scenario): {
  queries: Float32Array;
  pages: Uint8Array;
} {
  const { shape, blockTokens, dtype } = form;
  const { heads, kvHeads, headDim, rotaryDim } = shape;
  const scale = Math.fround(shape.scale * Math.LOG2E);
  const pages = emptyPages(form, slices.length);
  const view = new DataView(pages.buffer);
  const queries = rows.q.slice();
  const fours = attendsInIntegers(form, instructions);
  const element = { float32: 4, bfloat16: 2, int8: 1 }[dtype];
  const part = headDim * blockTokens * element;
  const pageOfHead = pageBytes({ kvHeads: 1, headDim }, blockTokens, dtype);
  const put = (at: number, value: number, step: number): void => {
    if (dtype === 'float32') view.setFloat32(at, value, true);
    else if (dtype === 'bfloat16') {
      view.setUint16(at, new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16, true);
    } else view.setInt8(at, step === 0 ? 0 : Math.round(value / step));
  };
  let row = 0;
  for (const [slice, { position, count }] of slices.entries()) {
    for (let i = 0; i < count; i++, row++) {
      const turn = angles.subarray(row * rotaryDim, (row + 1) * rotaryDim);
      for (let h = 0; h < heads; h++) {
        const q = queries.subarray((row * heads + h) * headDim, (row * heads + h + 1) * headDim);
        rotateReference(q, rotaryDim, turn);
        for (const [d, value] of q.entries()) q[d] = value * scale;
      }
      const key = position + i;
      const slot = key % blockTokens;
      const block = tableOf(slice, slices.length)[Math.floor(key / blockTokens)]!;
      for (let h = 0; h < kvHeads; h++) {
        const base = (block * kvHeads + h) * pageOfHead;
        const at = (row * kvHeads + h) * headDim;
        const k = rows.k.slice(at, at + headDim);
        const v = rows.v.slice(at, at + headDim);
        rotateReference(k, rotaryDim, turn);
        for (const [which, head] of [k, v].entries()) {
          const step = Math.fround(Math.max(...head.map(Math.abs)) / 127);
          storeReference(head, dtype);
          if (dtype === 'int8')
            view.setFloat32(base + 2 * part + (which * blockTokens + slot) * 4, step, true);
          for (const [d, value] of head.entries()) {
            const inKeys = fours
              ? ((d >> 2) * blockTokens + slot) * 4 + (d & 3)
              : (d * blockTokens + slot) * element;
            const inValues = fours
              ? ((slot >> 2) * headDim + d) * 4 + (slot & 3)
              : (slot * headDim + d) * element;
            put(base + (which === 0 ? inKeys : part + inValues), value, step);
          }
        }
      }
    }
  }
  return { queries, pages };
}

const floats = (count: number, seed: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(seed + i * i * 0.7) * ((i % 7) + 0.1));

const scenarios = fc
  .record({
    instructions: fc.constantFrom(...availableInstructionSets()),
    dtype: fc.constantFrom('float32', 'bfloat16', 'int8' as const),
    kvHeads: fc.integer({ min: 1, max: 3 }),
    group: fc.integer({ min: 1, max: 3 }),
    headDim: fc.constantFrom(16, 32, 48, 64, 80, 128, 272),
    rotaryShare: fc.oneof(fc.constant(1), fc.double({ min: 0, max: 1, noNaN: true })),
    blockTokens: fc.constantFrom(16, 32, 64),
    slices: fc.array(
      fc.record({ position: fc.integer({ min: 0, max: 70 }), count: fc.integer({ min: 1, max: 50 }) }),
      { minLength: 1, maxLength: 4 },
    ),
    seed: fc.integer({ min: 0, max: 1000 }),
    zeros: fc.boolean(),
  })
  .map(
    ({
      instructions,
      dtype,
      kvHeads,
      group,
      headDim,
      rotaryShare,
      blockTokens,
      slices,
      seed,
      zeros,
    }): Scenario => {
      const rotaryDim = Math.floor((headDim * rotaryShare) / 2) * 2;
      const heads = kvHeads * group;
      const tokens = slices.reduce((sum, { count }) => sum + count, 0);
      const rows = {
        q: floats(tokens * heads * headDim, seed),
        k: floats(tokens * kvHeads * headDim, seed + 1),
        v: floats(tokens * kvHeads * headDim, seed + 2),
      };
      // A head without anything in it.
      if (zeros) for (const part of [rows.k, rows.v]) part.fill(0, 0, headDim);
      const shape = { heads, kvHeads, headDim, rotaryDim, scale: 0.125, window: 0, softcap: 0 };
      return {
        instructions,
        form: { shape, blockTokens, dtype },
        slices,
        rows,
        angles: floats(tokens * rotaryDim, seed + 3).map((x) => x / 7),
      };
    },
  );

test('queries, keys and values are prepared bit for bit as the reference does it, and nothing else in pages is changed', {
  skip: availableInstructionSets().length === 0 && 'this processor has no machine code',
}, () => {
  fc.assert(
    fc.property(scenarios, (scenario) => {
      const [actual, reference] = [prepared(scenario), expected(scenario)];
      assert.deepEqual(new Uint8Array(actual.queries.buffer), new Uint8Array(reference.queries.buffer));
      assert.deepEqual(actual.pages, reference.pages);
    }),
    { numRuns: 150 },
  );
});
