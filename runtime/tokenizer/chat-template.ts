/**
 * A checkpoint's own chat template: messages in, the prompt's text out, as transformers' apply_chat_template gives it.
 * Must not know requests or tokens; special tokens of the text are found by the tokenizer.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { SluiceError } from '../errors.ts';
import { readTokenizerConfig, specialTokens, type TokenizerSource } from './definition.ts';

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  /** Other members go to the template as they are: `name`, `tool_calls`, `tool_call_id`. */
  readonly [key: string]: unknown;
}

export interface RenderOptions {
  readonly tools?: readonly unknown[];
  /** End with the opening of the assistant's turn (default true). */
  readonly addGenerationPrompt?: boolean;
  /** The template's own switches, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

export interface ChatTemplate {
  /** Whether the template looks at a variable of this name. */
  mentions(variable: string): boolean;
  /** Throws SluiceError `request_invalid` with the template's own words when it refuses the messages. */
  render(messages: readonly ChatMessage[], options?: RenderOptions): string;
}

/**
 * The template of a checkpoint, or undefined where it has none. chat_template.jinja comes before
 * tokenizer_config.json, as in transformers; additional_chat_templates/ and lists of named templates are used for tools.
 * Throws SluiceError `checkpoint_invalid`.
 */
export function loadChatTemplate(source: TokenizerSource): ChatTemplate | undefined {
  const config = readTokenizerConfig(source);
  const sources = readTemplates(source, config.chat_template);
  const parsed = new Map([...sources].map(([name, { file, text }]) => [name, parseTemplate(file, text)]));
  const fallback = parsed.get('default') ?? (parsed.size === 1 ? [...parsed.values()][0] : undefined);
  if (fallback === undefined) return undefined;
  const tokens = specialTokens(config);
  const text = [...sources.values()].map(({ text }) => text).join('\n');
  return {
    mentions: (variable) => text.includes(variable),
    render(messages, { tools, addGenerationPrompt = true, variables = {} } = {}) {
      const template = (tools !== undefined && parsed.get('tool_use')) || fallback;
      try {
        return renderBounded(template, {
          ...tokens,
          ...variables,
          messages: messages.map((message) => knownRole(message, text)),
          // Templates ask `tools is not none`, so null and not undefined.
          tools: tools ?? null,
          documents: null,
          add_generation_prompt: addGenerationPrompt,
        });
      } catch (cause) {
        const reason = cause instanceof Error ? cause.message : String(cause);
        throw new SluiceError(
          'request_invalid',
          `messages: the model's chat template refuses them: ${reason}`,
          {
            cause,
            param: 'messages',
          },
        );
      }
    },
  };
}

/** Far beyond any template's own use; a list of so many is still small. */
const maxRange = 100_000;
const maxRenderedCharacters = 64 << 20;

function boundedRange(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  if (step === 0) throw new Error('range() step must not be zero');
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= maxRange)) throw new Error(`range() of ${length} numbers; ${maxRange} is the most`);
  return Array.from({ length }, (_, index) => start + index * step);
}

const timeTemplate = new Template('{{ strftime_now(format) }}');

/** Template.render with a range and a result that cannot fill the memory. */
function renderBounded(template: Template, variables: Readonly<Record<string, unknown>>): string {
  const environment = new Environment();
  const globals: Readonly<Record<string, unknown>> = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range: boundedRange,
    raise_exception: (message: string) => {
      throw new Error(message);
    },
    strftime_now: (format: string) => timeTemplate.render({ format }),
  };
  for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
  const { value } = new Interpreter(environment).run(template.parsed) as { value: string };
  if (value.length > maxRenderedCharacters)
    throw new Error(`it makes ${value.length} characters; ${maxRenderedCharacters} is the most`);
  return value;
}

interface TemplateSource {
  readonly file: string;
  readonly text: string;
}

function readTemplates(source: TokenizerSource, configured: unknown): Map<string, TemplateSource> {
  const sources = new Map<string, TemplateSource>();
  const configFile = typeof source === 'string' ? path.join(source, 'tokenizer_config.json') : source.path;
  if (typeof configured === 'string') sources.set('default', { file: configFile, text: configured });
  else if (Array.isArray(configured))
    for (const entry of configured as { name?: unknown; template?: unknown }[])
      sources.set(String(entry.name), { file: configFile, text: String(entry.template) });
  else if (configured !== undefined && configured !== null)
    throw new SluiceError(
      'checkpoint_invalid',
      `${configFile}: chat_template is neither a string nor a list of named templates`,
    );
  if (typeof source !== 'string') return sources;
  const file = path.join(source, 'chat_template.jinja');
  if (existsSync(file)) sources.set('default', { file, text: readFileSync(file, 'utf8') });
  const more = path.join(source, 'additional_chat_templates');
  if (existsSync(more))
    for (const name of readdirSync(more).filter((entry) => entry.endsWith('.jinja'))) {
      const extra = path.join(more, name);
      sources.set(path.basename(name, '.jinja'), { file: extra, text: readFileSync(extra, 'utf8') });
    }
  return sources;
}

function parseTemplate(file: string, text: string): Template {
  try {
    return new Template(text);
  } catch (cause) {
    const reason = (cause instanceof Error ? cause.message : String(cause)).split('\n')[0];
    throw new SluiceError('checkpoint_invalid', `${file}: the chat template cannot be parsed: ${reason}`, {
      cause,
    });
  }
}

/** OpenAI renamed `system` to `developer`; most templates know the old name only. */
function knownRole(message: ChatMessage, source: string): ChatMessage {
  return message.role === 'developer' && !source.includes('developer')
    ? { ...message, role: 'system' }
    : message;
}
