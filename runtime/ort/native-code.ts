/**
 * Machine code that this process made, in memory from which it can be run: bytes enter, a function leaves. Memory is
 * never writable and executable at once. Must not know what the code computes.
 */
import koffi from 'koffi';
import { SluiceError } from '../errors.ts';
import { copyMemory, libc, type Pointer, type PointerLike } from './library.ts';

const protections = { read: 1, write: 2, execute: 4 } as const;
const mapPrivateAnonymous = 0x22;

export type NativeFunction = (...addresses: PointerLike[]) => unknown;

/** A function that takes `parameters` addresses and returns nothing, as `placeCode` places it. */
export function nativeFunction(code: Uint8Array, parameters: number): NativeFunction {
  return functionAt(placeCode(code), parameters);
}

/** The function at an address. */
export function functionAt(address: Pointer, parameters: number): NativeFunction {
  const types = Array.from({ length: parameters }, () => 'void *');
  return koffi.decode(address, koffi.proto('void', types)) as NativeFunction;
}

/**
 * Where the code can be called. It stays there as long as the process lives: kernels are few and small. Throws
 * SluiceError `engine_failed` where the system forbids such memory.
 */
export function placeCode(code: Uint8Array): Pointer {
  const map = libc.func('mmap', 'int64_t', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t']);
  const protect = libc.func('mprotect', 'int', ['void *', 'size_t', 'int']);
  const address = BigInt(
    map(null, code.length, protections.read | protections.write, mapPrivateAnonymous, -1, 0) as number,
  );
  if (address === -1n) throw forbidden('mmap', code.length);
  copyMemory(address, code, code.length);
  if (protect(address, code.length, protections.read | protections.execute) !== 0) {
    throw forbidden('mprotect', code.length);
  }
  return address;
}

function forbidden(call: string, bytes: number): SluiceError {
  return new SluiceError(
    'engine_failed',
    `${call} of ${bytes} bytes of executable memory failed (errno ${koffi.errno()})`,
  );
}
