/** A part of a document that a benchmark writes: what stands between its two marker comments. */
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const docs = path.resolve(import.meta.dirname, '../docs');

/** Replaces the section of that name. Throws where the markers are missing. */
export function writeSection(name: string, lines: readonly string[], document = 'benchmarks.md'): void {
  const file = path.join(docs, document);
  const begin = `<!-- ${name}: written by npm run bench -- ${name} --write -->`;
  const end = `<!-- end of ${name} -->`;
  const text = readFileSync(file, 'utf8');
  const from = text.indexOf(begin);
  const to = text.indexOf(end);
  if (from < 0 || to < 0) throw new Error(`${file} lacks the lines ${begin} and ${end}`);
  writeFileSync(file, [text.slice(0, from) + begin, '', ...lines, '', text.slice(to)].join('\n'));
}
