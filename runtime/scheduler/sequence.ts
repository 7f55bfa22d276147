/**
 * One stream of tokens as the scheduler sees it: what it has, what of it has run, where it stands in line.
 * Must not know how tokens are chosen or to whom they go.
 */
import type { BlockTable } from '../kv/kv-cache.ts';
import type { TokenChain } from '../kv/token-chain.ts';

export interface SequenceOptions {
  readonly request: number;
  readonly choice: number;
  readonly chain: TokenChain;
  /** Tokens at most, prompt and answer together. */
  readonly maxLength: number;
  /** Lower runs first. */
  readonly priority: number;
  /** Number of arrival: earlier runs first among equals. */
  readonly order: number;
  /** Sequences that it becomes when its prompt has run. */
  readonly choices: number;
  /** Every row of the prompt must run, so its prefix is not taken from the cache. */
  readonly needsAllRows: boolean;
}

export class Sequence {
  readonly request: number;
  readonly choice: number;
  /** Replaced when the sequence changes its rotary table. */
  chain: TokenChain;
  /** Lowered to what fits when the scheduler takes the sequence. */
  maxLength: number;
  readonly priority: number;
  readonly order: number;
  /** Falls to 1 when the sequence forks. */
  choices: number;
  /** Falls to false when all rows have run. */
  needsAllRows: boolean;
  /** Later ones of its priority that ran first. */
  passed = 0;
  /** Prompt tokens found in the cache when it first ran; undefined before. */
  cachedTokens: number | undefined;
  state: 'waiting' | 'running' | 'finished' = 'waiting';
  /** Its blocks; empty unless it is running. */
  table: BlockTable = { blocks: [], length: 0, cached: 0 };

  constructor(options: SequenceOptions) {
    this.request = options.request;
    this.choice = options.choice;
    this.chain = options.chain;
    this.maxLength = options.maxLength;
    this.priority = options.priority;
    this.order = options.order;
    this.choices = options.choices;
    this.needsAllRows = options.needsAllRows;
  }

  /** Tokens that have not run; a running sequence with one left decodes, with more it prefills. */
  get remaining(): number {
    return this.chain.length - this.table.length;
  }
}

/** Who goes first; the last of the running is the newest, the first to be preempted. */
function compareSequences(a: Sequence, b: Sequence): number {
  return a.priority - b.priority || a.order - b.order || a.choice - b.choice;
}

export function insertSorted(sequences: Sequence[], sequence: Sequence): void {
  const after = sequences.findLastIndex((other) => compareSequences(other, sequence) <= 0);
  sequences.splice(after + 1, 0, sequence);
}

export function remove(sequences: Sequence[], sequence: Sequence): void {
  const index = sequences.indexOf(sequence);
  if (index >= 0) sequences.splice(index, 1);
}
