/**
 * What the engines are given: lists of prompts with answer lengths, drawn anew for each run so that no run profits from
 * another's cache. Pure. Words are chosen so that the common tokenizers make about one token of each.
 */

export interface WorkItem {
  readonly prompt: string;
  /** Tokens to generate, end of sequence ignored. */
  readonly maxTokens: number;
}

export interface Workload {
  readonly name: string;
  /** What the figure means. */
  readonly unit: 'generated tokens/s' | 'prompt tokens/s' | 'all tokens/s';
  /**
   * `before` runs first, untimed. Timed with `items`; where `baseline` is given its time is taken off, which leaves the decode steps alone.
   * `tokens` is what the figure divides by the time.
   */
  make(seed: number): { items: WorkItem[]; before?: WorkItem[]; baseline?: WorkItem[]; tokens: number };
}

const words =
  'time year people way day man thing woman life child world school state family student group country problem hand part place case week company system program question work government number night point home water room mother area money story fact month lot right study book eye job word business issue side kind head house service friend father power hour game line end member law car city community name'.split(
    ' ',
  );

/** A small deterministic generator (mulberry32): the same seed gives the same workload on every machine. */
export function randomStream(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function text(random: () => number, length: number): string {
  return Array.from({ length }, () => words[Math.floor(random() * words.length)]!).join(' ');
}

const decodeSteps = 64;

function decode(batch: number): Workload {
  return {
    name: `decode, ${batch} sequence${batch === 1 ? '' : 's'}`,
    unit: 'generated tokens/s',
    make(seed) {
      const random = randomStream(seed);
      const prompts = (): string[] => Array.from({ length: batch }, () => text(random, 32));
      return {
        items: prompts().map((prompt) => ({ prompt, maxTokens: decodeSteps + 1 })),
        baseline: prompts().map((prompt) => ({ prompt, maxTokens: 1 })),
        tokens: batch * decodeSteps,
      };
    },
  };
}

/** 32 requests that begin with the same 1,000 tokens, which nobody or another request asked before. */
function sharedPrefix(prefix: 'new' | 'known', maxTokens: number): Workload {
  const [requests, shared, own] = [32, 1000, 24];
  const which = prefix === 'new' ? '' : ' asked before';
  return {
    name:
      maxTokens === 1
        ? `first tokens of ${requests} requests that share 1,000 tokens${which}`
        : `${requests} requests that share 1,000 tokens${which}, ${maxTokens} answered each`,
    unit: maxTokens === 1 ? 'prompt tokens/s' : 'all tokens/s',
    make(seed) {
      const random = randomStream(seed);
      const start = text(random, shared);
      const item = (answered: number): WorkItem => ({
        prompt: `${start} ${text(random, own)}`,
        maxTokens: answered,
      });
      return {
        ...(prefix === 'new' ? {} : { before: [item(1)] }),
        items: Array.from({ length: requests }, () => item(maxTokens)),
        tokens: requests * (shared + own + (maxTokens === 1 ? 0 : maxTokens)),
      };
    },
  };
}

/** Log-normal lengths with the medians of the ShareGPT conversations that serving benchmarks use, capped. */
function conversationLength(random: () => number, median: number, most: number): number {
  const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return Math.max(4, Math.min(most, Math.round(median * Math.exp(normal))));
}

export const workloads: readonly Workload[] = [
  decode(1),
  decode(8),
  decode(32),
  {
    name: 'prefill of 1,500 tokens',
    unit: 'prompt tokens/s',
    make(seed) {
      return { items: [{ prompt: text(randomStream(seed), 1500), maxTokens: 1 }], tokens: 1500 };
    },
  },
  sharedPrefix('new', 1),
  sharedPrefix('known', 1),
  sharedPrefix('new', 32),
  sharedPrefix('known', 32),
  {
    name: 'random, 16 requests of 256 tokens, 64 answered each',
    unit: 'all tokens/s',
    make(seed) {
      const random = randomStream(seed);
      const items = Array.from({ length: 16 }, () => ({ prompt: text(random, 256), maxTokens: 64 }));
      return { items, tokens: 16 * (256 + 64) };
    },
  },
  {
    name: 'conversations, 24 requests of mixed lengths',
    unit: 'all tokens/s',
    make(seed) {
      const random = randomStream(seed);
      let tokens = 0;
      const items = Array.from({ length: 24 }, () => {
        const prompt = conversationLength(random, 120, 900);
        const maxTokens = conversationLength(random, 60, 200);
        tokens += prompt + maxTokens;
        return { prompt: text(random, prompt), maxTokens };
      });
      return { items, tokens };
    },
  },
];
