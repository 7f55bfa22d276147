/** POST /tokenize and /detokenize, as vLLM has them. */
import { setImmediate } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { SluiceError } from '../../errors.ts';
import type { Tokenizer } from '../../tokenizer/tokenizer.ts';
import { messagesField, templateMessages, toolsField } from '../chat-schema.ts';
import { isTokenIds } from '../completion-schema.ts';
import { checkModel, type ServerContext } from '../context.ts';
import { maybe, parseBody, refused } from '../request-schema.ts';
import { checkTokenIds } from '../sampling-request.ts';

const tokenizeSchema = z.object({
  model: maybe(z.string()),
  prompt: maybe(z.string()),
  messages: maybe(messagesField),
  tools: toolsField,
  add_special_tokens: maybe(z.boolean()),
  add_generation_prompt: maybe(z.boolean()),
  return_token_strs: maybe(z.boolean()),
  chat_template_kwargs: maybe(z.record(z.string(), z.unknown())),
  continue_final_message: refused(
    'continue_final_message is not supported',
    (value) => value === false,
  ).optional(),
  chat_template: refused("the checkpoint's own template is used").optional(),
});

const detokenizeSchema = z.object({
  model: maybe(z.string()),
  tokens: z.unknown().refine((value) => isTokenIds(value) || (Array.isArray(value) && value.length === 0), {
    error: 'expected a list of token ids',
  }),
});

export function registerTokenize(app: FastifyInstance, context: ServerContext): void {
  app.post('/tokenize', async (request) => {
    const backend = context.lifecycle.backend();
    const body = parseBody(tokenizeSchema, request.body, (field) =>
      request.log.warn({ field }, 'unknown field ignored'),
    );
    if (body.model !== undefined) checkModel(context, body.model);
    if ((body.prompt === undefined) === (body.messages === undefined))
      throw new SluiceError(
        'request_invalid',
        'prompt, messages: give one of them, for example {"prompt": "Hello"}',
        {
          param: 'prompt',
        },
      );
    const tokens =
      body.messages === undefined
        ? await backend.tokenizer.encode(body.prompt!, { addSpecialTokens: body.add_special_tokens ?? true })
        : await backend.tokenizer.encodeChat(templateMessages(body.messages), {
            addSpecialTokens: body.add_special_tokens ?? false,
            addGenerationPrompt: body.add_generation_prompt ?? true,
            variables: body.chat_template_kwargs ?? {},
            ...(body.tools === undefined ? {} : { tools: body.tools }),
          });
    const { tokenizer } = backend.tokenizer;
    return {
      count: tokens.length,
      max_model_len: backend.maxLength,
      tokens,
      token_strs: body.return_token_strs ? tokens.map((id) => tokenizer.tokenOf(id) ?? null) : null,
    };
  });

  app.post('/detokenize', async (request) => {
    const backend = context.lifecycle.backend();
    const body = parseBody(detokenizeSchema, request.body, (field) =>
      request.log.warn({ field }, 'unknown field ignored'),
    );
    if (body.model !== undefined) checkModel(context, body.model);
    const tokens = body.tokens as number[];
    checkTokenIds(tokens, backend.vocabulary, 'tokens');
    return { prompt: await decode(backend.tokenizer.tokenizer, tokens) };
  });
}

/** Ids decoded between two turns of the event loop: a few milliseconds of work. */
const idsPerTurn = 8192;

async function decode(tokenizer: Tokenizer, ids: readonly number[]): Promise<string> {
  const stream = tokenizer.stream();
  const parts: string[] = [];
  for (let index = 0; index < ids.length; index++) {
    if (index > 0 && index % idsPerTurn === 0) await setImmediate();
    parts.push(stream.push(ids[index]!));
  }
  return parts.join('') + stream.flush();
}
