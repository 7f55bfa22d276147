/**
 * The tokenizer as the rest of the runtime sees it. Text in, ids out, and back; must not know requests or models.
 */

export interface Tokenizer {
  /** Ids in use, added tokens included. */
  readonly vocabularySize: number;
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** The id of a token given by its exact text, special tokens included. */
  idOf(token: string): number | undefined;
  /** The token's own text as stored (`Ġthe`, `<0x0A>`), for logprobs. */
  tokenOf(id: number): string | undefined;
  isSpecial(id: number): boolean;
  /** The bytes that a token stands for; several tokens may make one character. */
  bytesOf(id: number): Uint8Array;
  /** A decoder of one stream of ids: emits text as soon as no later token can change it, never a broken character. */
  stream(options?: { skipSpecialTokens?: boolean }): TokenStream;
}

export interface TokenStream {
  /** Text that became certain with this id; may be empty. */
  push(id: number): string;
  /** What is left at the end; broken bytes become U+FFFD. */
  flush(): string;
}
