/** Bodies of /tokenize and /detokenize, as vLLM has them, answered: both are work that grows with the body. */
import { z } from 'zod';
import { SluiceError } from '../../errors.ts';
import { encodeChat, encodeTexts, type Words } from '../../tokenizer/words.ts';
import { messagesField, templateMessages, toolsField } from '../chat-schema.ts';
import { isTokenIds } from '../completion-schema.ts';
import { maybe, parseBody, refused } from '../request-schema.ts';
import { checkTokenIds } from '../sampling-request.ts';
import { checkModel, type ModelFacts } from './model-facts.ts';

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

type TokenizeBody = z.output<typeof tokenizeSchema>;

const detokenizeSchema = z.object({
  model: maybe(z.string()),
  tokens: z.unknown().refine((value) => isTokenIds(value) || (Array.isArray(value) && value.length === 0), {
    error: 'expected a list of token ids',
  }),
});

const encodeJson = (answer: object) => new TextEncoder().encode(JSON.stringify(answer));

export function prepareTokenize(
  value: unknown,
  model: ModelFacts,
  words: Words,
  onUnknown: (field: string) => void,
): Uint8Array<ArrayBuffer> {
  const body = parseBody(tokenizeSchema, value, onUnknown);
  if (body.model !== undefined) checkModel(model, body.model);
  if ((body.prompt === undefined) === (body.messages === undefined))
    throw new SluiceError(
      'request_invalid',
      'prompt, messages: give one of them, for example {"prompt": "Hello"}',
      { param: 'prompt' },
    );
  const tokens = tokenIds(body, words);
  return encodeJson({
    count: tokens.length,
    max_model_len: model.maxLength,
    tokens,
    token_strs: body.return_token_strs ? tokens.map((id) => words.tokenizer.tokenOf(id) ?? null) : null,
  });
}

function tokenIds(body: TokenizeBody, words: Words): number[] {
  const { prompt, messages } = body;
  if (messages === undefined) {
    return encodeTexts(words, [prompt!], { addSpecialTokens: body.add_special_tokens ?? true })[0]!;
  }
  const options = {
    addSpecialTokens: body.add_special_tokens ?? false,
    addGenerationPrompt: body.add_generation_prompt ?? true,
    variables: body.chat_template_kwargs ?? {},
    ...(body.tools === undefined ? {} : { tools: body.tools }),
  };
  return encodeChat(words, templateMessages(messages), options);
}

export function prepareDetokenize(
  value: unknown,
  model: ModelFacts,
  words: Words,
  onUnknown: (field: string) => void,
): Uint8Array<ArrayBuffer> {
  const body = parseBody(detokenizeSchema, value, onUnknown);
  if (body.model !== undefined) checkModel(model, body.model);
  const tokens = body.tokens as number[];
  checkTokenIds(tokens, model.vocabulary, 'tokens');
  return encodeJson({ prompt: words.tokenizer.decode(tokens) });
}
