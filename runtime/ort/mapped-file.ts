/**
 * A file's bytes as memory, read by the system when they are touched and shared by all processes that map it. A path
 * enters, addresses leave. Where the system has no mmap, the file is read into memory. Must not know what it holds.
 */
import assert from 'node:assert';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import koffi from 'koffi';
import { SluiceError } from '../errors.ts';
import { addressOf, copyMemory, type Pointer } from './library.ts';
import { memoryCalls, protections } from './system-memory.ts';

const mapPrivate = 2;
const adviceDontNeed = 4;

interface Mapping {
  /** Tells the file and its content. */
  readonly key: string;
  readonly fd: number;
  readonly bytes: number;
  readonly pointer: Pointer;
  /** The bytes themselves where they cannot be mapped. */
  readonly memory?: Uint8Array;
  users: number;
}

/** Of this thread: what is mapped twice counts twice in what a process is said to hold. */
const mappings = new Map<string, Mapping>();

function map(fd: number, bytes: number): Pick<Mapping, 'pointer' | 'memory'> {
  if (memoryCalls === undefined) {
    const memory = new Uint8Array(bytes);
    for (let done = 0; done < bytes; )
      done += readSync(fd, memory, done, Math.min(bytes - done, 2 ** 30), done);
    return { pointer: addressOf(memory), memory };
  }
  const pointer = BigInt(memoryCalls.mmap(null, bytes, protections.read, mapPrivate, fd, 0));
  if (pointer === -1n) throw new Error(`mmap of ${bytes} bytes failed (errno ${koffi.errno()})`);
  return { pointer };
}

export class MappedFile implements Disposable {
  readonly path: string;
  readonly bytes: number;
  /** Address of the file's first byte; 0n once closed, or when the file is empty. */
  pointer: Pointer;
  readonly #mapping: Mapping | undefined;

  private constructor(path: string, mapping?: Mapping) {
    this.path = path;
    this.bytes = mapping?.bytes ?? 0;
    this.pointer = mapping?.pointer ?? 0n;
    this.#mapping = mapping;
    if (mapping !== undefined) mapping.users++;
  }

  /** The file must keep its size while it is mapped. Throws SluiceError `checkpoint_invalid`. */
  static open(path: string): MappedFile {
    let fd: number | undefined;
    try {
      fd = openSync(path, 'r');
      const { dev, ino, size: bytes, mtimeNs } = fstatSync(fd, { bigint: true });
      if (bytes === 0n) return new MappedFile(path);
      const key = [dev, ino, bytes, mtimeNs].join();
      let mapping = mappings.get(key);
      if (mapping === undefined) {
        mapping = { key, fd, users: 0, bytes: Number(bytes), ...map(fd, Number(bytes)) };
        mappings.set(key, mapping);
        fd = undefined;
      }
      return new MappedFile(path, mapping);
    } catch (cause) {
      throw new SluiceError('checkpoint_invalid', `${path} cannot be mapped: ${(cause as Error).message}`, {
        cause,
      });
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  /** Lets the system take the pages back; touching them reads the file again. */
  dropPages(): void {
    if (memoryCalls === undefined || this.pointer === 0n) return;
    memoryCalls.madvise(this.pointer, this.bytes, adviceDontNeed);
  }

  close(): void {
    if (this.pointer === 0n) return;
    this.pointer = 0n;
    const mapping = this.#mapping!;
    if (--mapping.users > 0) return;
    mappings.delete(mapping.key);
    closeSync(mapping.fd);
    memoryCalls?.munmap(mapping.pointer, mapping.bytes);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Fills `to` with the bytes from `offset` on. */
export type MemoryReader = (offset: number, to: Uint8Array) => void;

/**
 * Reads of memory at an address. What lies in a mapped file is read from the file: few rows of a large table, here and
 * there, would keep most of it resident, once for each mapping. Valid as long as the memory.
 */
export function memoryReader(address: Pointer): MemoryReader {
  for (const { fd, pointer, bytes, memory } of mappings.values()) {
    if (memory !== undefined || address < pointer || address >= pointer + BigInt(bytes)) continue;
    const start = Number(address - pointer);
    return (offset, to) => {
      const read = readSync(fd, to, 0, to.length, start + offset);
      assert.equal(read, to.length, 'a mapped file keeps its size');
    };
  }
  return (offset, to) => void copyMemory(to, address + BigInt(offset), to.length);
}
