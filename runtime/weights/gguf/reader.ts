/**
 * The header of a GGUF file: metadata and where each tensor lies. Reads through a small window, so a hostile length never
 * makes it allocate more than the file could hold; tensor bytes are left on disk.
 * Source: the GGUF specification (versions 2 and 3, little-endian).
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { SluiceError } from '../../errors.ts';

export type GgufValue = string | number | bigint | boolean | readonly GgufValue[];

export interface GgufTensor {
  readonly name: string;
  /** Row-major, outermost first (ggml's order reversed). */
  readonly shape: readonly number[];
  /** ggml's type number. */
  readonly type: number;
  /** From the start of the file. */
  readonly offset: number;
}

export interface GgufHeader {
  readonly file: string;
  readonly fileBytes: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensor[];
  /** Tells this content from any other in the same place: size, time and place of the file. */
  readonly identity: string;
}

const windowBytes = 1 << 20;
const maxStringBytes = 1 << 24;
const maxDimensions = 4;
const maxNesting = 4;

/** Fewest bytes that one element of a metadata type takes in the file. */
const leastBytes: readonly number[] = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];

/** Text from a file as one short, printable piece of a message. */
export const quote = (text: string): string =>
  JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}...` : text);

function invalid(file: string, what: string, cause?: unknown): SluiceError {
  return new SluiceError('checkpoint_invalid', `${file}: ${what}`, { cause });
}

class Cursor {
  readonly file: string;
  readonly size: number;
  #descriptor: number;
  #window = new Uint8Array(0);
  #windowStart = 0;
  position = 0;

  constructor(file: string, descriptor: number, size: number) {
    this.file = file;
    this.#descriptor = descriptor;
    this.size = size;
  }

  get left(): number {
    return this.size - this.position;
  }

  /** The next `count` bytes: a view that is valid until the next call. */
  bytes(count: number, what: string): Uint8Array {
    if (count > this.left) {
      throw invalid(
        this.file,
        `truncated: ${what} needs ${count} bytes at offset ${this.position}, the file ends at ${this.size}`,
      );
    }
    const from = this.position - this.#windowStart;
    if (from < 0 || from + count > this.#window.length) {
      const length = Math.min(Math.max(count, windowBytes), this.left);
      const window = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const read = readSync(this.#descriptor, window, done, length - done, this.position + done);
        if (read === 0)
          throw invalid(this.file, `truncated while it was read, at offset ${this.position + done}`);
        done += read;
      }
      this.#window = window;
      this.#windowStart = this.position;
    }
    const start = this.position - this.#windowStart;
    this.position += count;
    return this.#window.subarray(start, start + count);
  }

  view(count: number, what: string): DataView {
    const bytes = this.bytes(count, what);
    return new DataView(bytes.buffer, bytes.byteOffset, count);
  }

  u32(what: string): number {
    return this.view(4, what).getUint32(0, true);
  }

  /** A count or an offset: must fit a double exactly. */
  u64(what: string): number {
    const value = this.view(8, what).getBigUint64(0, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw invalid(this.file, `${what} is ${value}, more than any file can hold`);
    }
    return Number(value);
  }

  string(what: string): string {
    return Buffer.from(this.bytes(this.#stringLength(what), what)).toString('utf8');
  }

  /** Passes over bytes that are known to be there. */
  skip(count: number): void {
    this.position += count;
  }

  skipString(what: string): void {
    this.skip(this.#stringLength(what));
  }

  #stringLength(what: string): number {
    const length = this.u64(`the length of ${what}`);
    if (length > Math.min(maxStringBytes, this.left)) {
      throw invalid(this.file, `${what} claims ${length} bytes, ${this.left} are left in the file`);
    }
    return length;
  }
}

/** What becomes of a value: an array that is passed over becomes an empty one. */
type ReadWhat = 'all' | 'no-arrays';

function readValue(
  cursor: Cursor,
  type: number,
  key: string,
  depth: number,
  wanted: ReadWhat = 'all',
): GgufValue {
  const what = `the value of ${quote(key)}`;
  switch (type) {
    case 0:
      return cursor.view(1, what).getUint8(0);
    case 1:
      return cursor.view(1, what).getInt8(0);
    case 2:
      return cursor.view(2, what).getUint16(0, true);
    case 3:
      return cursor.view(2, what).getInt16(0, true);
    case 4:
      return cursor.view(4, what).getUint32(0, true);
    case 5:
      return cursor.view(4, what).getInt32(0, true);
    case 6:
      return cursor.view(4, what).getFloat32(0, true);
    case 7:
      return cursor.view(1, what).getUint8(0) !== 0;
    case 8:
      return cursor.string(what);
    case 9: {
      const element = cursor.u32(`the element type of ${quote(key)}`);
      const count = cursor.u64(`the length of ${quote(key)}`);
      const least = leastBytes[element];
      if (least === undefined)
        throw invalid(cursor.file, `${quote(key)} has elements of unknown type ${element}`);
      if (depth >= maxNesting)
        throw invalid(cursor.file, `${quote(key)} nests arrays deeper than ${maxNesting}`);
      if (count * least > cursor.left) {
        throw invalid(
          cursor.file,
          `${quote(key)} claims ${count} elements, ${cursor.left} bytes are left in the file`,
        );
      }
      const values: GgufValue[] = [];
      if (wanted === 'no-arrays' && element === 8) {
        for (let i = 0; i < count; i++) cursor.skipString(what);
        return values;
      }
      if (wanted === 'no-arrays' && element !== 9) {
        cursor.skip(count * least);
        return values;
      }
      for (let i = 0; i < count; i++) values.push(readValue(cursor, element, key, depth + 1, wanted));
      return values;
    }
    case 10:
      return cursor.view(8, what).getBigUint64(0, true);
    case 11:
      return cursor.view(8, what).getBigInt64(0, true);
    case 12:
      return cursor.view(8, what).getFloat64(0, true);
    default:
      throw invalid(cursor.file, `${quote(key)} has the unknown value type ${type}`);
  }
}

export interface GgufReadOptions {
  /** False: the tokenizer's lists are passed over and read as empty; they are most of a header. Default true. */
  readonly vocabulary?: boolean;
}

/** Throws SluiceError `checkpoint_invalid` for anything that is not a sound GGUF header. */
export function readGgufHeader(file: string, { vocabulary = true }: GgufReadOptions = {}): GgufHeader {
  let descriptor: number;
  try {
    descriptor = openSync(file, 'r');
  } catch (cause) {
    throw invalid(file, `cannot be opened (${(cause as NodeJS.ErrnoException).code})`, cause);
  }
  try {
    const status = fstatSync(descriptor, { bigint: true });
    const size = Number(status.size);
    if (!status.isFile())
      throw invalid(file, 'is not a file; a GGUF checkpoint is one, for example model-Q4_1.gguf');
    const cursor = new Cursor(file, descriptor, size);
    const magic = Buffer.from(cursor.bytes(4, 'the magic number')).toString('latin1');
    if (magic !== 'GGUF')
      throw invalid(file, `is not a GGUF file: it starts with ${JSON.stringify(magic)}, not "GGUF"`);
    const version = cursor.u32('the version');
    if (version !== 2 && version !== 3) {
      throw invalid(file, `GGUF version ${version >>> 0} is not known; 2 and 3 (little-endian) are`);
    }
    const tensorCount = cursor.u64('the number of tensors');
    const keyCount = cursor.u64('the number of metadata keys');
    if (tensorCount * 24 + keyCount * 13 > cursor.left) {
      throw invalid(
        file,
        `claims ${tensorCount} tensors and ${keyCount} keys, more than ${cursor.size} bytes can hold`,
      );
    }
    const metadata = new Map<string, GgufValue>();
    for (let i = 0; i < keyCount; i++) {
      const key = cursor.string('a metadata key');
      if (metadata.has(key)) throw invalid(file, `the metadata key ${quote(key)} appears twice`);
      const wanted = vocabulary || !key.startsWith('tokenizer.') ? 'all' : 'no-arrays';
      metadata.set(key, readValue(cursor, cursor.u32(`the type of ${quote(key)}`), key, 0, wanted));
    }
    const infos: { name: string; shape: number[]; type: number; offset: number }[] = [];
    const names = new Set<string>();
    for (let i = 0; i < tensorCount; i++) {
      const name = cursor.string('a tensor name');
      if (names.has(name)) throw invalid(file, `the tensor ${quote(name)} appears twice`);
      names.add(name);
      const dimensions = cursor.u32(`the number of dimensions of ${quote(name)}`);
      if (dimensions > maxDimensions) {
        throw invalid(
          file,
          `tensor ${quote(name)} has ${dimensions} dimensions; ${maxDimensions} is the most`,
        );
      }
      const shape: number[] = [];
      for (let d = 0; d < dimensions; d++) shape.unshift(cursor.u64(`a dimension of ${quote(name)}`));
      const type = cursor.u32(`the type of ${quote(name)}`);
      infos.push({ name, shape, type, offset: cursor.u64(`the offset of ${quote(name)}`) });
    }
    const alignment = metadata.get('general.alignment') ?? 32;
    if (typeof alignment !== 'number' || alignment < 1 || alignment > 1 << 16 || alignment % 1 !== 0) {
      throw invalid(
        file,
        `general.alignment is ${String(alignment)}; a small power of two is expected, for example 32`,
      );
    }
    const dataStart = Math.ceil(cursor.position / alignment) * alignment;
    const tensors = infos.map((info) => ({ ...info, offset: dataStart + info.offset }));
    const identity = `${status.dev}:${status.ino}:${status.size}:${status.mtimeNs}`;
    return { file, fileBytes: size, metadata, tensors, identity };
  } finally {
    closeSync(descriptor);
  }
}
