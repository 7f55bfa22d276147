/**
 * The bytes of a request's body -> what its route goes on with: parsed, checked, templated, tokenised. All work that
 * grows with the body is in here, and it needs nothing but its arguments, so that long bodies can go to another thread.
 * Must not know threads or HTTP.
 */
import { SluiceError } from '../../errors.ts';
import type { Words } from '../../tokenizer/words.ts';
import { type PreparedChat, prepareChat } from './chat.ts';
import { type PreparedCompletion, prepareCompletion } from './completion.ts';
import type { ModelFacts } from './model-facts.ts';
import { prepareDetokenize, prepareTokenize } from './tokenize.ts';

/** What each kind of body becomes: plain data whose size does not depend on the texts in it. */
export interface PreparedBodies {
  readonly completion: PreparedCompletion;
  readonly chat: PreparedChat;
  /** The answer itself, JSON in UTF-8. */
  readonly tokenize: Uint8Array<ArrayBuffer>;
  readonly detokenize: Uint8Array<ArrayBuffer>;
}

export type BodyKind = keyof PreparedBodies;

export interface Prepared<K extends BodyKind = BodyKind> {
  readonly value: PreparedBodies[K];
  /** Fields that nobody knows, clipped; a few at most. */
  readonly unknownFields: readonly string[];
}

export type Prepare<T> = (
  body: unknown,
  model: ModelFacts,
  words: Words,
  onUnknown: (field: string) => void,
) => T;

const prepares: { readonly [K in BodyKind]: Prepare<PreparedBodies[K]> } = {
  completion: prepareCompletion,
  chat: prepareChat,
  tokenize: prepareTokenize,
  detokenize: prepareDetokenize,
};

const mostUnknown = 20;

/** Throws SluiceError: what is wrong with the request. */
export function prepare<K extends BodyKind>(
  kind: K,
  bytes: Uint8Array | undefined,
  model: ModelFacts,
  words: Words,
): Prepared<K> {
  const unknownFields: string[] = [];
  const value = prepares[kind](parse(bytes), model, words, (field) => {
    if (unknownFields.length < mostUnknown) unknownFields.push(field);
  });
  return { value, unknownFields };
}

function parse(bytes: Uint8Array | undefined): unknown {
  if (bytes === undefined) return undefined;
  try {
    return JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString());
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new SluiceError('request_invalid', `the body is not JSON: ${reason}`, { cause });
  }
}
