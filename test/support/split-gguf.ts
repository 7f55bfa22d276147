/**
 * Splits a GGUF file as llama.cpp's gguf-split does: the first part keeps all metadata, the tensors are dealt out in
 * order. Enters: a file. Leaves: the parts' names in a folder.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { readGgufHeader } from '../../runtime/weights/gguf/reader.ts';

const alignment = 32;

const integer = (bytes: 2 | 4 | 8, value: number): Buffer => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt(value));
  return out.subarray(0, bytes);
};
const text = (value: string): Buffer =>
  Buffer.concat([integer(8, Buffer.byteLength(value)), Buffer.from(value)]);
/** 2 is uint16, 5 is int32. */
const entry = (key: string, type: 2 | 5, value: number): Buffer =>
  Buffer.concat([text(key), integer(4, type), integer(type === 2 ? 2 : 4, value)]);
const padded = (bytes: Buffer): Buffer =>
  Buffer.concat([bytes, Buffer.alloc(-bytes.length & (alignment - 1))]);

export function splitGguf(file: string, folder: string, parts: number): string[] {
  const whole = readFileSync(file);
  const { tensors, metadata } = readGgufHeader(file);
  assert.equal(metadata.get('general.alignment') ?? alignment, alignment);
  // Magic, version and two counts; then the metadata, up to the first tensor's name.
  const entries = whole.subarray(24, whole.indexOf(text(tensors[0]!.name)));
  const byOffset = [...tensors].sort((left, right) => left.offset - right.offset);
  const endOf = (offset: number): number =>
    byOffset.find((other) => other.offset > offset)?.offset ?? whole.length;
  return Array.from({ length: parts }, (_, part) => {
    const first = Math.floor((tensors.length * part) / parts);
    const own = tensors.slice(first, Math.floor((tensors.length * (part + 1)) / parts));
    const split = [
      entry('split.no', 2, part),
      entry('split.count', 2, parts),
      entry('split.tensors.count', 5, tensors.length),
    ];
    const count = split.length + (part === 0 ? metadata.size : 0);
    let end = 0;
    const places: Buffer[] = [];
    const contents: Buffer[] = [];
    for (const { name, shape, type, offset } of own) {
      const bytes = padded(whole.subarray(offset, endOf(offset)));
      // Innermost dimension first.
      const dimensions = [...shape].reverse().map((size) => integer(8, size));
      places.push(text(name), integer(4, shape.length), ...dimensions, integer(4, type), integer(8, end));
      contents.push(bytes);
      end += bytes.length;
    }
    const head = [whole.subarray(0, 8), integer(8, own.length), integer(8, count)];
    const header = Buffer.concat([...head, ...(part === 0 ? [entries] : []), ...split, ...places]);
    const number = (value: number): string => String(value).padStart(5, '0');
    const out = path.join(folder, `model-${number(part + 1)}-of-${number(parts)}.gguf`);
    writeFileSync(out, Buffer.concat([padded(header), ...contents]));
    return out;
  });
}
