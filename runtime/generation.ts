/**
 * What passes between whoever wants text (serve/, cli/) and the loop that makes it (llm.ts): plain data only.
 */
import type { TokenLogprob } from './sampling/logprob.ts';
import type { SamplingParameters } from './sampling/parameters.ts';

export type { TokenLogprob };

export interface GenerationRequest {
  /** Unique among the requests in flight; appears in logs. */
  readonly id: string;
  readonly prompt: ArrayLike<number>;
  readonly sampling: SamplingParameters;
  /** Strings that end a choice; the text before the match is kept, the match is not. */
  readonly stop: readonly string[];
  /** Lower runs first; default 0. */
  readonly priority?: number;
  /** Requests share cached blocks only with requests of the same salt. */
  readonly cacheSalt?: string;
  /** Special tokens are left out of the text (default true). */
  readonly skipSpecialTokens?: boolean;
}

export type FinishReason = 'stop' | 'length' | 'abort';

export type GenerationEvent =
  /** Once, when the prompt has run. `promptLogprobs[0]` is null: the first token has no context. */
  | {
      readonly type: 'prompt';
      readonly cachedTokens: number;
      /** From the request to the first step that ran some of it. */
      readonly queuedMs?: number;
      readonly promptLogprobs?: readonly (TokenLogprob | null)[];
    }
  /** New tokens of a choice and the text that became certain; either may be empty. */
  | {
      readonly type: 'delta';
      readonly choice: number;
      readonly text: string;
      readonly tokenIds: readonly number[];
      readonly logprobs?: readonly TokenLogprob[];
    }
  /** Once for each choice. `stopReason`: the stop string or stop token id that matched; null for end of sequence. */
  | {
      readonly type: 'finish';
      readonly choice: number;
      readonly reason: FinishReason;
      readonly stopReason: string | number | null;
      readonly completionTokens: number;
    };
