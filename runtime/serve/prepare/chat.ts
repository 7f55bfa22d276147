/** A body of /v1/chat/completions, checked, put into the chat template and tokenised. */
import { SluiceError } from '../../errors.ts';
import type { GenerationRequest } from '../../generation.ts';
import type { RenderOptions } from '../../tokenizer/chat-template.ts';
import { encodeChat, type Words } from '../../tokenizer/words.ts';
import { type ChatBody, chatSchema, templateMessages } from '../chat-schema.ts';
import { clip, parseBody } from '../request-schema.ts';
import {
  answerLimit,
  checkChoices,
  checkStreamOptions,
  checkTextLength,
  samplingParameters,
} from '../sampling-request.ts';
import { checkModel, type ModelFacts } from './model-facts.ts';

export interface PreparedChat {
  readonly fields: Omit<ChatBody, 'messages' | 'tools' | 'tool_choice' | 'chat_template_kwargs'>;
  /** The route gives it its id. */
  readonly request: Omit<GenerationRequest, 'id'>;
}

export function prepareChat(
  value: unknown,
  model: ModelFacts,
  words: Words,
  onUnknown: (field: string) => void,
): PreparedChat {
  const body = parseBody(chatSchema, value, onUnknown);
  checkModel(model, body.model);
  checkChoices(body);
  checkLogprobs(body);
  checkStreamOptions(body);
  const messages = templateMessages(body.messages);
  // Templates may leave earlier messages out, and trim; the last one always counts.
  checkTextLength(messages.at(-1)!.content.trim(), model, 'messages');
  const options = { ...renderOptions(body, words), addSpecialTokens: false };
  const prompt = encodeChat(words, messages, options, (text) => checkTextLength(text, model, 'messages'));
  const { messages: _, tools, tool_choice, chat_template_kwargs, ...fields } = body;
  return { fields, request: generationRequest(body, Int32Array.from(prompt), model) };
}

function checkLogprobs({ top_logprobs: top, logprobs }: ChatBody): void {
  if (top === undefined || top === 0 || logprobs) return;
  throw new SluiceError('request_invalid', `top_logprobs ${top}: allowed only with logprobs: true`, {
    param: 'top_logprobs',
  });
}

/** What the template gets beside the messages. Throws where a field could have no effect. */
function renderOptions(body: ChatBody, { template }: Words): RenderOptions {
  const effort = body.reasoning_effort;
  if (effort !== undefined && !template?.mentions('reasoning_effort'))
    throw new SluiceError(
      'request_invalid',
      `reasoning_effort "${clip(effort)}": this model's chat template does not take it; leave it out`,
      { param: 'reasoning_effort' },
    );
  const tools = body.tool_choice === 'none' || body.tools?.length === 0 ? undefined : body.tools;
  return {
    addGenerationPrompt: body.add_generation_prompt ?? true,
    variables: {
      ...body.chat_template_kwargs,
      ...(effort === undefined ? {} : { reasoning_effort: effort }),
    },
    ...(tools === undefined ? {} : { tools }),
  };
}

function generationRequest(
  body: ChatBody,
  prompt: Int32Array,
  model: ModelFacts,
): Omit<GenerationRequest, 'id'> {
  const newer = body.max_completion_tokens;
  const maxTokens = answerLimit(
    prompt.length,
    newer ?? body.max_tokens,
    Number.POSITIVE_INFINITY,
    model.maxLength,
    newer === undefined ? 'max_tokens' : 'max_completion_tokens',
  );
  const logprobs = body.logprobs ? (body.top_logprobs ?? 0) : undefined;
  const route = { maxTokens, bestOf: body.best_of ?? body.n ?? 1, logprobs, promptLogprobs: undefined };
  return {
    prompt,
    sampling: samplingParameters(body, route, model.samplingDefaults),
    stop: body.stop ?? [],
    priority: body.priority ?? 0,
    cacheSalt: body.cache_salt ?? '',
    skipSpecialTokens: body.skip_special_tokens ?? true,
  };
}
