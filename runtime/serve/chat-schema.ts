/** The body of /v1/chat/completions, and messages as the chat template wants them. */
import { z } from 'zod';
import { SluiceError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { isTextFormat } from './completion-schema.ts';
import { ignored, maybe, refused, samplingFields } from './request-schema.ts';

const textPart = z.object({ type: z.literal('text'), text: z.string() });
const refusalPart = z.object({ type: z.literal('refusal'), refusal: z.string() });
const partTypes = ['text', 'refusal'];

const content = z.union([z.string(), z.array(z.looseObject({ type: z.string() })).max(1024)], {
  error: 'expected a string or a list of parts of type text',
});

const toolCall = z.looseObject({
  id: z.string().optional(),
  type: z.string().optional(),
  function: z.looseObject({ name: z.string(), arguments: z.unknown() }),
});

const message = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool', 'function']),
  content: content.nullish(),
  tool_calls: z.array(toolCall).max(1024).nullish(),
});

const tool = z.looseObject({
  type: z.literal('function'),
  function: z.looseObject({ name: z.string().min(1) }),
});

const toolChoice = z.union([z.enum(['none', 'auto', 'required']), z.looseObject({})], {
  error: 'expected "none", "auto", "required" or a named tool',
});

export const messagesField = z.array(message).min(1).max(65536);
export const toolsField = maybe(z.array(tool).max(1024));

export const chatSchema = z.object({
  ...samplingFields,
  messages: messagesField,
  max_completion_tokens: maybe(z.int().min(1)),
  max_tokens: maybe(z.int().min(1)),
  logprobs: maybe(z.boolean()),
  top_logprobs: maybe(z.int().min(0).max(20)),
  best_of: maybe(z.int().min(1).max(20)),
  tools: toolsField,
  tool_choice: maybe(toolChoice).refine(
    (choice) => choice === undefined || choice === 'none' || choice === 'auto',
    {
      error: 'tool calls are not parsed by this server, so none can be required; use "auto" or "none"',
    },
  ),
  parallel_tool_calls: ignored.optional(),
  reasoning_effort: maybe(z.string()),
  chat_template_kwargs: maybe(z.record(z.string(), z.unknown())),
  add_generation_prompt: maybe(z.boolean()),
  audio: refused('audio output is not supported').optional(),
  modalities: refused(
    'only the modality ["text"] is supported',
    (value) => Array.isArray(value) && value.every((each) => each === 'text'),
  ).optional(),
  response_format: refused('structured output is not supported', isTextFormat).optional(),
  functions: refused(
    'deprecated; use tools',
    (value) => Array.isArray(value) && value.length === 0,
  ).optional(),
  function_call: refused(
    'deprecated; use tool_choice',
    (value) => value === 'none' || value === 'auto',
  ).optional(),
  web_search_options: refused('web search is not supported').optional(),
  verbosity: refused('verbosity cannot be changed', (value) => value === 'medium').optional(),
  moderation: refused('moderation is not supported').optional(),
  continue_final_message: refused(
    'continue_final_message is not supported',
    (value) => value === false,
  ).optional(),
  chat_template: refused("the checkpoint's own template is used").optional(),
  documents: refused('documents are not supported').optional(),
  echo: refused('echo is not supported in chats', (value) => value === false).optional(),
  metadata: ignored.optional(),
  prediction: ignored.optional(),
  prompt_cache_key: ignored.optional(),
  prompt_cache_options: ignored.optional(),
  prompt_cache_retention: ignored.optional(),
  safety_identifier: ignored.optional(),
  service_tier: ignored.optional(),
  store: ignored.optional(),
});

export type ChatBody = z.output<typeof chatSchema>;
type Message = z.output<typeof message>;

/** Throws SluiceError `request_invalid` for parts that are no text. */
export function templateMessages(messages: readonly Message[]): ChatMessage[] {
  return messages.map((each, index) => {
    const text = contentText(each.content, `messages[${index}].content`);
    const { tool_calls: calls, ...rest } = each;
    return { ...rest, content: text, ...(calls ? { tool_calls: calls.map(parsedCall) } : {}) };
  });
}

function contentText(value: Message['content'], field: string): string {
  if (value === undefined || value === null) return '';
  if (typeof value === 'string') return value;
  const texts = value.map((part, index) => {
    const at = `${field}[${index}]`;
    if (!partTypes.includes(part.type))
      throw new SluiceError(
        'request_invalid',
        `${at}.type "${part.type}": this model takes text only; the form is {"type": "text", "text": "..."}`,
        { param: `${at}.type` },
      );
    const parsed = (part.type === 'text' ? textPart : refusalPart).safeParse(part);
    if (!parsed.success)
      throw new SluiceError('request_invalid', `${at}: the form is {"type": "text", "text": "..."}`, {
        param: at,
      });
    return 'text' in parsed.data ? parsed.data.text : parsed.data.refusal;
  });
  return texts.join('\n');
}

/** Templates print arguments as JSON themselves, so they want the object and not OpenAI's string. */
function parsedCall(call: z.output<typeof toolCall>) {
  const { arguments: given } = call.function;
  if (typeof given !== 'string') return call;
  try {
    return { ...call, function: { ...call.function, arguments: JSON.parse(given) } };
  } catch {
    return call;
  }
}
