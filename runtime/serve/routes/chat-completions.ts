/** POST /v1/chat/completions. */
import type { FastifyInstance } from 'fastify';
import type { FinishReason } from '../../generation.ts';
import { backendFor, prepareBody, streamAnswer } from '../answer.ts';
import type { Backend } from '../backend.ts';
import type { ServerContext } from '../context.ts';
import { type RunListener, runGeneration } from '../generation-run.ts';
import type { PreparedChat } from '../prepare/chat.ts';
import { TokenNames } from '../token-text.ts';
import { usageBody } from './completions.ts';

type Fields = PreparedChat['fields'];

export function registerChatCompletions(app: FastifyInstance, context: ServerContext): void {
  app.post('/v1/chat/completions', async (request, reply) => {
    const backend = backendFor(context);
    const prepared = await prepareBody(context, backend, 'chat', request);
    const body = prepared.fields;
    const { signal, usage } = request.account;
    const requests = [{ ...prepared.request, id: request.id }];
    const promptIds = body.return_token_ids ? { prompt_token_ids: Array.from(prepared.request.prompt) } : {};
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
        listener: (send) => chunkListener(backend, body, promptIds, (choice) => send(chunk([choice]))),
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
      ...promptIds,
      usage: usageBody(usage),
    };
  });
}

function chunkListener(
  backend: Backend,
  body: Fields,
  promptIds: object,
  emit: (choice: object) => Promise<void>,
): RunListener {
  const names = new TokenNames(backend.words.tokenizer, body.return_tokens_as_token_ids ?? false);
  const withIds = body.return_token_ids === true;
  return {
    onPrompt: async () => {
      for (let index = 0; index < (body.n ?? 1); index++)
        await emit({
          index,
          delta: { role: 'assistant', content: '', refusal: null },
          logprobs: null,
          finish_reason: null,
          ...(index === 0 ? promptIds : {}),
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
  readonly #body: Fields;
  readonly #choices: ChatChoice[];

  constructor(backend: Backend, body: Fields) {
    this.#body = body;
    this.#names = new TokenNames(backend.words.tokenizer, body.return_tokens_as_token_ids ?? false);
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
