/** The tokenizers of the golden checkpoints: a folder's files, or a GGUF's metadata. */
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import type { TokenizerSource } from '../../runtime/tokenizer/definition.ts';
import { tokenizerFromGguf } from '../../runtime/tokenizer/gguf.ts';
import { openCheckpoint } from '../../runtime/weights/open.ts';

export const goldens = path.resolve(import.meta.dirname, '../goldens');

export const goldenNames = readdirSync(goldens).filter((name) =>
  existsSync(path.join(goldens, name, 'golden.json')),
);

export function goldenTokenizer(name: string): TokenizerSource {
  const folder = path.join(goldens, name);
  if (existsSync(path.join(folder, 'tokenizer.json'))) return folder;
  const { path: file, metadata } = openCheckpoint(folder);
  return tokenizerFromGguf(file, metadata!);
}
