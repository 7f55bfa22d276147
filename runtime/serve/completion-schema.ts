/** The body of /v1/completions. */
import { z } from 'zod';
import { ignored, maybe, refused, samplingFields } from './request-schema.ts';

const tokenIds = z.array(z.int().min(0)).min(1);

export const completionSchema = z.object({
  ...samplingFields,
  prompt: z.union(
    [z.string(), tokenIds, z.array(z.string()).min(1).max(2048), z.array(tokenIds).min(1).max(2048)],
    {
      error: 'required: a string, a list of strings, a list of token ids, or a list of such lists',
    },
  ),
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
