/**
 * How few tokens a text can make, without tokenising it: for refusing at once what cannot fit.
 * Enters: a tokenizer's files. Leaves: the most bytes of a text that one token can stand for, where the files promise one.
 */
import { type Component, readDefinition, type TokenizerSource } from './definition.ts';

/** Canonical composition makes at most this of a text's bytes into one (three Hangul letters, 9 bytes, into 3). */
const compositionFactor = 4;

/** Undefined where a token may stand for any number of bytes: unknown characters in one, white space swallowed. */
export function longestTokenBytes(source: TokenizerSource): number | undefined {
  const { definition } = readDefinition(source);
  const { model, normalizer, pre_tokenizer: preTokenizer, added_tokens: added } = definition;
  const byteLevel = leaves(preTokenizer).some(({ type }) => type === 'ByteLevel');
  if (model.type !== 'BPE' || !(byteLevel || model.byte_fallback === true)) return undefined;
  if (added.some(({ lstrip, rstrip }) => lstrip === true || rstrip === true)) return undefined;
  const steps = leaves(normalizer);
  if (!steps.every(({ type }) => type === 'NFC' || type === 'Prepend' || type === 'Replace'))
    return undefined;
  const replaced = steps.filter(({ type }) => type === 'Replace');
  // Of the replacements only SentencePiece's mark for a space is known not to shorten.
  if (!replaced.every((step) => (step.pattern as Component | undefined)?.String === ' ')) return undefined;
  // Whitespace is cut away by pre-tokenizers that split and remove; those that isolate or mark keep every byte.
  const kept = leaves(preTokenizer).every(
    ({ type, behavior }) =>
      type === 'ByteLevel' ||
      type === 'Metaspace' ||
      type === 'Digits' ||
      (type === 'Split' && behavior !== 'Removed') ||
      type === 'Replace',
  );
  if (!kept) return undefined;
  const tokens = Array.isArray(model.vocab) ? model.vocab.map(([token]) => token) : Object.keys(model.vocab);
  let longest = 1;
  // A character of a byte-level token is one byte, so its UTF-8 length is no less than its bytes.
  for (const token of tokens) longest = Math.max(longest, Buffer.byteLength(token));
  for (const { content } of added) longest = Math.max(longest, Buffer.byteLength(content));
  return longest * (steps.some(({ type }) => type === 'NFC') ? compositionFactor : 1);
}

/** A component, or those of a sequence. */
function leaves(component: Component | null): Component[] {
  if (component === null) return [];
  if (component.type !== 'Sequence') return [component];
  const members = (component.normalizers ?? component.pretokenizers ?? []) as Component[];
  return members.flatMap(leaves);
}
