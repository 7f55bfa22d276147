/**
 * The tokenizer as the rest of the runtime sees it. Text in, ids out, and back; must not know requests or models.
 */

export interface Tokenizer {
  /** Ids in use, added tokens included. */
  readonly vocabularySize: number;
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  decode(ids: ArrayLike<number>, options?: DecodeOptions): string;
  /** The id of a token given by its exact text, special tokens included. */
  idOf(token: string): number | undefined;
  /** The token's own text as stored (`Ġthe`, `<0x0A>`), for logprobs. */
  tokenOf(id: number): string | undefined;
  isSpecial(id: number): boolean;
  /** The bytes that a token stands for; several tokens may make one character. */
  bytesOf(id: number): Uint8Array;
  /** A decoder of one stream of ids: emits text as soon as no later token can change it, never a broken character. */
  stream(options?: DecodeOptions): TokenStream;
}

export interface DecodeOptions {
  /** Special tokens give no text (default false). */
  readonly skipSpecialTokens?: boolean;
  /**
   * The ids go on after others (an answer after its prompt): the space that the first word carries stays. Default
   * false: a text of its own, which starts without that space where the tokenizer adds one.
   */
  readonly continues?: boolean;
}

export interface TokenStream {
  /** Text that became certain with this id; may be empty. */
  push(id: number): string;
  /** What is left at the end; broken bytes become U+FFFD. */
  flush(): string;
}
