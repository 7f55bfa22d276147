/**
 * `npm run bench -- scheduling [folder or GGUF] [--only <part of a name>]`: what prefix caching, prefix-aware scheduling and
 * chunked prefill are worth, each on against off, in turns in one run. The embedded model unless another checkpoint is given; prompts of token ids.
 */
import path from 'node:path';
import { parseArgs } from 'node:util';
import { LLM, type LlmOptions } from '../runtime/llm.ts';
import { defaultSampling } from '../runtime/sampling/parameters.ts';
import { tokenizerFromGguf } from '../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../runtime/tokenizer/hugging-face.ts';
import { openCheckpoint } from '../runtime/weights/open.ts';

const embedded = path.resolve(import.meta.dirname, '../examples/models/tiny');
const greedy = { temperature: 0, ignoreEos: true };
const roundCount = 3;
const prefixTokens = 1000;
const blockTokens = 32;
/** Blocks of four prefixes of 500 tokens, and of eight ends. */
const fourPrefixes = 4 * Math.floor(500 / blockTokens) + 8;

const promptOf = (seed: number, length: number): number[] =>
  Array.from({ length }, (_, i) => 300 + ((seed * 7919 + i * 31 + ((i * i) % 97)) % 1500));

async function withModel<T>(
  folder: string,
  options: Partial<LlmOptions>,
  use: (llm: LLM) => Promise<T>,
): Promise<T> {
  const common = { checkpoint: { path: folder }, maxBatchSize: 32, maxStepTokens: 256, blockTokens };
  const { path: file, metadata } = openCheckpoint(folder);
  const tokenizer = loadTokenizer(metadata === undefined ? folder : tokenizerFromGguf(file, metadata));
  const llm = await LLM.load(tokenizer, { ...common, ...options });
  try {
    return await use(llm);
  } finally {
    await llm.close();
  }
}

interface Timed {
  /** Moments of its tokens. */
  readonly moments: readonly number[];
  readonly cachedTokens: number;
}

async function generate(llm: LLM, prompt: readonly number[], maxTokens: number): Promise<Timed> {
  const moments: number[] = [];
  let cachedTokens = 0;
  const sampling = { ...defaultSampling, ...greedy, maxTokens };
  for await (const event of llm.generate({ id: 'bench', prompt, sampling, stop: [] })) {
    if (event.type === 'prompt') cachedTokens = event.cachedTokens;
    if (event.type === 'delta') for (const _ of event.tokenIds) moments.push(performance.now());
  }
  return { moments, cachedTokens };
}

type Figures = Readonly<Record<string, number>>;

/** Requests that arrive at once, 8 tokens answered each. */
async function burst(llm: LLM, prompts: readonly (readonly number[])[]): Promise<Figures> {
  const start = performance.now();
  const all = await Promise.all(prompts.map((prompt) => generate(llm, prompt, 8)));
  const sum = (value: (each: Timed) => number) => all.reduce((total, each) => total + value(each), 0);
  return {
    'mean time to first token, ms': sum(({ moments }) => moments[0]! - start) / all.length,
    'all answered after, ms': Math.max(...all.map(({ moments }) => moments.at(-1)!)) - start,
    'prompt tokens found cached': sum(({ cachedTokens }) => cachedTokens),
  };
}

const sharedPrefix = (llm: LLM): Promise<Figures> => {
  const prefix = promptOf(1, prefixTokens);
  return burst(
    llm,
    Array.from({ length: 32 }, (_, i) => [...prefix, ...promptOf(i + 2, 8)]),
  );
};

/** Four requests of each prefix of 500 tokens; those of one arrive as far apart as they can. */
const interleaved =
  (prefixes: number) =>
  (llm: LLM): Promise<Figures> =>
    burst(
      llm,
      Array.from({ length: 4 * prefixes }, (_, i) => [
        ...promptOf(1 + (i % prefixes), 500),
        ...promptOf(i + 20, 8),
      ]),
    );

/**
 * The 99th percentile of the time between two tokens of eight sequences while long prompts are read. Tokens before and after
 * do not count: how many there are would decide whether the waits are among the hundredth.
 */
async function interference(llm: LLM): Promise<Figures> {
  const decoding = Array.from({ length: 8 }, (_, i) => generate(llm, promptOf(i + 50, 16), 200));
  while (llm.statistics().generatedTokens < 8 * 20) await new Promise((resolve) => setTimeout(resolve, 1));
  const start = performance.now();
  await Promise.all([80, 81, 82].map((seed) => generate(llm, promptOf(seed, prefixTokens), 1)));
  const end = performance.now();
  const gaps = (await Promise.all(decoding)).flatMap(({ moments }) =>
    moments.slice(1).flatMap((at, i) => (at > start && moments[i]! < end ? [at - moments[i]!] : [])),
  );
  return { 'p99 between two tokens, ms': gaps.toSorted((a, b) => a - b)[Math.floor(gaps.length * 0.99)]! };
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;

interface Comparison {
  readonly name: string;
  readonly options: (on: boolean) => Partial<LlmOptions>;
  readonly measure: (llm: LLM) => Promise<Figures>;
}

const comparisons: readonly Comparison[] = [
  {
    name: 'prefix caching: 32 requests that share 1,000 tokens',
    options: (on) => ({ prefixCaching: on, prefixAware: on }),
    measure: sharedPrefix,
  },
  {
    name: 'prefix-aware scheduling: 32 requests with 8 prefixes of 500 tokens, all of which fit the cache',
    options: (on) => ({ prefixAware: on }),
    measure: interleaved(8),
  },
  {
    name: 'prefix-aware scheduling: 48 requests with 12 prefixes of 500 tokens, 4 of which fit, 8 at a time',
    options: (on) => ({ prefixAware: on, maxBatchSize: 8, blockCount: fourPrefixes }),
    measure: interleaved(12),
  },
  {
    name: 'chunked prefill: three prompts of 1,000 tokens are read while 8 sequences decode',
    options: (on) => ({ chunkedPrefill: on }),
    measure: interference,
  },
];

export async function benchScheduling(argv: readonly string[]): Promise<void> {
  const { positionals, values } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { only: { type: 'string', default: '' } },
  });
  const folder = positionals[0] ?? embedded;
  console.log('| what | figure | on | off | off / on |\n|---|---|---|---|---|');
  for (const { name, options, measure } of comparisons.filter((each) => each.name.includes(values.only))) {
    const rounds: { on: Figures; off: Figures }[] = [];
    while (rounds.length < roundCount) {
      process.stderr.write(`\r\x1b[K${name}: round ${rounds.length + 1} of ${roundCount} `);
      rounds.push({
        on: await withModel(folder, options(true), measure),
        off: await withModel(folder, options(false), measure),
      });
    }
    process.stderr.write('\r\x1b[K');
    for (const figure of Object.keys(rounds[0]!.on)) {
      const [on, off] = (['on', 'off'] as const).map((side) =>
        median(rounds.map((each) => each[side][figure]!)),
      );
      const ratio = median(rounds.map((each) => each.off[figure]! / each.on[figure]!));
      const times = figure.endsWith(' ms') ? `**${ratio.toFixed(1)}**` : '';
      console.log(`| ${name} | ${figure} | ${on!.toFixed(0)} | ${off!.toFixed(0)} | ${times} |`);
    }
  }
}
