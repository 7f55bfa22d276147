/**
 * `npm run bench -- scheduling [folder or GGUF]`: what prefix caching, prefix-aware scheduling and chunked prefill are worth, each
 * on against off, in turns in one run. The embedded model unless another checkpoint is given; prompts of token ids.
 */
import path from 'node:path';
import { LLM, type LlmOptions } from '../runtime/llm.ts';
import { defaultSampling } from '../runtime/sampling/parameters.ts';
import { tokenizerFromGguf } from '../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../runtime/tokenizer/hugging-face.ts';
import { openCheckpoint } from '../runtime/weights/open.ts';

const embedded = path.resolve(import.meta.dirname, '../examples/models/tiny');
const greedy = { temperature: 0, ignoreEos: true };
const rounds = 3;
const prefixTokens = 1000;

const promptOf = (seed: number, length: number): number[] =>
  Array.from({ length }, (_, i) => 300 + ((seed * 7919 + i * 31 + ((i * i) % 97)) % 1500));

async function withModel<T>(
  folder: string,
  options: Partial<LlmOptions>,
  use: (llm: LLM) => Promise<T>,
): Promise<T> {
  const common = { checkpoint: { path: folder }, maxBatchSize: 32, maxStepTokens: 256, blockTokens: 32 };
  const { path: file, metadata } = openCheckpoint(folder);
  const tokenizer = loadTokenizer(metadata === undefined ? folder : tokenizerFromGguf(file, metadata));
  const llm = await LLM.load(tokenizer, { ...common, ...options });
  try {
    return await use(llm);
  } finally {
    await llm.close();
  }
}

/** Moments of a request's tokens. */
async function tokenMoments(llm: LLM, prompt: readonly number[], maxTokens: number): Promise<number[]> {
  const times: number[] = [];
  const sampling = { ...defaultSampling, ...greedy, maxTokens };
  for await (const event of llm.generate({ id: 'bench', prompt, sampling, stop: [] }))
    if (event.type === 'delta') for (const _ of event.tokenIds) times.push(performance.now());
  return times;
}

/** The same, after its start. */
async function tokenTimes(llm: LLM, prompt: readonly number[], maxTokens: number): Promise<number[]> {
  const start = performance.now();
  return (await tokenMoments(llm, prompt, maxTokens)).map((moment) => moment - start);
}

/** Milliseconds to the first token, the mean of 32 requests that share a prefix; tokens a second over all. */
function sharedPrefix(llm: LLM): Promise<{ firstMs: number; perSecond: number }> {
  const prefix = promptOf(1, prefixTokens);
  return timed(llm, (i) => [...prefix, ...promptOf(i + 2, 8)]);
}

/** The same of 32 requests with eight prefixes, four of each, one after another. */
function eightPrefixes(llm: LLM): Promise<{ firstMs: number; perSecond: number }> {
  return timed(llm, (i) => [...promptOf(1 + (i % 8), 500), ...promptOf(i + 20, 8)]);
}

async function timed(
  llm: LLM,
  prompt: (index: number) => number[],
): Promise<{ firstMs: number; perSecond: number }> {
  const start = performance.now();
  const all = await Promise.all(Array.from({ length: 32 }, (_, i) => tokenTimes(llm, prompt(i), 8)));
  const seconds = (performance.now() - start) / 1000;
  const firstMs = all.reduce((sum, times) => sum + times[0]!, 0) / all.length;
  return { firstMs, perSecond: all.flat().length / seconds };
}

/**
 * The 99th percentile of the time between two tokens of eight sequences while long prompts are read. Tokens before and after
 * do not count: how many there are would decide whether the waits are among the hundredth.
 */
async function interference(llm: LLM): Promise<number> {
  const decoding = Array.from({ length: 8 }, (_, i) => tokenMoments(llm, promptOf(i + 50, 16), 200));
  while (llm.statistics().generatedTokens < 8 * 20) await new Promise((resolve) => setTimeout(resolve, 1));
  const start = performance.now();
  await Promise.all([80, 81, 82].map((seed) => tokenTimes(llm, promptOf(seed, prefixTokens), 1)));
  const end = performance.now();
  const gaps = (await Promise.all(decoding)).flatMap((moments) =>
    moments.slice(1).flatMap((at, i) => (at > start && moments[i]! < end ? [at - moments[i]!] : [])),
  );
  return gaps.toSorted((a, b) => a - b)[Math.floor(gaps.length * 0.99)]!;
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;

export async function benchScheduling([folder = embedded]: readonly string[]): Promise<void> {
  const rows: [string, string, (on: boolean) => Promise<number>][] = [
    [
      'prefix caching: first token of 32 requests sharing 1,000 tokens',
      'ms',
      async (on) => (await withModel(folder, { prefixCaching: on, prefixAware: on }, sharedPrefix)).firstMs,
    ],
    [
      'prefix-aware scheduling: first token of 32 requests with 8 prefixes of 500 tokens',
      'ms',
      async (on) => (await withModel(folder, { prefixAware: on }, eightPrefixes)).firstMs,
    ],
    [
      'chunked prefill: p99 between tokens of 8 sequences while three prompts of 1,000 tokens are read',
      'ms',
      (on) => withModel(folder, { chunkedPrefill: on }, interference),
    ],
  ];
  console.log('| what | on | off | off / on |\n|---|---|---|---|');
  for (const [name, unit, measure] of rows) {
    const on: number[] = [];
    const off: number[] = [];
    for (let round = 0; round < rounds; round++) {
      process.stderr.write(`\r\x1b[K${name}: round ${round + 1} of ${rounds} `);
      on.push(await measure(true));
      off.push(await measure(false));
    }
    process.stderr.write('\r\x1b[K');
    const ratio = median(off.map((each, round) => each / on[round]!));
    console.log(
      `| ${name} | ${median(on).toFixed(1)} ${unit} | ${median(off).toFixed(1)} ${unit} | **${ratio.toFixed(1)}** |`,
    );
  }
}
