/** Scenarios of paged attention, run by every kernel and compared with the plain reference. */
import assert from 'node:assert/strict';
import { AttentionNodes } from '../../../runtime/engine/kernels/attention-nodes.ts';
import {
  type AttentionShape,
  attendReference,
  type KvDType,
  rotateReference,
  storeReference,
} from '../../../runtime/engine/kernels/attention-reference.ts';
import {
  PagedAttention,
  type PagedAttentionOptions,
} from '../../../runtime/engine/kernels/paged-attention.ts';
import { attendsInIntegers } from '../../../runtime/engine/kernels/x64/attention.ts';
import { hasAttentionCode } from '../../../runtime/engine/kernels/x64/attention-form.ts';
import {
  attendsInBfloat16,
  availableInstructionSets,
  type InstructionSet,
} from '../../../runtime/engine/kernels/x64/processor.ts';
import { planCapacity, type StepLimits, writePlan } from '../../../runtime/engine/step-message.ts';
import { addressOf } from '../../../runtime/ort/library.ts';
import { functionAt } from '../../../runtime/ort/native-code.ts';
import { rowWords } from '../../../runtime/ort/row-op.ts';

export const maxLength = 400;
export const maxStepTokens = 160;

export interface MachineCode {
  readonly instructions: InstructionSet;
  readonly bfloat16Keys?: number;
}

/** Undefined: WebAssembly. Where this processor has no machine code, that is all. */
export const kernels: readonly (MachineCode | undefined)[] = [
  undefined,
  ...availableInstructionSets().map((instructions) => ({ instructions })),
  ...availableInstructionSets()
    .filter((instructions) => attendsInBfloat16('int8', instructions))
    .map((instructions) => ({ instructions, bfloat16Keys: 512 })),
];
export const nameOf = (kernel: MachineCode | undefined): string => JSON.stringify(kernel ?? 'WebAssembly');

/** A pool, and what attends over it: WebAssembly, or machine code where there is some for a layer. */
export class Pool {
  readonly attention: PagedAttention;
  readonly #options: PagedAttentionOptions;

  constructor(options: Omit<PagedAttentionOptions, 'nodes'>, kernel: MachineCode | undefined) {
    this.#options =
      kernel === undefined ? options : { ...options, nodes: new AttentionNodes({ ...options, ...kernel }) };
    this.attention = new PagedAttention(this.#options);
  }

  /** Packed rows of q, k and v to rows of outputs. */
  attend(layer: number, { q, k, v }: Readonly<Record<'q' | 'k' | 'v', Float32Array>>): Float32Array {
    const { heads, headDim } = this.#options.layers[layer]!;
    const arrays = [q, k, v, new Float32Array(q.length)];
    const rows = q.length / (heads * headDim);
    const kernel = this.#options.nodes?.kernel(layer);
    if (kernel === undefined) {
      const [qAt, kAt, vAt, outAt] = arrays.map(addressOf) as [bigint, bigint, bigint, bigint];
      this.attention.attend(layer, { rows, q: qAt, k: kAt, v: vAt, out: outAt });
    } else {
      const words = new BigUint64Array(rowWords.places + 4);
      words[rowWords.rows] = BigInt(rows);
      for (const [i, array] of arrays.entries()) words[rowWords.places + i] = addressOf(array);
      functionAt(kernel, 1)(words);
    }
    // Which keeps the others until now, too.
    return arrays[3]!;
  }
}

export interface Scenario {
  readonly kernel: MachineCode | undefined;
  readonly shape: AttentionShape;
  readonly blockTokens: number;
  readonly dtype: KvDType;
  readonly layers: number;
  /** Lengths of the slices that each sequence runs, one step after the other. */
  readonly sequences: readonly (readonly number[])[];
  readonly seed: number;
}

export function limits(maxBatchSize: number, length: number, blockTokens: number): StepLimits {
  return { maxBatchSize, maxStepTokens, maxLength: length, blockTokens };
}

/** Mulberry32: numbers in [-1, 1). */
export function random(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (((t ^ (t >>> 14)) >>> 0) / 4294967296) * 2 - 1;
  };
}

export function rows(next: () => number, count: number): Float32Array {
  return Float32Array.from({ length: count }, next);
}

function angles(position: number, rotaryDim: number): number[] {
  const half = rotaryDim / 2;
  const turn = Array.from({ length: half }, (_, i) => position / 100 ** (i / Math.max(1, half)));
  return [...turn.map(Math.cos), ...turn.map(Math.sin)].map(Math.fround);
}

export function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Runs every sequence's slices in mixed steps and returns the largest difference from the reference. */
export function worstDifference(scenario: Scenario): number {
  const { shape, blockTokens, dtype, layers, sequences } = scenario;
  const { heads, kvHeads, headDim, rotaryDim } = shape;
  const next = random(scenario.seed);
  const blocksEach = Math.ceil(maxLength / blockTokens);
  const blockCount = blocksEach * sequences.length;
  const pool = new Pool(
    {
      layers: Array.from({ length: layers }, () => shape),
      blockTokens,
      blockCount,
      dtype,
      maxStepTokens,
      planWords: planCapacity(limits(sequences.length, maxLength, blockTokens)),
    },
    scenario.kernel,
  );
  const ids = Array.from({ length: blockCount }, (_, i) => i).sort(() => next());
  const states = sequences.map((slices, index) => ({
    slices,
    blocks: ids.slice(index * blocksEach, (index + 1) * blocksEach),
    position: 0,
    keys: [] as Float32Array[],
    values: [] as Float32Array[],
  }));
  const plan = new Int32Array(planCapacity(limits(sequences.length, maxLength, blockTokens)));
  let worst = 0;
  for (let step = 0; step < Math.max(...sequences.map((slices) => slices.length)); step++) {
    const running = states.filter((state) => step < state.slices.length);
    const words = writePlan(
      running.map((state) => ({
        tokens: new Array(state.slices[step]!).fill(0),
        position: state.position,
        blocks: state.blocks,
        logits: 'none' as const,
      })),
      blockTokens,
      plan,
    );
    const inputs = running.map((state) => {
      const n = state.slices[step]!;
      return {
        state,
        n,
        q: rows(next, n * heads * headDim),
        k: rows(next, n * kvHeads * headDim),
        v: rows(next, n * kvHeads * headDim),
      };
    });
    const packedAngles = inputs.flatMap(({ state, n }) =>
      Array.from({ length: n }, (_, i) => angles(state.position + i, rotaryDim)).flat(),
    );
    pool.attention.begin(plan.subarray(0, words), Float32Array.from(packedAngles));
    const layer = step % layers;
    for (let each = 0; each < layers; each++) {
      const out = pool.attend(each, {
        q: concat(inputs.map(({ q }) => q)),
        k: concat(inputs.map(({ k }) => k)),
        v: concat(inputs.map(({ v }) => v)),
      });
      if (each !== layer) continue;
      let row = 0;
      for (const { state, n, q, k, v } of inputs) {
        const turnedQ = q.slice();
        const turnedK = k.slice();
        const storedV = v.slice();
        for (let i = 0; i < n; i++) {
          const turn = angles(state.position + i, rotaryDim);
          for (let h = 0; h < heads; h++) {
            const at = (i * heads + h) * headDim;
            rotateReference(turnedQ.subarray(at), rotaryDim, turn);
            roundQuery(scenario, turnedQ.subarray(at, at + headDim));
          }
          for (let h = 0; h < kvHeads; h++) {
            const at = (i * kvHeads + h) * headDim;
            rotateReference(turnedK.subarray(at), rotaryDim, turn);
            const rounded = inBfloat16(scenario) ? 'bfloat16' : dtype;
            storeReference(turnedK.subarray(at, at + headDim), rounded);
            storeReference(storedV.subarray(at, at + headDim), rounded);
          }
        }
        state.keys.push(turnedK);
        state.values.push(storedV);
        const expected = attendReference(
          shape,
          n,
          state.position,
          turnedQ,
          concat(state.keys),
          concat(state.values),
        );
        const width = heads * headDim;
        const actual = out.subarray(row * width, (row + n) * width);
        for (let i = 0; i < expected.length; i++) {
          const difference = Math.abs(expected[i]! - actual[i]!);
          assert.ok(!Number.isNaN(difference), `row ${i} is ${actual[i]}`);
          worst = Math.max(worst, difference);
        }
        row += n;
      }
    }
    for (const { state, n } of inputs) state.position += n;
  }
  return worst;
}

function inIntegers({ shape, blockTokens, dtype, kernel }: Scenario): boolean {
  return kernel !== undefined && attendsInIntegers({ shape, blockTokens, dtype }, kernel.instructions);
}

/** Whether products are of bfloat16: there is machine code for the shape, and pages are not of int8. */
function inBfloat16({ shape, blockTokens, dtype, kernel }: Scenario): boolean {
  return kernel?.bfloat16Keys !== undefined && dtype !== 'int8' && hasAttentionCode({ shape, blockTokens });
}

/** A head's query, rotated, as the kernel multiplies it: in bfloat16 it is rounded when it has been scaled. */
function roundQuery(scenario: Scenario, head: Float32Array): void {
  if (inIntegers(scenario)) storeReference(head, 'int8');
  if (!inBfloat16(scenario)) return;
  const scale = Math.fround(scenario.shape.scale * Math.LOG2E);
  for (const [i, value] of head.entries()) head[i] = value * scale;
  storeReference(head, 'bfloat16');
  for (const [i, value] of head.entries()) head[i] = value / scale;
}

/**
 * The reference rounds queries, keys and values as the kernel does, so that only the order of sums differs; and what weights
 * are rounded to, 8 bits of integers or those of bfloat16. A query that lies between two steps may be rounded to the other one.
 */
export function toleranceOf(scenario: Scenario): number {
  if (inIntegers(scenario)) return 2e-2;
  return inBfloat16(scenario) ? 6e-3 : 3e-5;
}
