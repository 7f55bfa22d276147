/**
 * What passes between the caller's thread and the engine's: plain data. Tokens travel in one
 * message a turn of the loop, however many sequences run.
 */
import type { EngineInfo, LoadProgress } from '../engine/engine.ts';
import type { ErrorCode } from '../errors.ts';
import type { TokenLogprob } from '../generation.ts';
import type { Ending } from '../sampling/choice-state.ts';
import type { SamplingParameters } from '../sampling/parameters.ts';
import type { LoopOptions } from './loop.ts';

/** A request as the loop sees it: no text. */
export interface LoopRequest {
  /** The caller's number for it, never used twice. */
  readonly handle: number;
  readonly prompt: Int32Array;
  readonly sampling: SamplingParameters;
  readonly seed: number;
  /** By the clock that the loop is given. */
  readonly submittedAtMs: number;
  readonly priority: number;
  readonly cacheSalt: string;
}

export interface PromptReport {
  readonly handle: number;
  readonly cachedTokens: number;
  readonly queuedMs: number;
  readonly promptLogprobs?: readonly (TokenLogprob | null)[];
}

/** A new token of a choice, or only its ending. */
export interface TokenReport {
  readonly handle: number;
  readonly choice: number;
  readonly id?: number;
  readonly logprob?: TokenLogprob;
  readonly ending?: Ending;
}

export interface FailureReport {
  readonly handle: number;
  readonly code: ErrorCode;
  readonly message: string;
  readonly param: string | null;
}

/** What became of the requests in one visit to the scheduler, or in a few that are told together. */
export interface LoopReport {
  readonly prompts: PromptReport[];
  readonly tokens: TokenReport[];
  readonly failures: FailureReport[];
}

/** What the engine's thread is started with. */
export interface ThreadData<Options> {
  readonly options: Options;
  readonly loop: LoopOptions;
  readonly statistics: SharedArrayBuffer;
}

export interface EngineReady {
  readonly info: EngineInfo;
  readonly eosTokenIds: readonly number[];
}

export type ToEngine =
  | { readonly type: 'submit'; readonly request: LoopRequest }
  | { readonly type: 'abort'; readonly handle: number; readonly choice?: number }
  | { readonly type: 'close' };

export type FromEngine =
  | { readonly type: 'progress'; readonly progress: LoadProgress }
  | { readonly type: 'warning'; readonly message: string }
  | ({ readonly type: 'ready' } & EngineReady)
  | ({ readonly type: 'report' } & LoopReport)
  /** The last word of an engine that cannot go on, or could not start. */
  | { readonly type: 'failed'; readonly code: ErrorCode; readonly message: string; readonly stack?: string };
