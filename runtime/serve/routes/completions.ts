/** POST /v1/completions. */
import type { FastifyInstance } from 'fastify';
import { SluiceError } from '../../errors.ts';
import type { FinishReason, GenerationRequest, TokenLogprob } from '../../generation.ts';
import { backendFor, streamAnswer } from '../answer.ts';
import type { Backend } from '../backend.ts';
import { type CompletionBody, completionSchema } from '../completion-schema.ts';
import { checkModel, type ServerContext } from '../context.ts';
import { type RunListener, runGeneration, type Usage } from '../generation-run.ts';
import { parseBody } from '../request-schema.ts';
import {
  answerLimit,
  checkChoices,
  checkTextLength,
  checkTokenIds,
  samplingParameters,
} from '../sampling-request.ts';
import { type CompletionLogprobs, TokenNames } from '../token-text.ts';

/** OpenAI's default for max_tokens here. */
const defaultAnswerTokens = 16;

export function registerCompletions(app: FastifyInstance, context: ServerContext): void {
  app.post('/v1/completions', async (request, reply) => {
    const backend = backendFor(context);
    const body = parseBody(completionSchema, request.body, (field) =>
      request.log.warn({ field }, 'unknown field ignored'),
    );
    checkModel(context, body.model);
    checkCombinations(body);
    const { signal, usage } = request.account;
    const prompts = await promptIds(backend, body);
    const requests = prompts.map((prompt, index) =>
      generationRequest(backend, body, prompt, `${request.id}-${index}`),
    );
    const writer = new CompletionWriter(context, backend, body, prompts, request.id);
    if (body.stream) {
      await streamAnswer(context, backend, request, reply, requests, {
        listener: (send) => writer.listener(async (choice) => send(writer.chunk([choice]))),
        ending: (usage) =>
          body.stream_options?.include_usage ? [{ ...writer.chunk([]), usage: usageBody(usage) }] : [],
      });
      return reply;
    }
    const choices = new ChoiceCollector();
    await runGeneration(
      backend,
      requests,
      context.metrics,
      signal,
      writer.listener(async (choice) => choices.add(choice)),
      usage,
    );
    return {
      ...writer.chunk(choices.inOrder()),
      ...(body.return_token_ids && prompts.length === 1 ? { prompt_token_ids: prompts[0] } : {}),
      usage: usageBody(usage),
    };
  });
}

function checkCombinations(body: CompletionBody): void {
  checkChoices(body);
  if (body.stream_options !== undefined && !body.stream)
    throw new SluiceError('request_invalid', 'stream_options: allowed only with stream: true', {
      param: 'stream_options',
    });
}

async function promptIds(backend: Backend, body: CompletionBody): Promise<readonly number[][]> {
  const { prompt } = body;
  const options = { addSpecialTokens: body.add_special_tokens ?? true };
  if ('texts' in prompt) for (const text of prompt.texts) checkTextLength(text, backend, 'prompt');
  const prompts = 'ids' in prompt ? prompt.ids : await backend.tokenizer.encodeAll(prompt.texts, options);
  prompts.forEach((ids, index) => {
    const field = prompts.length === 1 ? 'prompt' : `prompt[${index}]`;
    checkTokenIds(ids, backend.vocabulary, field);
    if (ids.length === 0)
      throw new SluiceError('request_invalid', `${field}: holds no tokens; it must hold at least one`, {
        param: field,
      });
  });
  return prompts;
}

function generationRequest(
  backend: Backend,
  body: CompletionBody,
  prompt: readonly number[],
  id: string,
): GenerationRequest {
  const { n = 1, best_of: bestOf = n, logprobs, echo } = body;
  const maxTokens = answerLimit(
    prompt.length,
    body.max_tokens,
    defaultAnswerTokens,
    backend.maxLength,
    'max_tokens',
  );
  const route = { maxTokens, bestOf, logprobs, promptLogprobs: echo ? logprobs : undefined };
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

interface CompletionChoice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: FinishReason | null;
  readonly stop_reason?: string | number | null;
  readonly token_ids?: readonly number[];
  readonly prompt_token_ids?: readonly number[];
}

/** Turns the events of a run into pieces of choices, echoed prompts first. */
class CompletionWriter {
  readonly #body: CompletionBody;
  readonly #prompts: readonly (readonly number[])[];
  readonly #backend: Backend;
  readonly #names: TokenNames;
  readonly #head: object;
  /** Characters of each choice sent so far, for text_offset. */
  readonly #offsets = new Map<number, number>();

  constructor(
    context: ServerContext,
    backend: Backend,
    body: CompletionBody,
    prompts: readonly (readonly number[])[],
    id: string,
  ) {
    this.#body = body;
    this.#prompts = prompts;
    this.#backend = backend;
    this.#names = new TokenNames(backend.tokenizer.tokenizer, body.return_tokens_as_token_ids ?? false);
    this.#head = {
      id: `cmpl-${id}`,
      object: 'text_completion',
      created: Math.floor(Date.now() / 1000),
      model: body.model,
      system_fingerprint: `sluice-${context.version}`,
    };
  }

  chunk(choices: readonly CompletionChoice[]): object {
    return { ...this.#head, choices };
  }

  listener(emit: (choice: CompletionChoice) => Promise<void>): RunListener {
    const { n = 1, echo, logprobs, return_token_ids: withIds } = this.#body;
    return {
      onPrompt: async (prompt, promptLogprobs) => {
        if (!echo && !withIds) return;
        const ids = this.#prompts[prompt]!;
        const text = echo ? this.#promptText(prompt, ids) : '';
        for (let choice = 0; choice < n; choice++) {
          const entries = ids.map((id, position) => ({ id, logprob: promptLogprobs?.[position] ?? null }));
          await emit({
            index: prompt * n + choice,
            text,
            logprobs: echo && logprobs !== undefined ? this.#logprobs(prompt * n + choice, entries) : null,
            finish_reason: null,
            ...(withIds ? { prompt_token_ids: ids, token_ids: [] } : {}),
          });
        }
      },
      onDelta: async ({ index, text, tokenIds, logprobs: tokens }) => {
        const wanted = text !== '' || (tokenIds.length > 0 && (withIds || logprobs !== undefined));
        if (!wanted) return;
        await emit({
          index,
          text,
          logprobs:
            logprobs === undefined || tokens === undefined ? null : this.#logprobs(index, entriesOf(tokens)),
          finish_reason: null,
          ...(withIds ? { token_ids: tokenIds } : {}),
        });
      },
      onFinish: async (index, _prompt, reason, stopReason) =>
        emit({ index, text: '', logprobs: null, finish_reason: reason, stop_reason: stopReason }),
    };
  }

  #promptText(index: number, ids: readonly number[]): string {
    const { prompt, skip_special_tokens: skipSpecialTokens = true } = this.#body;
    if ('texts' in prompt) return prompt.texts[index]!;
    return this.#backend.tokenizer.tokenizer.decode(ids, { skipSpecialTokens });
  }

  #logprobs(
    index: number,
    entries: readonly { id: number; logprob: TokenLogprob | null }[],
  ): CompletionLogprobs {
    const offset = this.#offsets.get(index) ?? 0;
    const logprobs = this.#names.completion(entries, offset);
    this.#offsets.set(index, offset + entries.reduce((sum, { id }) => sum + this.#names.text(id).length, 0));
    return logprobs;
  }
}

const entriesOf = (tokens: readonly TokenLogprob[]) => tokens.map((logprob) => ({ id: logprob.id, logprob }));

/** Joins the pieces of each choice for an answer that is not streamed. */
class ChoiceCollector {
  readonly #pieces = new Map<number, CompletionChoice[]>();

  add(piece: CompletionChoice): void {
    const pieces = this.#pieces.get(piece.index);
    if (pieces === undefined) this.#pieces.set(piece.index, [piece]);
    else pieces.push(piece);
  }

  inOrder(): CompletionChoice[] {
    return [...this.#pieces.values()].map(joinPieces).sort((a, b) => a.index - b.index);
  }
}

function joinPieces(pieces: readonly CompletionChoice[]): CompletionChoice {
  const first = pieces[0]!;
  const last = pieces.at(-1)!;
  const logprobs = pieces.flatMap((piece) => piece.logprobs ?? []);
  const prompt = pieces.find((piece) => piece.prompt_token_ids !== undefined)?.prompt_token_ids;
  const withIds = pieces.some((piece) => piece.token_ids !== undefined);
  return {
    index: first.index,
    text: pieces.map((piece) => piece.text).join(''),
    logprobs: logprobs.length === 0 ? null : joinLogprobs(logprobs),
    finish_reason: last.finish_reason,
    stop_reason: last.stop_reason ?? null,
    ...(withIds ? { token_ids: pieces.flatMap((piece) => piece.token_ids ?? []) } : {}),
    ...(prompt === undefined ? {} : { prompt_token_ids: prompt }),
  };
}

function joinLogprobs(parts: readonly CompletionLogprobs[]): CompletionLogprobs {
  return {
    tokens: parts.flatMap((part) => part.tokens),
    token_logprobs: parts.flatMap((part) => part.token_logprobs),
    top_logprobs: parts.flatMap((part) => part.top_logprobs),
    text_offset: parts.flatMap((part) => part.text_offset),
  };
}

export function usageBody(usage: Usage) {
  return {
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    total_tokens: usage.promptTokens + usage.completionTokens,
    prompt_tokens_details: { cached_tokens: usage.cachedTokens },
  };
}
