/**
 * How the next token of a sequence is chosen. Names and meanings follow OpenAI's API and vLLM's extensions of it.
 */

export interface SamplingParameters {
  /** 0 is greedy. */
  readonly temperature: number;
  /** In (0, 1]; 1 is off. */
  readonly topP: number;
  /** 0 is off. */
  readonly topK: number;
  /** In [0, 1]; relative to the most likely token's probability; 0 is off. */
  readonly minP: number;
  /** The random stream depends only on seed, choice and position. Absent: one is drawn for the request. */
  readonly seed?: number;
  /** New tokens at most; at least 1 (0 is allowed when only prompt log-probabilities are wanted). */
  readonly maxTokens: number;
  /** End-of-sequence and stop tokens are masked until so many new tokens exist. */
  readonly minTokens: number;
  readonly ignoreEos: boolean;
  readonly stopTokenIds: readonly number[];
  /** Number of alternatives reported a token, 0..20; absent: no log-probabilities. */
  readonly logprobs?: number;
  /** The same for the prompt's tokens. */
  readonly promptLogprobs?: number;
  readonly n: number;
  readonly bestOf: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** 1 is off. */
  readonly repetitionPenalty: number;
  /** [token id, bias]. */
  readonly logitBias: readonly (readonly [number, number])[];
}

export const defaultSampling: SamplingParameters = {
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  maxTokens: 16,
  minTokens: 0,
  ignoreEos: false,
  stopTokenIds: [],
  n: 1,
  bestOf: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  repetitionPenalty: 1,
  logitBias: [],
};
