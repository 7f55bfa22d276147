/**
 * What each token adds to a text, as bytes. Enters: a tokenizer definition. Leaves: bytes by id.
 * Must not know encoding or streams.
 */
import { SluiceError } from '../errors.ts';
import type { Component, TokenizerDefinition } from './definition.ts';

export interface Pieces {
  bytesOf(id: number): Uint8Array;
  /** A text starts without the space that its first word carries. */
  readonly dropsFirstSpace: boolean;
}

const nothing = new Uint8Array(0);

/** `tokens[id]` is the token's stored text; added tokens stand for their text itself. Bytes are made when asked. */
export function createPieces(
  definition: TokenizerDefinition,
  tokens: readonly (string | undefined)[],
): Pieces {
  const { bytes, dropsFirstSpace } = readDecoder(definition);
  const added = new Set(definition.added_tokens.map((token) => token.id));
  const encoder = new TextEncoder();
  const made: (Uint8Array | undefined)[] = [];
  return {
    dropsFirstSpace,
    bytesOf(id) {
      const token = tokens[id];
      if (token === undefined) return nothing;
      made[id] ??= added.has(id) ? encoder.encode(token) : bytes(token);
      return made[id];
    },
  };
}

interface Decoder {
  readonly bytes: (token: string) => Uint8Array;
  readonly dropsFirstSpace: boolean;
}

function readDecoder(definition: TokenizerDefinition): Decoder {
  const { decoder } = definition;
  const steps = decoder === null ? [] : flatten(decoder);
  const encoder = new TextEncoder();
  const first = steps[0];
  if (steps.length === 1 && first?.type === 'ByteLevel')
    return { bytes: byteLevelBytes, dropsFirstSpace: false };
  if (steps.length === 1 && first?.type === 'Metaspace') {
    const mark = String(first.replacement ?? '▁');
    const keeps = first.prepend_scheme === 'never' || first.add_prefix_space === false;
    return { bytes: (token) => encoder.encode(token.replaceAll(mark, ' ')), dropsFirstSpace: !keeps };
  }
  // What is left is made of the parts of Llama's and Gemma's decoders.
  let text = (token: string) => token;
  let byteFallback = false;
  let dropsFirstSpace = false;
  for (const step of steps) {
    const pattern = step.pattern as { String?: string } | undefined;
    if (step.type === 'Replace' && typeof pattern?.String === 'string') {
      const before = text;
      const from = pattern.String;
      text = (token) => before(token).replaceAll(from, String(step.content));
    } else if (step.type === 'ByteFallback') byteFallback = true;
    else if (step.type === 'Strip' && step.content === ' ' && step.start === 1 && step.stop === 0)
      dropsFirstSpace = true;
    else if (step.type !== 'Fuse')
      throw new SluiceError(
        'checkpoint_unsupported',
        `${definition.file}: decoder ${JSON.stringify(step).slice(0, 120)} is not supported; the forms are ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip of one leading space`,
      );
  }
  return {
    bytes: (token) => (byteFallback ? fallbackByte(token) : undefined) ?? encoder.encode(text(token)),
    dropsFirstSpace,
  };
}

function flatten(component: Component): Component[] {
  return component.type === 'Sequence' ? (component.decoders as Component[]).flatMap(flatten) : [component];
}

function fallbackByte(token: string): Uint8Array | undefined {
  const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1];
  return hex === undefined ? undefined : Uint8Array.of(Number.parseInt(hex, 16));
}

/** GPT-2's alphabet: printable Latin-1 stands for its own byte, the other bytes count up from U+0100. */
const byteOfCharacter = (() => {
  const table = new Map<number, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    table.set(printable ? byte : next++, byte);
  }
  return table;
})();

function byteLevelBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let index = 0; index < token.length; index++) {
    const byte = byteOfCharacter.get(token.charCodeAt(index));
    // A token outside the alphabet stands for its own text, as in Hugging Face's decoder.
    if (byte === undefined) return new TextEncoder().encode(token);
    bytes[index] = byte;
  }
  return bytes;
}
