/**
 * The Tokenizer of a checkpoint. Encoding is the library's; decoding is ours, by bytes, so that a text, its
 * stream and the bytes of its tokens always agree.
 * Known departures from Hugging Face's tokenizers when encoding: `single_word` of added tokens is not looked at, and the
 * white space that `lstrip` and `rstrip` take is JavaScript's (with U+FEFF, without U+0085).
 */
import path from 'node:path';
import { Tokenizer as Encoder } from '@huggingface/tokenizers';
import { SluiceError } from '../errors.ts';
import { readDefinition, type TokenizerSource } from './definition.ts';
import { createPieces, type Pieces } from './pieces.ts';
import type { DecodeOptions, Tokenizer, TokenStream } from './tokenizer.ts';

/** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`. */
export function loadTokenizer(source: TokenizerSource): Tokenizer {
  try {
    return makeTokenizer(source);
  } catch (cause) {
    // The files are foreign and their form has no schema: whatever they make fail is their fault.
    if (cause instanceof SluiceError) throw cause;
    const file = typeof source === 'string' ? path.join(source, 'tokenizer.json') : source.path;
    throw new SluiceError('checkpoint_invalid', `${file}: cannot be used: ${reasonOf(cause)}`, {
      cause,
    });
  }
}

const reasonOf = (cause: unknown): string =>
  (cause instanceof Error ? cause.message : String(cause)).split('\n')[0]!.slice(0, 200);

function makeTokenizer(source: TokenizerSource): Tokenizer {
  const { definition, config } = readDefinition(source);
  const { file, ...json } = definition;
  const encoder = new Encoder(json, { ...config, clean_up_tokenization_spaces: false });
  const ids = new Map<string, number>();
  const tokens: (string | undefined)[] = [];
  const add = (token: unknown, id: unknown) => {
    if (
      typeof token !== 'string' ||
      !Number.isInteger(id) ||
      (id as number) < 0 ||
      (id as number) >= maxIds
    ) {
      const entry = `${JSON.stringify(token)?.slice(0, 80)}: ${JSON.stringify(id)?.slice(0, 80)}`;
      throw new SluiceError(
        'checkpoint_invalid',
        `${file}: the vocabulary has ${entry}; texts with ids from 0 to ${maxIds - 1} are expected`,
      );
    }
    ids.set(token, id as number);
    tokens[id as number] = token;
  };
  const { vocab } = definition.model;
  if (Array.isArray(vocab)) vocab.forEach(([token], id) => void add(token, id));
  else for (const [token, id] of Object.entries(vocab as Readonly<Record<string, number>>)) add(token, id);
  for (const { content, id } of definition.added_tokens) add(content, id);
  const special = new Set(definition.added_tokens.filter((token) => token.special).map((token) => token.id));
  return new HuggingFaceTokenizer(encoder, createPieces(definition, tokens), ids, tokens, special);
}

/** Ten times the largest vocabulary there is; a table of this length is made. */
const maxIds = 4_194_304;

class HuggingFaceTokenizer implements Tokenizer {
  readonly #encoder: Encoder;
  readonly #pieces: Pieces;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #tokens: readonly (string | undefined)[];
  readonly #special: ReadonlySet<number>;

  constructor(
    encoder: Encoder,
    pieces: Pieces,
    ids: ReadonlyMap<string, number>,
    tokens: readonly (string | undefined)[],
    special: ReadonlySet<number>,
  ) {
    this.#encoder = encoder;
    this.#pieces = pieces;
    this.#ids = ids;
    this.#tokens = tokens;
    this.#special = special;
  }

  get vocabularySize(): number {
    return this.#tokens.length;
  }

  encode(text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): number[] {
    const ids = this.#idsOf(text.toWellFormed(), addSpecialTokens);
    // A character that the vocabulary lacks, without an unknown token, is dropped as in Hugging Face's encoder.
    return ids.filter((id) => id !== undefined);
  }

  #idsOf(text: string, addSpecialTokens: boolean): (number | undefined)[] {
    try {
      return this.#encoder.encode(text, { add_special_tokens: addSpecialTokens }).ids;
    } catch (cause) {
      throw new SluiceError('checkpoint_invalid', `the model's tokenizer fails: ${reasonOf(cause)}`, {
        cause,
      });
    }
  }

  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const stream = this.stream(options);
    let text = '';
    for (let index = 0; index < ids.length; index++) text += stream.push(ids[index]!);
    return text + stream.flush();
  }

  idOf(token: string): number | undefined {
    return this.#ids.get(token);
  }

  tokenOf(id: number): string | undefined {
    return this.#tokens[id];
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  bytesOf(id: number): Uint8Array {
    return this.#pieces.bytesOf(id);
  }

  stream({ skipSpecialTokens = false, continues = false }: DecodeOptions = {}): TokenStream {
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
    let dropsSpace = this.#pieces.dropsFirstSpace && !continues;
    return {
      push: (id) => {
        if (skipSpecialTokens && this.#special.has(id)) return '';
        let bytes = this.#pieces.bytesOf(id);
        if (bytes.length === 0) return '';
        if (dropsSpace && bytes[0] === 0x20) bytes = bytes.subarray(1);
        dropsSpace = false;
        return utf8.decode(bytes, { stream: true });
      },
      flush: () => utf8.decode(),
    };
  }
}
