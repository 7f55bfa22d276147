/** The body of /v1/completions. */
import { z } from 'zod';
import { ignored, maybe, refused, samplingFields } from './request-schema.ts';

/** Prompts as texts or as token ids; at least one. */
export type Prompts = { readonly texts: readonly string[] } | { readonly ids: readonly number[][] };

const maxPrompts = 2048;

/** By hand: a schema would take seconds for a body of millions of ids, and the event loop would stand still. */
const promptField = z.unknown().transform((value, context): Prompts => {
  const refuse = (message: string) => {
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  };
  if (typeof value === 'string') return { texts: [value] };
  if (!Array.isArray(value) || value.length === 0)
    return refuse('required: a string, a list of strings, a list of token ids, or a list of such lists');
  if (isTokenIds(value)) return { ids: [value] };
  if (value.length > maxPrompts) return refuse(`at most ${maxPrompts} prompts`);
  if (value.every((each) => typeof each === 'string')) return { texts: value };
  if (value.every(isTokenIds)) return { ids: value };
  return refuse('neither strings only, nor token ids (integers from 0) only, nor lists of token ids only');
});

export function isTokenIds(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);
}

export const completionSchema = z.object({
  ...samplingFields,
  prompt: promptField,
  best_of: maybe(z.int().min(1).max(20)),
  echo: maybe(z.boolean()),
  logprobs: maybe(z.int().min(0).max(20)),
  add_special_tokens: maybe(z.boolean()),
  suffix: refused('insertion before a suffix is not supported', (value) => value === '').optional(),
  stream_options: samplingFields.stream_options.optional(),
  response_format: refused('structured output is not supported', isTextFormat).optional(),
  metadata: ignored.optional(),
  service_tier: ignored.optional(),
});

export type CompletionBody = z.output<typeof completionSchema>;

export function isTextFormat(value: unknown): boolean {
  return typeof value === 'object' && value !== null && (value as { type?: unknown }).type === 'text';
}
