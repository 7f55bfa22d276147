/** POST /v1/completions. */
import { setImmediate } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';
import type { FinishReason, TokenLogprob } from '../../generation.ts';
import { backendFor, prepareBody, streamAnswer } from '../answer.ts';
import type { Backend } from '../backend.ts';
import type { ServerContext } from '../context.ts';
import { type RunListener, runGeneration, type Usage } from '../generation-run.ts';
import type { PreparedCompletion } from '../prepare/completion.ts';
import { type CompletionLogprobs, TokenNames } from '../token-text.ts';

export function registerCompletions(app: FastifyInstance, context: ServerContext): void {
  app.post('/v1/completions', async (request, reply) => {
    const backend = backendFor(context);
    const prepared = await prepareBody(context, backend, 'completion', request);
    const body = prepared.fields;
    const { signal, usage } = request.account;
    const requests = prepared.requests.map((each, index) => ({ ...each, id: `${request.id}-${index}` }));
    const writer = new CompletionWriter(context, backend, prepared, request.id);
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
      ...(body.return_token_ids && requests.length === 1
        ? { prompt_token_ids: Array.from(requests[0]!.prompt) }
        : {}),
      usage: usageBody(usage),
    };
  });
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
  readonly #prepared: PreparedCompletion;
  readonly #names: TokenNames;
  readonly #head: object;
  /** Characters of each choice sent so far, for text_offset. */
  readonly #offsets = new Map<number, number>();

  constructor(context: ServerContext, backend: Backend, prepared: PreparedCompletion, id: string) {
    const { model, return_tokens_as_token_ids: asIds = false } = prepared.fields;
    this.#prepared = prepared;
    this.#names = new TokenNames(backend.words.tokenizer, asIds);
    this.#head = {
      id: `cmpl-${id}`,
      object: 'text_completion',
      created: Math.floor(Date.now() / 1000),
      model,
      system_fingerprint: `sluice-${context.version}`,
    };
  }

  chunk(choices: readonly CompletionChoice[]): object {
    return { ...this.#head, choices };
  }

  listener(emit: (choice: CompletionChoice) => Promise<void>): RunListener {
    const { n = 1, echo, logprobs, return_token_ids: withIds } = this.#prepared.fields;
    return {
      onPrompt: async (prompt, promptLogprobs) => {
        if (!echo && !withIds) return;
        const ids = this.#prepared.requests[prompt]!.prompt;
        const plain = { text: '', logprobs: null, finish_reason: null };
        for (let choice = 0; choice < n; choice++) {
          const index = prompt * n + choice;
          const given = withIds ? { prompt_token_ids: Array.from(ids), token_ids: [] } : {};
          const first = { ...plain, index, text: this.#prepared.echoes[prompt] ?? '', ...given };
          if (!echo || logprobs === undefined) {
            await emit(first);
            continue;
          }
          let sent = false;
          for await (const part of this.#promptLogprobs(index, ids, promptLogprobs ?? [])) {
            await emit({ ...(sent ? { ...plain, index } : first), logprobs: part });
            sent = true;
          }
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

  /** Those of a prompt in parts, between which others have the event loop. */
  async *#promptLogprobs(
    index: number,
    ids: ArrayLike<number>,
    logprobs: readonly (TokenLogprob | null)[],
  ): AsyncIterable<CompletionLogprobs> {
    for (let start = 0; start < ids.length; start += tokensAtOnce) {
      const length = Math.min(tokensAtOnce, ids.length - start);
      const entries = Array.from({ length }, (_, i) => ({
        id: ids[start + i]!,
        logprob: logprobs[start + i] ?? null,
      }));
      yield this.#logprobs(index, entries);
      await setImmediate();
    }
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

/** A few milliseconds of work with 20 alternatives each. */
const tokensAtOnce = 512;

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
