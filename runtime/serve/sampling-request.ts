/** The fields of a request that choose tokens -> SamplingParameters. Pure. */
import type { z } from 'zod';
import { SluiceError } from '../errors.ts';
import { defaultSampling, type SamplingParameters } from '../sampling/parameters.ts';
import type { ModelFacts } from './prepare/model-facts.ts';
import type { samplingFields } from './request-schema.ts';

export type SamplingFields = {
  readonly [K in keyof typeof samplingFields]?: z.output<(typeof samplingFields)[K]>;
};

/** What the routes decide themselves. */
export interface RouteSampling {
  readonly maxTokens: number;
  readonly bestOf: number;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
}

export function samplingParameters(
  body: SamplingFields,
  route: RouteSampling,
  defaults: Partial<SamplingParameters>,
): SamplingParameters {
  const base = { ...defaultSampling, ...defaults };
  const temperature = body.temperature ?? base.temperature;
  const minTokens = body.min_tokens ?? 0;
  if (minTokens > route.maxTokens)
    throw new SluiceError(
      'request_invalid',
      `min_tokens ${minTokens}: more than the ${route.maxTokens} tokens that the answer may have`,
      { param: 'min_tokens' },
    );
  return {
    ...base,
    temperature,
    // OpenAI allows 0, which leaves the most likely token alone.
    topP: Math.max(body.top_p ?? base.topP, Number.EPSILON),
    topK: Math.max(body.top_k ?? base.topK, 0),
    minP: body.min_p ?? base.minP,
    maxTokens: route.maxTokens,
    minTokens,
    ignoreEos: body.ignore_eos ?? false,
    stopTokenIds: body.stop_token_ids ?? [],
    n: body.n ?? 1,
    bestOf: route.bestOf,
    presencePenalty: body.presence_penalty ?? base.presencePenalty,
    frequencyPenalty: body.frequency_penalty ?? base.frequencyPenalty,
    repetitionPenalty: body.repetition_penalty ?? base.repetitionPenalty,
    logitBias: Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias] as const),
    ...(body.seed === undefined ? {} : { seed: body.seed }),
    ...(route.logprobs === undefined ? {} : { logprobs: route.logprobs }),
    ...(route.promptLogprobs === undefined ? {} : { promptLogprobs: route.promptLogprobs }),
  };
}

/** Throws SluiceError `request_invalid` for ids that the model does not have. */
export function checkTokenIds(ids: readonly number[], vocabulary: number, field: string): void {
  const wrong = ids.find((id) => id >= vocabulary);
  if (wrong !== undefined)
    throw new SluiceError(
      'request_invalid',
      `${field}: token id ${wrong}: the form is an integer from 0 to ${vocabulary - 1}`,
      {
        param: field,
      },
    );
}

/** Throws SluiceError `request_invalid` where `best_of` and `n` contradict each other. */
export function checkChoices(body: {
  readonly n?: number | undefined;
  readonly best_of?: number | undefined;
  readonly stream?: boolean | undefined;
}): void {
  const { n = 1, best_of: bestOf = n, stream } = body;
  const param = { param: 'best_of' };
  if (bestOf < n) throw new SluiceError('request_invalid', `best_of ${bestOf}: less than n, ${n}`, param);
  if (stream && bestOf > n)
    throw new SluiceError(
      'request_invalid',
      `best_of ${bestOf}: cannot be streamed when it exceeds n, ${n}`,
      param,
    );
}

/** Throws SluiceError `request_invalid` for options of a stream without one. */
export function checkStreamOptions(body: {
  readonly stream?: boolean | undefined;
  readonly stream_options?: object | undefined;
}): void {
  if (body.stream_options === undefined || body.stream) return;
  throw new SluiceError('request_invalid', 'stream_options: allowed only with stream: true', {
    param: 'stream_options',
  });
}

/** Throws SluiceError `context_exceeded` for a text that cannot fit however it is tokenised: without tokenising it. */
export function checkTextLength(
  text: string,
  { longestTokenBytes, maxLength }: Pick<ModelFacts, 'longestTokenBytes' | 'maxLength'>,
  field: string,
): void {
  // A text has at least as many bytes as UTF-16 units.
  if (longestTokenBytes === undefined || text.length <= longestTokenBytes * maxLength) return;
  throw new SluiceError(
    'context_exceeded',
    `This model's maximum context length is ${maxLength} tokens; ${field} has ${text.length} characters, which make at ` +
      `least ${Math.ceil(text.length / longestTokenBytes)} tokens`,
    { param: field },
  );
}

/**
 * New tokens that a request may have: what it asks for, or `byDefault`, or what is left of the context.
 * Throws SluiceError `context_exceeded` with the numbers when prompt and answer do not fit.
 */
export function answerLimit(
  promptTokens: number,
  asked: number | undefined,
  byDefault: number,
  maxLength: number,
  field: string,
): number {
  const left = maxLength - promptTokens;
  if (asked === undefined && left >= 1) return Math.min(byDefault, left);
  if (asked !== undefined && asked <= left) return asked;
  throw new SluiceError(
    'context_exceeded',
    `This model's maximum context length is ${maxLength} tokens; the prompt has ${promptTokens}` +
      (asked === undefined
        ? ', which leaves none for the answer'
        : ` and the answer may have ${asked} (${field}), ${promptTokens + asked} together`),
    { param: asked === undefined || promptTokens >= maxLength ? 'prompt' : field },
  );
}
