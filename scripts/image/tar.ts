/**
 * A tar archive from a list of files, the same bytes for the same files: sorted by path, owned by root, one time for all.
 * Enters: entries. Leaves: bytes in pieces. ustar, with pax records for long paths (POSIX.1-2001).
 */
import { readFileSync } from 'node:fs';

export type Entry =
  | {
      readonly kind: 'file';
      readonly path: string;
      readonly source: string | Buffer;
      readonly executable: boolean;
    }
  | { readonly kind: 'folder'; readonly path: string; readonly mode: number }
  | { readonly kind: 'link'; readonly path: string; readonly target: string };

const block = 512;

/** `seconds`: the modification time of everything, since 1970. */
export function* tar(entries: Iterable<Entry>, seconds: number): Generator<Buffer> {
  for (const entry of [...entries].sort((a, b) => (a.path < b.path ? -1 : 1))) {
    const content = entry.kind !== 'file' ? Buffer.alloc(0) : contentOf(entry.source);
    const path = entry.kind === 'folder' ? `${entry.path}/` : entry.path;
    const target = entry.kind === 'link' ? entry.target : '';
    const records = [
      ...(Buffer.byteLength(path) > 100 ? [record('path', path)] : []),
      ...(Buffer.byteLength(target) > 100 ? [record('linkpath', target)] : []),
    ].join('');
    if (records !== '') {
      const pax = Buffer.from(records);
      yield header({ path: 'pax', mode: 0o644, size: pax.length, type: 'x', target: '' }, seconds);
      yield* padded(pax);
    }
    const type = { file: '0', folder: '5', link: '2' }[entry.kind];
    const mode =
      entry.kind === 'file'
        ? entry.executable
          ? 0o755
          : 0o644
        : entry.kind === 'folder'
          ? entry.mode
          : 0o777;
    yield header({ path, mode, size: content.length, type, target }, seconds);
    yield* padded(content);
  }
  yield Buffer.alloc(2 * block);
}

function contentOf(source: string | Buffer): Buffer {
  return typeof source === 'string' ? readFileSync(source) : source;
}

interface Header {
  readonly path: string;
  readonly mode: number;
  readonly size: number;
  readonly type: string;
  readonly target: string;
}

function header({ path, mode, size, type, target }: Header, seconds: number): Buffer {
  const buffer = Buffer.alloc(block);
  const octal = (value: number, offset: number, length: number) =>
    buffer.write(`${value.toString(8).padStart(length - 1, '0')}\0`, offset, 'latin1');
  // What is longer stands in a pax record before.
  cut(path).copy(buffer, 0);
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(seconds, 136, 12);
  buffer.write(' '.repeat(8), 148, 'latin1');
  buffer.write(type, 156, 'latin1');
  cut(target).copy(buffer, 157);
  buffer.write('ustar\x0000', 257, 'latin1');
  let sum = 0;
  for (const byte of buffer) sum += byte;
  buffer.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return buffer;
}

/** What stands here is only read where there is no pax record. */
function cut(text: string): Buffer {
  return Buffer.from(text).subarray(0, 100);
}

/** `<length> <key>=<value>\n`, where the length counts its own digits. */
function record(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  const bytes = Buffer.byteLength(rest);
  let length = bytes + String(bytes).length;
  if (String(length).length !== String(bytes).length) length = bytes + String(length).length;
  return `${length}${rest}`;
}

function* padded(content: Buffer): Generator<Buffer> {
  yield content;
  const over = content.length % block;
  if (over > 0) yield Buffer.alloc(block - over);
}
