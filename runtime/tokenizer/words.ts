/**
 * A checkpoint's tokenizer and chat template together, with where they come from, so that other threads can load their
 * own. Enters: texts or chats; leaves: ids, within a bounded time.
 */
import { SluiceError } from '../errors.ts';
import {
  type ChatMessage,
  type ChatTemplate,
  loadChatTemplate,
  type RenderOptions,
} from './chat-template.ts';
import type { TokenizerSource } from './definition.ts';
import { loadTokenizer } from './hugging-face.ts';
import { withTimeLimit } from './time-limit.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface Words {
  /** Plain data. */
  readonly source: TokenizerSource;
  readonly tokenizer: Tokenizer;
  /** Undefined where the checkpoint has none. */
  readonly template: ChatTemplate | undefined;
}

/** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`. */
export function loadWords(source: TokenizerSource): Words {
  return { source, tokenizer: loadTokenizer(source), template: loadChatTemplate(source) };
}

/** Throws SluiceError `request_invalid` when it takes too long. */
export function encodeTexts(
  { tokenizer }: Words,
  texts: readonly string[],
  options: { readonly addSpecialTokens: boolean },
): number[][] {
  const characters = texts.reduce((sum, text) => sum + text.length, 0);
  return withTimeLimit(characters, () => texts.map((text) => tokenizer.encode(text, options)));
}

/**
 * The ids of a chat in the checkpoint's template. `check` may refuse the text that it makes. Throws SluiceError
 * `request_invalid` when there is no template, when it refuses the messages, or when it takes too long.
 */
export function encodeChat(
  { tokenizer, template }: Words,
  messages: readonly ChatMessage[],
  options: RenderOptions & { readonly addSpecialTokens: boolean },
  check: (text: string) => void = () => {},
): number[] {
  if (template === undefined)
    throw new SluiceError(
      'request_invalid',
      'messages: this model has no chat template; use /v1/completions with a prompt',
      { param: 'messages' },
    );
  const characters = messages.reduce((sum, message) => sum + message.content.length, 0);
  return withTimeLimit(characters, () => {
    const text = template.render(messages, options);
    check(text);
    return tokenizer.encode(text, options);
  });
}
