/** Log-probabilities in the two forms that OpenAI's API has. Must not know requests. */
import type { TokenLogprob } from '../generation.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  readonly text_offset: number[];
}

export interface ChatTokenLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: number[];
}

/** JSON has no infinity; OpenAI sends this for what cannot happen. */
const leastLogprob = -9999;
const finite = (logprob: number) => Math.max(logprob, leastLogprob);

/** How a token is shown: its text; the bytes of one that is only a part of a character; or `token_id:<id>`. */
export class TokenNames {
  readonly #tokenizer: Tokenizer;
  readonly #asIds: boolean;
  readonly #utf8 = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(tokenizer: Tokenizer, asIds: boolean) {
    this.#tokenizer = tokenizer;
    this.#asIds = asIds;
  }

  text(id: number): string {
    return this.#utf8.decode(this.#tokenizer.bytesOf(id));
  }

  name(id: number): string {
    if (this.#asIds) return `token_id:${id}`;
    const text = this.text(id);
    if (!text.includes('\uFFFD')) return text;
    const hex = [...this.#tokenizer.bytesOf(id)].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`);
    return `bytes:${hex.join('')}`;
  }

  /** `offset`: where the first token starts in the choice's text, in characters. */
  completion(
    entries: readonly { id: number; logprob: TokenLogprob | null }[],
    offset: number,
  ): CompletionLogprobs {
    let at = offset;
    const logprobs: CompletionLogprobs = {
      tokens: [],
      token_logprobs: [],
      top_logprobs: [],
      text_offset: [],
    };
    for (const { id, logprob } of entries) {
      logprobs.tokens.push(this.name(id));
      logprobs.token_logprobs.push(logprob === null ? null : finite(logprob.logprob));
      logprobs.top_logprobs.push(logprob === null ? null : this.#top(logprob));
      logprobs.text_offset.push(at);
      at += this.text(id).length;
    }
    return logprobs;
  }

  /** The token itself is among them, as OpenAI has it, also when it is not among the most likely. */
  #top(logprob: TokenLogprob): Record<string, number> {
    const top: Record<string, number> = {};
    for (const each of logprob.top) top[this.name(each.id)] = finite(each.logprob);
    top[this.name(logprob.id)] ??= finite(logprob.logprob);
    return top;
  }

  chat(entries: readonly TokenLogprob[]): (ChatTokenLogprob & { top_logprobs: ChatTokenLogprob[] })[] {
    return entries.map((entry) => ({
      ...this.#chatToken(entry),
      top_logprobs: entry.top.map((each) => this.#chatToken(each)),
    }));
  }

  #chatToken({ id, logprob }: { id: number; logprob: number }): ChatTokenLogprob {
    return { token: this.name(id), logprob: finite(logprob), bytes: [...this.#tokenizer.bytesOf(id)] };
  }
}
