/** A body of /v1/completions, checked and tokenised. */
import { SluiceError } from '../../errors.ts';
import type { GenerationRequest } from '../../generation.ts';
import { encodeTexts, type Words } from '../../tokenizer/words.ts';
import { type CompletionBody, completionSchema } from '../completion-schema.ts';
import { parseBody } from '../request-schema.ts';
import {
  answerLimit,
  checkChoices,
  checkStreamOptions,
  checkTextLength,
  checkTokenIds,
  samplingParameters,
} from '../sampling-request.ts';
import { checkModel, type ModelFacts } from './model-facts.ts';

export interface PreparedCompletion {
  readonly fields: Omit<CompletionBody, 'prompt'>;
  /** One a prompt; the route gives them their ids. */
  readonly requests: readonly Omit<GenerationRequest, 'id'>[];
  /** The texts of the prompts where they are to be echoed, else none. */
  readonly echoes: readonly string[];
}

/** OpenAI's default for max_tokens here. */
const defaultAnswerTokens = 16;

export function prepareCompletion(
  value: unknown,
  model: ModelFacts,
  words: Words,
  onUnknown: (field: string) => void,
): PreparedCompletion {
  const body = parseBody(completionSchema, value, onUnknown);
  checkModel(model, body.model);
  checkChoices(body);
  checkStreamOptions(body);
  const prompts = promptIds(body, model, words);
  const { prompt, ...fields } = body;
  const { skip_special_tokens: skipSpecialTokens = true } = body;
  const requests = prompts.map((ids) => generationRequest(body, ids, model));
  const echoes =
    'texts' in prompt
      ? prompt.texts
      : prompts.map((ids) => (body.echo ? words.tokenizer.decode(ids, { skipSpecialTokens }) : ''));
  return { fields, requests, echoes: body.echo ? echoes : [] };
}

function promptIds(
  { prompt, add_special_tokens: add = true }: CompletionBody,
  model: ModelFacts,
  words: Words,
) {
  const nameOf = (index: number, count: number) => (count === 1 ? 'prompt' : `prompt[${index}]`);
  if ('texts' in prompt)
    prompt.texts.forEach((text, i) => {
      checkTextLength(text, model, nameOf(i, prompt.texts.length));
    });
  const prompts = 'ids' in prompt ? prompt.ids : encodeTexts(words, prompt.texts, { addSpecialTokens: add });
  return prompts.map((ids, index) => {
    const field = nameOf(index, prompts.length);
    checkTokenIds(ids, model.vocabulary, field);
    if (ids.length === 0)
      throw new SluiceError('request_invalid', `${field}: holds no tokens; it must hold at least one`, {
        param: field,
      });
    return Int32Array.from(ids);
  });
}

function generationRequest(
  body: CompletionBody,
  prompt: Int32Array,
  model: ModelFacts,
): Omit<GenerationRequest, 'id'> {
  const { n = 1, best_of: bestOf = n, logprobs, echo } = body;
  const maxTokens = answerLimit(
    prompt.length,
    body.max_tokens,
    defaultAnswerTokens,
    model.maxLength,
    'max_tokens',
  );
  const route = { maxTokens, bestOf, logprobs, promptLogprobs: echo ? logprobs : undefined };
  return {
    prompt,
    sampling: samplingParameters(body, route, model.samplingDefaults),
    stop: body.stop ?? [],
    priority: body.priority ?? 0,
    cacheSalt: body.cache_salt ?? '',
    skipSpecialTokens: body.skip_special_tokens ?? true,
  };
}
