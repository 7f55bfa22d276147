/**
 * The parts that OpenAI's request bodies share, and the one way in which bodies are parsed: a documented field that
 * would change the answer and is not supported is refused by name, an unknown one is reported.
 */
import { z } from 'zod';
import { SluiceError } from '../errors.ts';

/** A field that may be absent or null, which mean the same in OpenAI's API. */
export function maybe<S extends z.ZodType>(schema: S) {
  return schema.nullish().transform((value) => value ?? undefined);
}

/** A documented field that this server cannot honour: only values that ask for nothing pass. */
export function refused(reason: string, harmless: (value: unknown) => boolean = () => false) {
  return z
    .unknown()
    .refine((value) => value === undefined || value === null || harmless(value), { error: reason })
    .transform(() => undefined);
}

/** A documented field that changes no answer. */
export const ignored = z.unknown().transform(() => undefined);

/** Every token is searched for these. */
const longestText = 4096;
const oneOfList = z.string().max(longestText);

const listOrOne = (name: string) =>
  z
    .union([oneOfList, z.array(oneOfList).max(64)], {
      error: `expected a string or a list of at most 64 strings, each of at most ${longestText} characters`,
    })
    .transform((value) => (Array.isArray(value) ? value : [value]))
    .refine((values) => values.every((value) => value.length > 0), {
      error: `${name} holds an empty string`,
    });

/** Fields of completions and chat completions alike, vLLM's extensions included. */
export const samplingFields = {
  model: z.string({ error: 'required: the name of the model, as /v1/models lists it' }),
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  top_k: maybe(z.int().min(-1)),
  min_p: maybe(z.number().min(0).max(1)),
  n: maybe(z.int().min(1).max(128)),
  seed: maybe(z.int()),
  stop: maybe(listOrOne('stop')),
  stop_token_ids: maybe(z.array(z.int().min(0)).max(64)),
  max_tokens: maybe(z.int().min(0)),
  min_tokens: maybe(z.int().min(0)),
  ignore_eos: maybe(z.boolean()),
  presence_penalty: maybe(z.number().min(-2).max(2)),
  frequency_penalty: maybe(z.number().min(-2).max(2)),
  repetition_penalty: maybe(z.number().gt(0).max(10)),
  logit_bias: maybe(
    z.record(z.string().regex(/^(0|[1-9]\d*)$/, 'expected token ids as keys'), z.number().min(-100).max(100)),
  ),
  stream: maybe(z.boolean()),
  priority: maybe(
    z
      .int()
      .min(-(2 ** 31))
      .max(2 ** 31 - 1),
  ),
  cache_salt: maybe(z.string().max(1024)),
  stream_options: maybe(
    z.object({ include_usage: maybe(z.boolean()), include_obfuscation: ignored.optional() }),
  ),
  return_token_ids: maybe(z.boolean()),
  return_tokens_as_token_ids: maybe(z.boolean()),
  skip_special_tokens: maybe(z.boolean()),
  user: ignored.optional(),
  // Extensions of other servers that would change the answer.
  guided_json: refused('structured output is not supported').optional(),
  guided_regex: refused('structured output is not supported').optional(),
  guided_choice: refused('structured output is not supported').optional(),
  guided_grammar: refused('structured output is not supported').optional(),
  structured_outputs: refused('structured output is not supported').optional(),
  use_beam_search: refused('beam search is not supported', (value) => value === false).optional(),
  bad_words: refused('bad_words is not supported').optional(),
  allowed_token_ids: refused('allowed_token_ids is not supported').optional(),
  truncate_prompt_tokens: refused('truncate_prompt_tokens is not supported').optional(),
  include_stop_str_in_output: refused(
    'include_stop_str_in_output is not supported',
    (value) => value === false,
  ).optional(),
  prompt_logprobs: refused(
    'prompt_logprobs is not supported; use echo with logprobs in /v1/completions',
  ).optional(),
};

/** Throws SluiceError `request_invalid` for the first thing that is wrong. */
export function parseBody<S extends z.ZodObject>(
  schema: S,
  body: unknown,
  onUnknown: (field: string) => void,
): z.output<S> {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new SluiceError('request_invalid', 'the body is no JSON object; the form is {"model": "...", ...}');
  for (const field of Object.keys(body)) {
    if (!(field in schema.shape)) onUnknown(clip(field));
  }
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  throw invalidField(result.error, body);
}

function invalidField(error: z.ZodError, body: object): SluiceError {
  const issue = error.issues[0]!;
  const field = issue.path
    .map((key, index) =>
      typeof key === 'number' ? `[${key}]` : index === 0 ? String(key) : `.${String(key)}`,
    )
    .join('');
  const value = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown>)?.[key], body);
  const shown = value === undefined ? '' : ` ${clip(JSON.stringify(value))}`;
  const message = issue.message.replace(/^Invalid input: /, '');
  return new SluiceError('request_invalid', `${field}${shown}: ${message}`, { param: field });
}

export function clip(text: string): string {
  return text.length <= 100 ? text : `${text.slice(0, 97)}...`;
}
