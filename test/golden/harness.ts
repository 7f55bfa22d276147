/**
 * Runs a golden checkpoint through the engine and compares with what the reference implementation said: prompt
 * log-probabilities, logits of the last position, greedy continuations. Any architecture, any engine options.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createEngine } from '../../runtime/engine/create-engine.ts';
import type { Engine, StepSlice } from '../../runtime/engine/engine.ts';
import type { CpuKernels } from '../../runtime/engine/kernels/x64/processor.ts';
import { parseModel } from '../../runtime/models/registry.ts';
import type { RopeSpec } from '../../runtime/models/rope.ts';
import { openCheckpoint } from '../../runtime/weights/open.ts';

export interface GoldenPrompt {
  readonly ids: readonly number[];
  /** [id, logit] of the 20 largest at the last position. */
  readonly logits_last: readonly (readonly [number, number])[];
  readonly logits_full: readonly number[];
  /** [i]: log P(ids[i + 1] | ids up to i). */
  readonly logprobs_all: readonly number[];
  readonly greedy: readonly number[];
}

export interface Golden {
  readonly prompts: readonly GoldenPrompt[];
  /** Which rotary table a prompt's sequence uses. */
  readonly rope: RopeSpec;
}

export function goldenFolder(name: string): string {
  return path.resolve(import.meta.dirname, '../goldens', name);
}

export function readGolden(name: string): Golden {
  const { prompts } = JSON.parse(readFileSync(path.join(goldenFolder(name), 'golden.json'), 'utf8')) as {
    prompts: GoldenPrompt[];
  };
  return { prompts, rope: parseModel(openCheckpoint(goldenFolder(name))).spec.rope };
}

export interface GoldenRun {
  readonly name: string;
  /** Where the checkpoint is, if not in the golden's folder. */
  readonly place?: string;
  readonly ranks: number;
  readonly blockTokens?: number;
  readonly maxBatchSize?: number;
  readonly maxStepTokens?: number;
  readonly quantizedCompute?: 'int8' | 'float32';
  readonly cpuKernels?: CpuKernels;
  readonly prefillWeights?: 'auto' | 'int8' | 'none';
  readonly kvDType?: 'float32' | 'bfloat16' | 'int8';
}

export function openGolden(run: GoldenRun): Promise<Engine> {
  return createEngine({
    checkpoint: { path: run.place ?? goldenFolder(run.name) },
    devices: { kind: 'cpu', indices: Array.from({ length: run.ranks }, (_, index) => index) },
    maxBatchSize: run.maxBatchSize ?? 32,
    maxStepTokens: run.maxStepTokens ?? 128,
    blockTokens: run.blockTokens ?? 16,
    maxLength: 256,
    ...(run.quantizedCompute === undefined ? {} : { quantizedCompute: run.quantizedCompute }),
    ...(run.cpuKernels === undefined ? {} : { cpuKernels: run.cpuKernels }),
    ...(run.prefillWeights === undefined ? {} : { prefillWeights: run.prefillWeights }),
    ...(run.kvDType === undefined ? {} : { kvDType: run.kvDType }),
  });
}

/** What the engine says of one prompt. */
interface Heard {
  readonly logprobs: number[];
  readonly greedy: number[];
  /** Logits of the prompt's last position. */
  readonly last: Float32Array;
}

/** One sequence on its way: prompt in chunks, then greedy tokens one by one. */
class Sequence {
  readonly heard: Heard;
  readonly #prompt: readonly number[];
  readonly #answerLength: number;
  readonly #blocks: readonly number[];
  readonly #ropeVariant: number;
  /** How many tokens the next chunk may have. */
  readonly #chunk: () => number;
  #position = 0;

  constructor(
    prompt: readonly number[],
    answerLength: number,
    vocabulary: number,
    blocks: readonly number[],
    ropeVariant: number,
    chunk: () => number,
  ) {
    this.#prompt = prompt;
    this.#answerLength = answerLength;
    this.#blocks = blocks;
    this.#ropeVariant = ropeVariant;
    this.#chunk = chunk;
    this.heard = { logprobs: [], greedy: [], last: new Float32Array(vocabulary) };
  }

  get done(): boolean {
    return this.heard.greedy.length === this.#answerLength;
  }

  next(room: number): StepSlice {
    const left = this.#prompt.length - this.#position;
    const tokens =
      left > 0
        ? this.#prompt.slice(this.#position, this.#position + Math.min(left, room, this.#chunk()))
        : [this.heard.greedy.at(-1)!];
    return {
      tokens,
      position: this.#position,
      blocks: this.#blocks,
      logits: left > 0 ? 'all' : 'last',
      ropeVariant: this.#ropeVariant,
    };
  }

  take(slice: StepSlice, row: number, logits: Float32Array): void {
    const position = slice.position + row;
    if (position < this.#prompt.length - 1) {
      this.heard.logprobs.push(logProbability(logits, this.#prompt[position + 1]!));
      return;
    }
    if (position === this.#prompt.length - 1) this.heard.last.set(logits);
    this.heard.greedy.push(argmax(logits));
  }

  advance(slice: StepSlice): void {
    this.#position += slice.tokens.length;
  }
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

function logProbability(logits: Float32Array, id: number): number {
  const highest = logits[argmax(logits)]!;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - highest);
  return logits[id]! - highest - Math.log(sum);
}

function compare(prompt: GoldenPrompt, heard: Heard, what: string): void {
  const range = Math.max(...prompt.logits_full) - Math.min(...prompt.logits_full);
  const tolerance = 2e-3 * range;
  const close = (actual: number, expected: number, where: string): void => {
    assert.ok(
      Math.abs(actual - expected) <= tolerance,
      `${what}: ${where} is ${actual}, the reference says ${expected}, ${tolerance} apart at most`,
    );
  };
  assert.equal(heard.logprobs.length, prompt.logprobs_all.length, what);
  for (const [i, expected] of prompt.logprobs_all.entries())
    close(heard.logprobs[i]!, expected, `logprob ${i}`);
  for (const [id, expected] of prompt.logits_full.entries()) close(heard.last[id]!, expected, `logit ${id}`);
  for (const [id, expected] of prompt.logits_last) close(heard.last[id]!, expected, `top logit ${id}`);
  assert.deepEqual(heard.greedy, prompt.greedy, `${what}: greedy ids`);
}

/** A fixed mix of numbers from 1 to `most`. */
function chunkSizes(seed: number, most: number): () => number {
  let state = seed + 1;
  return () => {
    state = (state * 1103515245 + 12345) & 0x7fffffff;
    return 1 + ((state >> 8) % most);
  };
}

export interface GoldenPlan {
  /** Sequences that run at once, over the golden's prompts in turn. */
  readonly concurrent: number;
  /** Longest chunk of a prompt; chunks vary from 1 to this. */
  readonly chunk: number;
}

/** Runs the golden's prompts as planned and compares everything. Sequences join and leave at different steps. */
export function checkGolden(engine: Engine, golden: Golden, plan: GoldenPlan): void {
  const { blockTokens, blockCount, vocabulary, maxBatchSize, maxStepTokens } = engine.info;
  const free = Array.from({ length: blockCount }, (_, id) => id).sort(
    (a, b) => ((a * 7919) % 997) - ((b * 7919) % 997),
  );
  const waiting = Array.from({ length: Math.max(plan.concurrent, golden.prompts.length) }, (_, index) => {
    const prompt = golden.prompts[index % golden.prompts.length]!;
    return { index, prompt };
  });
  const running: { index: number; prompt: GoldenPrompt; blocks: number[]; sequence: Sequence }[] = [];
  for (let step = 0; waiting.length > 0 || running.length > 0; step++) {
    while (waiting.length > 0 && running.length < Math.min(plan.concurrent, maxBatchSize)) {
      const { index, prompt } = waiting.shift()!;
      const length = prompt.ids.length + prompt.greedy.length;
      const blocks = free.splice(0, Math.ceil(length / blockTokens));
      const sequence = new Sequence(
        prompt.ids,
        prompt.greedy.length,
        vocabulary,
        blocks,
        golden.rope.variant(prompt.ids.length),
        chunkSizes(index, plan.chunk),
      );
      running.push({ index, prompt, blocks, sequence });
    }
    // Each step starts with another sequence, so that all get their turn where the step is too small for all.
    const order = running.map((_, i) => running[(i + step) % running.length]!);
    const chosen: { sequence: Sequence; slice: StepSlice }[] = [];
    let room = maxStepTokens;
    for (const { sequence } of order) {
      if (room === 0) break;
      const slice = sequence.next(room);
      room -= slice.tokens.length;
      chosen.push({ sequence, slice });
    }
    engine.step({ slices: chosen.map(({ slice }) => slice), copies: [] }, (index, row, logits) => {
      chosen[index]!.sequence.take(chosen[index]!.slice, row, logits.copy().values);
    });
    for (const { sequence, slice } of chosen) sequence.advance(slice);
    for (const entry of running.filter(({ sequence }) => sequence.done)) {
      compare(entry.prompt, entry.sequence.heard, `sequence ${entry.index}`);
      running.splice(running.indexOf(entry), 1);
      free.push(...entry.blocks);
    }
  }
}

/** How far the prompts' log-probabilities are from the reference's, on average over positions. */
export function meanLogprobDifference(engine: Engine, golden: Golden): number {
  const { blockTokens, vocabulary } = engine.info;
  const differences = golden.prompts.flatMap((prompt) => {
    const blocks = Array.from({ length: Math.ceil(prompt.ids.length / blockTokens) }, (_, id) => id);
    const variant = golden.rope.variant(prompt.ids.length);
    const sequence = new Sequence(prompt.ids, 1, vocabulary, blocks, variant, () => prompt.ids.length);
    const slice = sequence.next(prompt.ids.length);
    engine.step({ slices: [slice], copies: [] }, (_, row, logits) =>
      sequence.take(slice, row, logits.copy().values),
    );
    return prompt.logprobs_all.map((expected, i) => Math.abs(sequence.heard.logprobs[i]! - expected));
  });
  return differences.reduce((sum, difference) => sum + difference, 0) / differences.length;
}

/** The plans that every golden of a float model must pass, by sentence. */
export const goldenPlans: readonly (GoldenPlan & { readonly name: string })[] = [
  { name: 'one after the other, whole prompts', concurrent: 1, chunk: 1000 },
  { name: 'one after the other, prompts in odd chunks', concurrent: 1, chunk: 13 },
  { name: '24 at once in mixed batches', concurrent: 24, chunk: 17 },
];
