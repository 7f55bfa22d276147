/**
 * JSON files of a checkpoint. A path enters, an object leaves; what is not JSON is one clear line. Pure of formats.
 */
import { readFileSync, statSync } from 'node:fs';
import { SluiceError } from '../errors.ts';

/** Configurations are small; indexes of very large models reach some megabytes. */
const maxJsonBytes = 32 * 1024 * 1024;

/** Undefined when the file is not there. Throws SluiceError `checkpoint_invalid`. */
export function readJsonObject(file: string): Record<string, unknown> | undefined {
  let parsed: unknown;
  try {
    const { size } = statSync(file);
    if (size > maxJsonBytes) throw new Error(`it has ${size} bytes, at most ${maxJsonBytes} are read`);
    parsed = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    const error = cause as NodeJS.ErrnoException;
    if (error.code === 'ENOENT') return undefined;
    const reason =
      error instanceof SyntaxError
        ? `is not JSON: ${oneLine(error.message)}`
        : `cannot be read: ${error.message}`;
    throw new SluiceError('checkpoint_invalid', `${file} ${reason}`, { cause });
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new SluiceError('checkpoint_invalid', `${file} is not a JSON object`);
  }
  return parsed as Record<string, unknown>;
}

/** A parser's message may quote the text, line ends included. */
export function oneLine(message: string): string {
  return message.replace(/\s+/g, ' ').slice(0, 200);
}

/** The first key that the outermost object of valid JSON has twice: JSON.parse keeps only the last. */
export function duplicateKey(text: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === '{' || character === '[') depth++;
    else if (character === '}' || character === ']') depth--;
    else if (character === '"') {
      const start = at;
      for (at++; text[at] !== '"'; at++) if (text[at] === '\\') at++;
      if (depth !== 1) continue;
      let next = at + 1;
      while (' \t\r\n'.includes(text[next] ?? 'x')) next++;
      if (text[next] !== ':') continue;
      const key = JSON.parse(text.slice(start, at + 1)) as string;
      if (seen.has(key)) return key;
      seen.add(key);
    }
  }
  return undefined;
}
