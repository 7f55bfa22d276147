/** POST /v1/chat/completions. */
import type { FastifyInstance } from 'fastify';
import { SluiceError } from '../../errors.ts';
import type { FinishReason, GenerationRequest } from '../../generation.ts';
import type { RenderOptions } from '../../tokenizer/chat-template.ts';
import { backendFor, streamAnswer } from '../answer.ts';
import type { Backend } from '../backend.ts';
import { type ChatBody, chatSchema, templateMessages } from '../chat-schema.ts';
import { checkModel, type ServerContext } from '../context.ts';
import { type RunListener, runGeneration } from '../generation-run.ts';
import { parseBody } from '../request-schema.ts';
import { answerLimit, checkChoices, checkTextLength, samplingParameters } from '../sampling-request.ts';
import { TokenNames } from '../token-text.ts';
import { usageBody } from './completions.ts';

export function registerChatCompletions(app: FastifyInstance, context: ServerContext): void {
  app.post('/v1/chat/completions', async (request, reply) => {
    const backend = backendFor(context);
    const body = parseBody(chatSchema, request.body, (field) =>
      request.log.warn({ field }, 'unknown field ignored'),
    );
    checkModel(context, body.model);
    checkCombinations(body);
    const { signal, usage } = request.account;
    const messages = templateMessages(body.messages);
    // Templates may leave earlier messages out, and trim; the last one always counts.
    checkTextLength(messages.at(-1)!.content.trim(), backend, 'messages');
    const prompt = await backend.tokenizer.encodeChat(messages, {
      ...renderOptions(body, backend),
      addSpecialTokens: false,
    });
    const requests = [generationRequest(backend, body, prompt, request.id)];
    const head = {
      id: `chatcmpl-${request.id}`,
      created: Math.floor(Date.now() / 1000),
      model: body.model,
      system_fingerprint: `sluice-${context.version}`,
      service_tier: 'default',
    };
    if (body.stream) {
      const includeUsage = body.stream_options?.include_usage === true;
      const chunk = (choices: readonly object[], usage: object | null = null) => ({
        ...head,
        object: 'chat.completion.chunk',
        choices,
        ...(includeUsage ? { usage } : {}),
      });
      await streamAnswer(context, backend, request, reply, requests, {
        listener: (send) => chunkListener(backend, body, prompt, (choice) => send(chunk([choice]))),
        ending: (usage) => (includeUsage ? [chunk([], usageBody(usage))] : []),
      });
      return reply;
    }
    const answer = new ChatAnswer(backend, body);
    await runGeneration(backend, requests, context.metrics, signal, answer.listener(), usage);
    return {
      ...head,
      object: 'chat.completion',
      choices: answer.choices(),
      ...(body.return_token_ids ? { prompt_token_ids: prompt } : {}),
      usage: usageBody(usage),
    };
  });
}

function checkCombinations(body: ChatBody): void {
  checkChoices(body);
  if (body.top_logprobs !== undefined && body.top_logprobs > 0 && !body.logprobs)
    throw new SluiceError(
      'request_invalid',
      `top_logprobs ${body.top_logprobs}: allowed only with logprobs: true`,
      {
        param: 'top_logprobs',
      },
    );
  if (body.stream_options !== undefined && !body.stream)
    throw new SluiceError('request_invalid', 'stream_options: allowed only with stream: true', {
      param: 'stream_options',
    });
}

/** What the template gets beside the messages. Throws where a field could have no effect. */
function renderOptions(body: ChatBody, backend: Backend): RenderOptions {
  const effort = body.reasoning_effort;
  if (effort !== undefined && !backend.tokenizer.template?.mentions('reasoning_effort'))
    throw new SluiceError(
      'request_invalid',
      `reasoning_effort "${effort}": this model's chat template does not take it; leave it out`,
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
  backend: Backend,
  body: ChatBody,
  prompt: readonly number[],
  id: string,
): GenerationRequest {
  const newer = body.max_completion_tokens;
  const maxTokens = answerLimit(
    prompt.length,
    newer ?? body.max_tokens,
    Number.POSITIVE_INFINITY,
    backend.maxLength,
    newer === undefined ? 'max_tokens' : 'max_completion_tokens',
  );
  const logprobs = body.logprobs ? (body.top_logprobs ?? 0) : undefined;
  const route = { maxTokens, bestOf: body.best_of ?? body.n ?? 1, logprobs, promptLogprobs: undefined };
  return {
    id,
    prompt,
    sampling: samplingParameters(body, route, backend.samplingDefaults),
    stop: body.stop ?? [],
    priority: body.priority ?? 0,
    cacheSalt: body.cache_salt ?? '',
    skipSpecialTokens: body.skip_special_tokens ?? true,
  };
}

function chunkListener(
  backend: Backend,
  body: ChatBody,
  prompt: readonly number[],
  emit: (choice: object) => Promise<void>,
): RunListener {
  const names = new TokenNames(backend.tokenizer.tokenizer, body.return_tokens_as_token_ids ?? false);
  const withIds = body.return_token_ids === true;
  return {
    onPrompt: async () => {
      for (let index = 0; index < (body.n ?? 1); index++)
        await emit({
          index,
          delta: { role: 'assistant', content: '', refusal: null },
          logprobs: null,
          finish_reason: null,
          ...(withIds && index === 0 ? { prompt_token_ids: prompt } : {}),
        });
    },
    onDelta: async ({ index, text, tokenIds, logprobs }) => {
      const wanted = text !== '' || (tokenIds.length > 0 && (withIds || body.logprobs));
      if (!wanted) return;
      await emit({
        index,
        delta: { content: text },
        logprobs:
          body.logprobs && logprobs !== undefined ? { content: names.chat(logprobs), refusal: null } : null,
        finish_reason: null,
        ...(withIds ? { token_ids: tokenIds } : {}),
      });
    },
    onFinish: async (index, _prompt, reason, stopReason) =>
      emit({ index, delta: {}, logprobs: null, finish_reason: reason, stop_reason: stopReason }),
  };
}

interface ChatChoice {
  text: string;
  readonly tokenIds: number[];
  readonly logprobs: ReturnType<TokenNames['chat']>;
  reason: FinishReason | null;
  stopReason: string | number | null;
}

/** Collects the choices of an answer that is not streamed. */
class ChatAnswer {
  readonly #names: TokenNames;
  readonly #body: ChatBody;
  readonly #choices: ChatChoice[];

  constructor(backend: Backend, body: ChatBody) {
    this.#body = body;
    this.#names = new TokenNames(backend.tokenizer.tokenizer, body.return_tokens_as_token_ids ?? false);
    this.#choices = Array.from({ length: body.n ?? 1 }, () => ({
      text: '',
      tokenIds: [],
      logprobs: [],
      reason: null,
      stopReason: null,
    }));
  }

  listener(): RunListener {
    return {
      onDelta: ({ index, text, tokenIds, logprobs }) => {
        const choice = this.#choices[index]!;
        choice.text += text;
        choice.tokenIds.push(...tokenIds);
        choice.logprobs.push(...this.#names.chat(logprobs ?? []));
      },
      onFinish: (index, _prompt, reason, stopReason) => {
        Object.assign(this.#choices[index]!, { reason, stopReason });
      },
    };
  }

  choices(): object[] {
    return this.#choices.map((choice, index) => ({
      index,
      message: { role: 'assistant', content: choice.text, refusal: null },
      logprobs: this.#body.logprobs ? { content: choice.logprobs, refusal: null } : null,
      finish_reason: choice.reason,
      stop_reason: choice.stopReason,
      ...(this.#body.return_token_ids ? { token_ids: choice.tokenIds } : {}),
    }));
  }
}
