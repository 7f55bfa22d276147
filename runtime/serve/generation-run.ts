/**
 * The prompts of one HTTP request, run at once: their events in, measured, numbered over all prompts, out through one
 * listener. Must not know HTTP nor the forms of OpenAI's answers.
 */
import { SluiceError } from '../errors.ts';
import type { FinishReason, GenerationRequest, TokenLogprob } from '../generation.ts';
import type { Metrics } from '../metrics.ts';
import type { Backend } from './backend.ts';

export interface ChoiceDelta {
  /** Over all prompts: prompt * n + choice. */
  readonly index: number;
  readonly prompt: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly logprobs: readonly TokenLogprob[] | undefined;
}

export interface RunListener {
  /** Before any delta of the prompt's choices. */
  onPrompt?(
    prompt: number,
    promptLogprobs: readonly (TokenLogprob | null)[] | undefined,
  ): void | Promise<void>;
  onDelta(delta: ChoiceDelta): void | Promise<void>;
  onFinish(
    index: number,
    prompt: number,
    reason: FinishReason,
    stopReason: string | number | null,
  ): void | Promise<void>;
}

export interface Usage {
  /** When the request arrived, by performance.now(): its body and the reading of its prompt count as waiting. */
  readonly arrivedMs: number;
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  /** From the arrival to the first token of any choice. */
  firstTokenMs: number | undefined;
  readonly finishReasons: FinishReason[];
}

export function emptyUsage(arrivedMs: number): Usage {
  return {
    arrivedMs,
    promptTokens: 0,
    cachedTokens: 0,
    completionTokens: 0,
    firstTokenMs: undefined,
    finishReasons: [],
  };
}

/** Fills `usage` in as it goes. Throws the backend's errors, and SluiceError when aborted: the signal's own, if it is one. */
export async function runGeneration(
  backend: Backend,
  requests: readonly GenerationRequest[],
  metrics: Metrics,
  signal: AbortSignal,
  listener: RunListener,
  usage: Usage,
): Promise<void> {
  // One prompt's failure ends the others.
  const failed = new AbortController();
  const anySignal = AbortSignal.any([signal, failed.signal]);
  const outcomes = await Promise.allSettled(
    requests.map(async (request, prompt) => {
      try {
        await runPrompt(backend, request, prompt, metrics, anySignal, listener, usage);
      } catch (error) {
        failed.abort();
        throw error;
      }
    }),
  );
  const failures = outcomes.filter((outcome) => outcome.status === 'rejected');
  const first = failures.find(({ reason }) => !isAbort(reason)) ?? failures[0];
  if (first !== undefined) throw first.reason;
}

function cutShort({ reason }: AbortSignal): SluiceError {
  if (reason instanceof SluiceError) return reason;
  return new SluiceError('unavailable', 'the request was ended before its answer was whole');
}

const isAbort = (reason: unknown) => reason instanceof SluiceError && reason.code === 'unavailable';

async function runPrompt(
  backend: Backend,
  request: GenerationRequest,
  prompt: number,
  metrics: Metrics,
  signal: AbortSignal,
  listener: RunListener,
  usage: Usage,
): Promise<void> {
  const { arrivedMs } = usage;
  const preparedMs = performance.now() - arrivedMs;
  const seconds = (from: number) => (performance.now() - from) / 1000;
  const lastToken = new Map<number, number>();
  const { n } = request.sampling;
  usage.promptTokens += request.prompt.length;
  metrics.promptTokens.inc(request.prompt.length);
  for await (const event of backend.generate(request, signal)) {
    if (event.type === 'prompt') {
      usage.cachedTokens += event.cachedTokens;
      metrics.cachedPromptTokens.inc(event.cachedTokens);
      if (event.queuedMs !== undefined) metrics.queueSeconds.observe((preparedMs + event.queuedMs) / 1000);
      await listener.onPrompt?.(prompt, event.promptLogprobs);
    } else if (event.type === 'delta') {
      if (event.tokenIds.length > 0) {
        const before = lastToken.get(event.choice);
        if (before !== undefined) metrics.interTokenLatency.observe(seconds(before) / event.tokenIds.length);
        else metrics.timeToFirstToken.observe(seconds(arrivedMs));
        usage.firstTokenMs ??= performance.now() - arrivedMs;
        lastToken.set(event.choice, performance.now());
        metrics.completionTokens.inc(event.tokenIds.length);
      }
      const { text, tokenIds, logprobs } = event;
      await listener.onDelta({ index: prompt * n + event.choice, prompt, text, tokenIds, logprobs });
    } else {
      usage.completionTokens += event.completionTokens;
      usage.finishReasons.push(event.reason);
      metrics.finished.inc({ reason: event.reason });
      if (event.reason === 'abort') throw cutShort(signal);
      await listener.onFinish(prompt * n + event.choice, prompt, event.reason, event.stopReason);
    }
  }
  if (signal.aborted) throw cutShort(signal);
  metrics.requestSeconds.observe(seconds(arrivedMs));
}
