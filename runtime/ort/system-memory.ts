/**
 * The system's calls for memory, declared once: a thread that is being ended can call what is declared, but cannot declare
 * any more.
 */
import koffi from 'koffi';
import { SluiceError } from '../errors.ts';
import { libc, type Pointer } from './library.ts';

interface MemoryCalls {
  /** As an integer: MAP_FAILED is -1. */
  mmap(address: null, bytes: number, protection: number, flags: number, fd: number, offset: number): number;
  munmap(address: Pointer, bytes: number): number;
  madvise(address: Pointer, bytes: number, advice: number): number;
  mprotect(address: Pointer, bytes: number, protection: number): number;
}

/** Undefined where the system has none of them. */
export const memoryCalls: MemoryCalls | undefined =
  process.platform === 'win32'
    ? undefined
    : {
        mmap: libc.func('mmap', 'int64_t', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t']),
        munmap: libc.func('munmap', 'int', ['void *', 'size_t']),
        madvise: libc.func('madvise', 'int', ['void *', 'size_t', 'int']),
        mprotect: libc.func('mprotect', 'int', ['void *', 'size_t', 'int']),
      };

export const protections = { read: 1, write: 2, execute: 4 } as const;
const mapPrivateAnonymous = 0x22;

/** Memory of this process alone, readable and writable; undefined where the system gives none. Linux's flags. */
export function mapMemory(bytes: number): Pointer | undefined {
  const { read, write } = protections;
  const address = BigInt(memoryCalls!.mmap(null, bytes, read | write, mapPrivateAnonymous, -1, 0));
  return address === -1n ? undefined : address;
}

/** What the last call said it failed for. */
export function memoryError(call: string, bytes: number): SluiceError {
  return new SluiceError('engine_failed', `${call} of ${bytes} bytes failed (errno ${koffi.errno()})`);
}
