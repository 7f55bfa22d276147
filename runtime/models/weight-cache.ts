/**
 * Files of prepared weights, shared by ranks and processes. A key and the weights it stands for enter; places in a
 * file leave. A file is written under another name and renamed, so that it is whole or not there; two processes that
 * write the same key write the same bytes. Must not know what the weights mean.
 */
import assert from 'node:assert';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../errors.ts';

export interface WeightPlace {
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
}

export interface WeightCacheRequest {
  readonly folder: string;
  /** Hex; the same key always stands for the same bytes. */
  readonly key: string;
  /** In the order in which they lie in the file. */
  readonly weights: readonly {
    readonly name: string;
    readonly bytes: number;
    /** The bytes in pieces, which are the cache's to dispose of. */
    chunks(): Iterable<Uint8Array>;
  }[];
}

/** Where each weight begins, so that any type is aligned and no two share a cache line. */
const alignment = 64;

const suffix = '.weights';

/** A writer that has not grown its file for this long is gone. */
const abandonedMs = 60 * 60 * 1000;

/** Undefined when there is no whole file for the key. */
export function openWeightCache(request: WeightCacheRequest): ReadonlyMap<string, WeightPlace> | undefined {
  const { file, places, bytes } = layOut(request);
  try {
    if (statSync(file).size !== bytes) return undefined;
  } catch {
    return undefined;
  }
  return places;
}

/** Undefined, after a warning, when the folder cannot hold the file. */
export function writeWeightCache(
  request: WeightCacheRequest,
  warn: (message: string) => void,
  onProgress: (done: number, total: number) => void,
): ReadonlyMap<string, WeightPlace> | undefined {
  const { file, places, bytes } = layOut(request);
  let created = false;
  const temporary = `${file}.${process.pid}-${Math.random().toString(36).slice(2)}.tmp`;
  let fd: number | undefined;
  try {
    mkdirSync(request.folder, { recursive: true });
    removeAbandoned(request.folder);
    fd = openSync(temporary, 'wx');
    created = true;
    for (const weight of request.weights) {
      const place = places.get(weight.name)!;
      let end = place.offset;
      for (const chunk of weight.chunks()) {
        writeAt(fd, chunk, end);
        end += chunk.length;
        onProgress(end, bytes);
        // At once, not when the collector finds it: loading must not need much more memory than running.
        if (chunk.buffer instanceof ArrayBuffer) chunk.buffer.transfer(0);
      }
      assert.equal(end, place.offset + place.bytes, weight.name);
    }
    closeSync(fd);
    fd = undefined;
    renameSync(temporary, file);
    created = false;
    return places;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // A weight that cannot be read is not the folder's fault.
    if (error instanceof SluiceError || code === undefined) throw error;
    warn(`prepared weights cannot be written to ${request.folder} (${code}): they are kept in memory`);
    return undefined;
  } finally {
    if (fd !== undefined) closeSync(fd);
    if (created) rmSync(temporary, { force: true });
  }
}

function layOut({ folder, key, weights }: WeightCacheRequest): {
  readonly file: string;
  readonly places: ReadonlyMap<string, WeightPlace>;
  readonly bytes: number;
} {
  const file = path.join(folder, `${key}${suffix}`);
  let end = 0;
  const places = new Map<string, WeightPlace>();
  for (const { name, bytes } of weights) {
    const offset = Math.ceil(end / alignment) * alignment;
    places.set(name, { file, offset, bytes });
    end = offset + bytes;
  }
  return { file, places, bytes: end };
}

function writeAt(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; ) {
    const size = Math.min(bytes.length - done, 2 ** 30);
    done += writeSync(fd, bytes, done, size, offset + done);
  }
}

function removeAbandoned(folder: string): void {
  for (const name of readdirSync(folder)) {
    if (!name.includes(suffix) || !name.endsWith('.tmp')) continue;
    const file = path.join(folder, name);
    const stat = statSync(file, { throwIfNoEntry: false });
    if (stat !== undefined && Date.now() - stat.mtimeMs > abandonedMs) rmSync(file, { force: true });
  }
}
