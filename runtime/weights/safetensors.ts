/**
 * Reads one safetensors file: a path enters, named tensors leave whose bytes are read when asked. Only the header is
 * held in memory. Must not know which tensors a model needs.
 * Format: 8 bytes header length (little-endian), a JSON object, the tensors' bytes without holes.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { type DType, dtypeBytes } from '../dtype.ts';
import { SluiceError } from '../errors.ts';
import type { DenseTensor } from './checkpoint.ts';
import { duplicateKey, oneLine } from './json.ts';

/** Some hundred times what published checkpoints have; parsing stays within a second and little memory. */
const maxHeaderBytes = 16_000_000;

const dtypes: Readonly<Record<string, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  I64: 'int64',
  I32: 'int32',
  I16: 'int16',
  I8: 'int8',
  U8: 'uint8',
  BOOL: 'bool',
};

export interface SafetensorsFile {
  readonly file: string;
  readonly tensors: ReadonlyMap<string, DenseTensor>;
  /** Bytes of all tensors. */
  readonly dataBytes: number;
  /** Tells this content from any other in the same place: size, time and place of the file. */
  readonly identity: string;
}

/** Throws SluiceError `checkpoint_invalid` or `checkpoint_unsupported`, naming the file. */
export function readSafetensors(file: string): SafetensorsFile {
  const { header, size, identity } = readHeader(file);
  const dataStart = 8 + header.length;
  const entries = parseHeader(file, header);
  const tensors = new Map<string, DenseTensor>();
  const spans: { name: string; begin: number; end: number }[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    if (name === '__metadata__') continue;
    const { dtype, shape, begin, end } = checkEntry(file, name, entry);
    spans.push({ name, begin, end });
    const location = { file, offset: dataStart + begin, bytes: end - begin };
    tensors.set(name, {
      kind: 'dense',
      dtype,
      shape,
      location,
      read: () => readRange(file, location.offset, location.bytes),
    });
  }
  checkSpans(file, spans, size - dataStart);
  return { file, tensors, dataBytes: size - dataStart, identity };
}

/** Reads bytes of a file anew; the caller owns them. Throws `checkpoint_invalid` when they are not there. */
export function readRange(file: string, offset: number, bytes: number): Uint8Array {
  const fd = openFile(file);
  try {
    const target = new Uint8Array(bytes);
    for (let done = 0; done < bytes; ) {
      const read = readSync(fd, target, done, Math.min(bytes - done, 2 ** 30), offset + done);
      if (read === 0)
        throw invalid(file, `ends ${bytes - done} bytes too early: it changed while being read`);
      done += read;
    }
    return target;
  } finally {
    closeSync(fd);
  }
}

function invalid(file: string, message: string): SluiceError {
  return new SluiceError('checkpoint_invalid', `${file} ${message}`);
}

function openFile(file: string): number {
  try {
    return openSync(file, 'r');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new SluiceError(
      'checkpoint_invalid',
      code === 'ENOENT' ? `${file} is missing` : `${file} cannot be read: ${message}`,
      { cause },
    );
  }
}

function readHeader(file: string): { header: Uint8Array; size: number; identity: string } {
  const fd = openFile(file);
  try {
    const stat = fstatSync(fd, { bigint: true });
    const size = Number(stat.size);
    if (!stat.isFile()) throw invalid(file, 'is not a file');
    const prefix = new Uint8Array(8);
    if (size < 8 || readSync(fd, prefix, 0, 8, 0) < 8) {
      throw invalid(file, `is truncated: ${size} bytes, a safetensors file has at least 8`);
    }
    const length = new DataView(prefix.buffer).getBigUint64(0, true);
    if (length > BigInt(maxHeaderBytes)) {
      throw invalid(
        file,
        `is no safetensors file: its header would be ${length} bytes, at most ${maxHeaderBytes} are allowed`,
      );
    }
    const bytes = Number(length);
    if (8 + bytes > size) {
      throw invalid(file, `is truncated: its header needs ${8 + bytes} bytes, the file has ${size}`);
    }
    const header = new Uint8Array(bytes);
    if (readSync(fd, header, 0, bytes, 8) < bytes) throw invalid(file, 'is truncated within its header');
    return { header, size, identity: `${stat.dev}:${stat.ino}:${stat.size}:${stat.mtimeNs}` };
  } finally {
    closeSync(fd);
  }
}

function parseHeader(file: string, header: Uint8Array): Readonly<Record<string, unknown>> {
  let text: string;
  let parsed: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(header);
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${file} has a header that is not JSON: ${oneLine((cause as Error).message)}`,
      {
        cause,
      },
    );
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw invalid(file, 'has a header that is not a JSON object');
  }
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) throw invalid(file, `names the tensor "${duplicate}" twice`);
  return parsed as Record<string, unknown>;
}

function checkEntry(
  file: string,
  name: string,
  entry: unknown,
): { dtype: DType; shape: number[]; begin: number; end: number } {
  const { dtype: code, shape, data_offsets: offsets } = (entry ?? {}) as Record<string, unknown>;
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  if (typeof code !== 'string' || !Array.isArray(shape) || !Array.isArray(offsets)) {
    throw invalid(file, `describes the tensor "${name}" without dtype, shape and data_offsets`);
  }
  if (!shape.every(isCount) || shape.length > 8) {
    throw invalid(file, `gives the tensor "${name}" the shape ${JSON.stringify(shape).slice(0, 100)}`);
  }
  const [begin, end] = offsets as unknown[];
  if (offsets.length !== 2 || !isCount(begin) || !isCount(end) || begin > end) {
    throw invalid(
      file,
      `gives the tensor "${name}" the data_offsets ${JSON.stringify(offsets).slice(0, 100)}; they are [begin, end]`,
    );
  }
  const dtype = Object.hasOwn(dtypes, code) ? dtypes[code] : undefined;
  if (dtype === undefined) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${file}: the tensor "${name}" has dtype ${code.slice(0, 40)}; known are ${Object.keys(dtypes).join(', ')}`,
    );
  }
  const bytes = shape.reduce((product, size) => product * size, dtypeBytes[dtype]);
  if (bytes !== end - begin) {
    throw invalid(
      file,
      `gives the tensor "${name}" ${end - begin} bytes; ${code} [${shape.join(', ')}] takes ${bytes}`,
    );
  }
  return { dtype, shape, begin, end };
}

/** The tensors' spans must tile the data: anything else is a truncated file, an overlap or a hole. */
function checkSpans(
  file: string,
  spans: { name: string; begin: number; end: number }[],
  dataBytes: number,
): void {
  const last = spans.reduce((end, span) => Math.max(end, span.end), 0);
  if (last > dataBytes) {
    const { name, end } = spans.find((span) => span.end > dataBytes)!;
    throw invalid(
      file,
      `is truncated: the tensor "${name}" ends at byte ${end} of the data, the file has ${dataBytes}`,
    );
  }
  spans.sort((left, right) => left.begin - right.begin || left.end - right.end);
  let end = 0;
  for (const span of spans) {
    if (span.begin < end)
      throw invalid(file, `has overlapping tensors: "${span.name}" begins at ${span.begin}, before ${end}`);
    if (span.begin > end)
      throw invalid(file, `has a hole of ${span.begin - end} bytes before the tensor "${span.name}"`);
    end = span.end;
  }
  if (end < dataBytes) throw invalid(file, `has ${dataBytes - end} bytes after its last tensor`);
}
