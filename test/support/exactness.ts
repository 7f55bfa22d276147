/**
 * How much of a greedy answer depends on the way it was scheduled. Prompts are answered in one setting, the base; each other
 * setting answers them too, and after a token that differs may go on from the base's tokens, so that positions are compared
 * after the same tokens. Enters: a model and prompts of token ids; leaves: positions that differ and their margins.
 */
import assert from 'node:assert/strict';
import { createEngine, type EngineOptions } from '../../runtime/engine/create-engine.ts';
import type { Engine, EngineInfo } from '../../runtime/engine/engine.ts';
import type { TokenLogprob } from '../../runtime/generation.ts';
import { GenerationLoop, type LoopOptions } from '../../runtime/llm/loop.ts';
import { defaultLoopOptions } from '../../runtime/llm.ts';
import { defaultSampling } from '../../runtime/sampling/parameters.ts';

export interface Setting {
  /** What differs from the base. */
  readonly name: string;
  readonly ranks: number;
  readonly loop: Partial<LoopOptions>;
  readonly limits: Pick<EngineInfo, 'maxBatchSize' | 'maxStepTokens'>;
  /** The pool is so small that sequences are preempted. */
  readonly preempted?: boolean;
}

/** Fewer than the 64 rows from which on products are made in wide blocks, and many more. */
const narrow = 48;
const wide = 512;
const together = (maxStepTokens: number) => ({ maxBatchSize: 32, maxStepTokens });
const plain: Partial<LoopOptions> = { prefixCaching: false };

/** Alone, on one rank, nothing cached, in steps of few rows. */
const base: Setting = {
  name: 'base',
  ranks: 1,
  loop: plain,
  limits: { maxBatchSize: 1, maxStepTokens: narrow },
};

/** In the order of their ranks, so that each number of ranks is loaded once. */
const settings: readonly Setting[] = [
  { name: 'batch of 32', ranks: 1, loop: plain, limits: together(narrow) },
  { name: 'batch of 32, prefix caching', ranks: 1, loop: {}, limits: together(narrow) },
  {
    name: 'batch of 32, not in-flight',
    ranks: 1,
    loop: { ...plain, inFlightBatching: false },
    limits: together(narrow),
  },
  { name: 'batch of 32, 8 steps', ranks: 1, loop: { ...plain, maxNumSteps: 8 }, limits: together(narrow) },
  { name: 'batch of 32, preempted', ranks: 1, loop: plain, limits: together(narrow), preempted: true },
  { name: 'batch of 32, chunks of 512', ranks: 1, loop: plain, limits: together(wide) },
  {
    name: 'batch of 32, not chunked',
    ranks: 1,
    loop: { ...plain, chunkedPrefill: false },
    limits: together(wide),
  },
  { name: 'batch of 32, 2 ranks', ranks: 2, loop: plain, limits: together(narrow) },
  {
    name: 'batch of 32, 2 ranks, prefix caching, chunks of 512, 8 steps',
    ranks: 2,
    loop: { maxNumSteps: 8 },
    limits: together(wide),
  },
  {
    name: 'batch of 32, 2 ranks, prefix caching, neither chunked nor in-flight, preempted',
    ranks: 2,
    loop: { prefixAware: false, chunkedPrefill: false, inFlightBatching: false },
    limits: together(wide),
    preempted: true,
  },
  { name: 'batch of 32, 3 ranks', ranks: 3, loop: plain, limits: together(narrow) },
];

/** How far apart, at most, the two greatest logits may be in the base where another setting chooses differently. */
export interface Bounds {
  /** Several ranks add parts of a sum in another order, and what is rounded to 8 bits afterwards may fall elsewhere. */
  readonly ranks: number;
  /** Steps of 64 rows and more round in wider blocks (docs/decisions/2026-11-30-wide-products.md). */
  readonly wide: number;
}

/**
 * SmolLM2-135M-Instruct, Q4_1. Choices differed at margins of at most 0.38 between numbers of ranks and 1.05 between few rows
 * and many (docs/exactness.md).
 */
export const smolLm2Bounds: Bounds = { ranks: 0.5, wide: 1.25 };

/** 0: in steps of few rows on one rank nothing depends on the setting, not even bits. */
export function boundOf({ ranks, limits }: Setting, bounds: Bounds): number {
  if (limits.maxStepTokens > narrow) return bounds.wide;
  return ranks > 1 ? bounds.ranks : 0;
}

export interface Difference {
  /** Index of the prompt, and of the token in its answer. */
  readonly prompt: number;
  readonly position: number;
  /** The base's token and the setting's. */
  readonly tokens: readonly [number, number];
  /** By how much the base's greatest logit exceeds its second. */
  readonly margin: number;
}

export interface Compared {
  readonly setting: Setting;
  readonly positions: number;
  readonly differences: readonly Difference[];
  /** The most by which the distance of the base's two greatest logits differs in the setting. */
  readonly moved: number;
}

export interface Subject {
  readonly checkpoint: EngineOptions['checkpoint'];
  readonly prompts: readonly (readonly number[])[];
  readonly answerTokens: number;
  /** Whether a prompt's positions after one that differs are compared too. */
  readonly goesOn: boolean;
  readonly maxLength: number;
}

interface Asked {
  readonly ids: readonly number[];
  readonly count: number;
}

const blockTokens = 16;

/** Answers each prompt in each setting. */
export async function compareSettings(subject: Subject): Promise<Compared[]> {
  const { prompts, answerTokens, maxLength } = subject;
  const whole = prompts.map((ids) => ({ ids, count: answerTokens }));
  const found: Compared[] = [];
  let expected: TokenLogprob[][] | undefined;
  for (const ranks of [1, 2, 3]) {
    const engine = await createEngine({
      checkpoint: subject.checkpoint,
      devices: { kind: 'cpu', indices: Array.from({ length: ranks }, (_, index) => index) },
      maxBatchSize: 32,
      maxStepTokens: wide,
      blockTokens,
      maxLength,
      blockCount: 32 * (maxLength / blockTokens),
    });
    try {
      expected ??= answer(engine, base, whole);
      for (const setting of settings.filter((each) => each.ranks === ranks))
        found.push(compare(engine, setting, subject, expected));
    } finally {
      engine.close();
    }
  }
  return found;
}

function compare(
  engine: Engine,
  setting: Setting,
  { prompts, goesOn }: Subject,
  expected: readonly (readonly TokenLogprob[])[],
): Compared {
  const differences: Difference[] = [];
  let moved = 0;
  let positions = 0;
  let open = prompts.map((_, prompt) => ({ prompt, from: 0 }));
  for (let round = 0; open.length > 0; round++) {
    const asked = open.map(({ prompt, from }) => ({
      ids: [...prompts[prompt]!, ...expected[prompt]!.slice(0, from).map(({ id }) => id)],
      count: expected[prompt]!.length - from,
    }));
    const answers = answer(engine, setting, asked, round === 0);
    const next: typeof open = [];
    for (const [index, { prompt, from }] of open.entries()) {
      const mine = expected[prompt]!;
      for (const [at, token] of answers[index]!.entries()) {
        const position = from + at;
        positions++;
        moved = Math.max(moved, movedBy(mine[position]!, token));
        if (token.id === mine[position]!.id) continue;
        const tokens = [mine[position]!.id, token.id] as const;
        differences.push({ prompt, position, tokens, margin: marginOf(mine[position]!) });
        if (goesOn && position + 1 < mine.length) next.push({ prompt, from: position + 1 });
        break;
      }
    }
    open = next;
  }
  return { setting, positions, differences, moved };
}

const marginOf = ({ top }: TokenLogprob): number => top[0]!.logprob - top[1]!.logprob;

/** 0 where the setting's five most likely tokens lack one of the base's two. */
function movedBy(mine: TokenLogprob, other: TokenLogprob): number {
  const of = (id: number) => other.top.find((each) => each.id === id)?.logprob;
  const first = of(mine.top[0]!.id);
  const second = of(mine.top[1]!.id);
  return first === undefined || second === undefined ? 0 : Math.abs(first - second - marginOf(mine));
}

/** Greedy tokens of requests that come at once. */
function answer(engine: Engine, setting: Setting, asked: readonly Asked[], all = true): TokenLogprob[][] {
  const { limits, loop: options, preempted = false } = setting;
  const longest = Math.max(...asked.map(({ ids, count }) => ids.length + count));
  const blockCount = preempted ? 3 * Math.ceil(longest / blockTokens) : engine.info.blockCount;
  const shown: Engine = {
    info: { ...engine.info, ...limits, blockCount },
    step: (batch, onRow) => engine.step(batch, onRow),
    close: () => {},
  };
  const loop = new GenerationLoop(shown, [], { ...defaultLoopOptions, ...options }, () => 0);
  for (const [handle, { ids, count }] of asked.entries())
    loop.submit({
      handle,
      prompt: Int32Array.from(ids),
      sampling: { ...defaultSampling, temperature: 0, maxTokens: count, ignoreEos: true, logprobs: 5 },
      seed: 1,
      submittedAtMs: 0,
      priority: 0,
      cacheSalt: '',
    });
  const answers = asked.map((): TokenLogprob[] => []);
  while (!loop.idle)
    for (const { handle, logprob } of loop.turn()?.tokens ?? []) answers[handle]!.push(logprob!);
  for (const [index, { count }] of asked.entries()) assert.equal(answers[index]!.length, count);
  if (all) {
    const { preemptions, prefixHitTokens } = loop.statistics();
    assert.equal(preemptions > 0, preempted, `${setting.name}: ${preemptions} preemptions`);
    assert.equal(prefixHitTokens > 0, options.prefixCaching !== false, `${setting.name}: ${prefixHitTokens}`);
  }
  return answers;
}
