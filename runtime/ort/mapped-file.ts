/**
 * A file's bytes as memory, read by the system when they are touched and shared by all processes that map it. A path
 * enters, addresses leave. Where the system has no mmap, the file is read into memory. Must not know what it holds.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import koffi from 'koffi';
import { SluiceError } from '../errors.ts';
import { addressOf, libc, type Pointer } from './library.ts';

interface MemoryCalls {
  mmap(address: null, bytes: number, protection: number, flags: number, fd: number, offset: number): Pointer;
  munmap(address: Pointer, bytes: number): number;
  madvise(address: Pointer, bytes: number, advice: number): number;
}

const calls: MemoryCalls | undefined =
  process.platform === 'win32'
    ? undefined
    : {
        // As an integer: MAP_FAILED is -1.
        mmap: libc.func('mmap', 'int64_t', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t']),
        munmap: libc.func('munmap', 'int', ['void *', 'size_t']),
        madvise: libc.func('madvise', 'int', ['void *', 'size_t', 'int']),
      };

const protectionRead = 1;
const mapPrivate = 2;
const adviceDontNeed = 4;

export class MappedFile implements Disposable {
  readonly path: string;
  readonly bytes: number;
  /** Address of the file's first byte; 0n once closed, or when the file is empty. */
  pointer: Pointer;
  /** The bytes themselves where they cannot be mapped. */
  readonly #memory: Uint8Array | undefined;

  private constructor(path: string, bytes: number, pointer: Pointer, memory?: Uint8Array) {
    this.path = path;
    this.bytes = bytes;
    this.pointer = pointer;
    this.#memory = memory;
  }

  /** The file must keep its size while it is mapped. Throws SluiceError `checkpoint_invalid`. */
  static open(path: string): MappedFile {
    let fd: number | undefined;
    try {
      fd = openSync(path, 'r');
      const bytes = fstatSync(fd).size;
      if (bytes === 0) return new MappedFile(path, 0, 0n);
      if (calls === undefined) {
        const memory = new Uint8Array(bytes);
        for (let done = 0; done < bytes; )
          done += readSync(fd, memory, done, Math.min(bytes - done, 2 ** 30), done);
        return new MappedFile(path, bytes, addressOf(memory), memory);
      }
      const pointer = BigInt(calls.mmap(null, bytes, protectionRead, mapPrivate, fd, 0));
      if (pointer === -1n) throw new Error(`mmap of ${bytes} bytes failed (errno ${koffi.errno()})`);
      return new MappedFile(path, bytes, pointer);
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
    if (calls === undefined || this.pointer === 0n) return;
    calls.madvise(this.pointer, this.bytes, adviceDontNeed);
  }

  close(): void {
    if (this.pointer !== 0n && calls !== undefined && this.#memory === undefined) {
      calls.munmap(this.pointer, this.bytes);
    }
    this.pointer = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
