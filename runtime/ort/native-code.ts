/**
 * Machine code that this process made, in memory from which it can be run: bytes enter, a function leaves. Memory is
 * never writable and executable at once. Must not know what the code computes.
 */
import koffi from 'koffi';
import { copyMemory, type Pointer, type PointerLike } from './library.ts';
import { mapMemory, memoryCalls, memoryError, protections } from './system-memory.ts';

type NativeFunction = (...addresses: PointerLike[]) => unknown;

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
  const address = mapMemory(code.length);
  if (address === undefined) throw memoryError('mmap', code.length);
  copyMemory(address, code, code.length);
  const { read, execute } = protections;
  if (memoryCalls!.mprotect(address, code.length, read | execute) !== 0) {
    throw memoryError('mprotect to executable memory', code.length);
  }
  return address;
}

/** Code that is placed once for each form that it is made for. */
export class PlacedCode {
  readonly #places = new Map<string, Pointer>();

  /** `name` is what `make` makes for the form, which is plain data. */
  once(name: string, form: object, make: () => Uint8Array): Pointer {
    const key = `${name} ${JSON.stringify(form)}`;
    const place = this.#places.get(key) ?? placeCode(make());
    this.#places.set(key, place);
    return place;
  }
}
