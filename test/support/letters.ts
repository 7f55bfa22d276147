/** A tokenizer of 64 ids for tests of what is made of tokens: 0 is special, the others are one, two or three letters. */
import type { Tokenizer } from '../../runtime/tokenizer/tokenizer.ts';

const texts = [
  '<eos>',
  ...Array.from({ length: 63 }, (_, i) => 'abcdefghijklmnopqrstuvwxyz'.slice(i % 24, (i % 24) + 1 + (i % 3))),
];

function textOf(ids: ArrayLike<number>, skipSpecialTokens: boolean): string {
  return Array.from(ids, (id) => (id === 0 && skipSpecialTokens ? '' : texts[id]!)).join('');
}

export const letters: Tokenizer = {
  vocabularySize: texts.length,
  encode: (text) => Array.from(text, (letter) => texts.indexOf(letter)),
  decode: (ids, { skipSpecialTokens = false } = {}) => textOf(ids, skipSpecialTokens),
  idOf: (token) => (texts.includes(token) ? texts.indexOf(token) : undefined),
  tokenOf: (id) => texts[id],
  isSpecial: (id) => id === 0,
  bytesOf: (id) => new TextEncoder().encode(texts[id]),
  stream: ({ skipSpecialTokens = false } = {}) => ({
    push: (id) => textOf([id], skipSpecialTokens),
    flush: () => '',
  }),
};
