/** Prompts to compare answers by (exactness.ts): 32 of different lengths, most of which share more than 64 tokens. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { loadChatTemplate } from '../../runtime/tokenizer/chat-template.ts';
import { tokenizerFromGguf } from '../../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../../runtime/tokenizer/hugging-face.ts';
import { openCheckpoint } from '../../runtime/weights/open.ts';

const instructions = `You are the assistant of a public library. Visitors ask about books, authors, opening hours and
much else, and many of them are children. Answer in plain words and short sentences. Say so when you do not know. Never
make up a title, a name or a year. Where a question has several answers, give the most common one first and then, in a
sentence, the others. Do not speak of yourself, and do not ask anything back.`;

/** Chats for the model in a GGUF with a template: short ones, the same after long instructions, and parts of a text. */
export function chatPrompts(gguf: string): number[][] {
  const { path: file, metadata } = openCheckpoint(gguf);
  const source = tokenizerFromGguf(file, metadata!);
  const tokenizer = loadTokenizer(source);
  const template = loadChatTemplate(source)!;
  const { prompts } = JSON.parse(
    readFileSync(path.join(import.meta.dirname, '../goldens/smollm2-chats.json'), 'utf8'),
  ) as { prompts: readonly { user: string }[] };
  const words = readFileSync(path.resolve(import.meta.dirname, '../../LICENSE'), 'utf8').split(/\s+/);
  const excerpts = Array.from({ length: 12 }, (_, i) => words.slice(5, 65 + 11 * i).join(' '));
  const chats = [
    ...prompts.map(({ user }) => [{ role: 'user', content: user }]),
    ...prompts.map(({ user }) => [
      { role: 'system', content: instructions },
      { role: 'user', content: user },
    ]),
    ...excerpts.map((text) => [{ role: 'user', content: `What does this text say?\n\n${text}` }]),
  ];
  return chats.map((messages) => tokenizer.encode(template.render(messages), { addSpecialTokens: false }));
}

/** Ids that mean nothing: 8 short prompts, and 24 that share 70 to 150 tokens with others. */
export function idPrompts(vocabulary: number): number[][] {
  const ids = (seed: number, length: number): number[] =>
    Array.from({ length }, (_, i) => 2 + ((seed * 7919 + i * 31 + ((i * i) % 97)) % (vocabulary - 2)));
  return Array.from({ length: 32 }, (_, i) =>
    i < 8 ? ids(i, 3 + 5 * i) : [...ids(100 + (i % 3), 70 + 40 * (i % 3)), ...ids(i, 2 + i)],
  );
}
