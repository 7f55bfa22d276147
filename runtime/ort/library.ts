/**
 * The libonnxruntime that onnxruntime-node ships, loaded once for each thread and called by FFI. Arguments enter as
 * plain values, typed arrays or addresses (bigint); failed calls leave as SluiceError `engine_failed` with ORT's own
 * message. Must not know sessions or tensors.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import koffi, { type TypeObject } from 'koffi';
import { SluiceError } from '../errors.ts';
import {
  type ArgumentKind,
  type OrtFunctionName,
  ortApiVersion,
  ortFunctions,
  type ResultKind,
} from './api-table.ts';

/** An address in this process; 0n is null. */
export type Pointer = bigint;

/** What may stand for a pointer argument. A typed array must outlive ORT's use of it. */
export type PointerLike = Pointer | ArrayBufferView | null;

type Argument = PointerLike | string | number;
type NativeFunction = (...values: Argument[]) => unknown;

const libraryNames: Readonly<Record<string, string>> = {
  linux: 'libonnxruntime.so.1',
  darwin: 'libonnxruntime.1.dylib',
  win32: 'onnxruntime.dll',
};

export function libraryPath(): string {
  const manifest = createRequire(import.meta.url).resolve('onnxruntime-node/package.json');
  const folder = path.join(path.dirname(manifest), 'bin', 'napi-v6', process.platform, process.arch);
  const file = path.join(folder, libraryNames[process.platform] ?? 'libonnxruntime.so');
  if (!existsSync(file)) {
    throw new SluiceError(
      'device_unavailable',
      `ONNX Runtime has no library for ${process.platform} ${process.arch}: expected ${file}`,
    );
  }
  return file;
}

const argumentTypes: Readonly<Record<ArgumentKind, string>> = {
  pointer: 'void *',
  string: 'const char *',
  path: process.platform === 'win32' ? 'const char16_t *' : 'const char *',
  size: 'size_t',
  int: 'int',
};
// A status is nearly always null, and koffi gives null as null: comparing costs nothing.
const resultTypes: Readonly<Record<ResultKind, string>> = {
  status: 'void *',
  pointer: 'void *',
  string: 'const char *',
  void: 'void',
};

// Held for ever: koffi unloads a library when its handle is collected, whatever functions were decoded from it.
const library = koffi.load(libraryPath());

function loadTable(): {
  functions: Record<OrtFunctionName, NativeFunction>;
  addresses: Record<OrtFunctionName, Pointer>;
  version: string;
} {
  const base: unknown = library.func('void *OrtGetApiBase()')();
  const [getApi, getVersion] = koffi.decode(base, koffi.array('void *', 2)) as [Pointer, Pointer];
  const version = koffi.call(getVersion, koffi.proto('const char *', [])) as string;
  const api: unknown = koffi.call(getApi, koffi.proto('void *', ['uint32_t']), ortApiVersion);
  if (api === null) {
    throw new SluiceError(
      'device_unavailable',
      `ONNX Runtime ${version} does not offer version ${ortApiVersion} of its C API`,
    );
  }
  const last = Math.max(...Object.values(ortFunctions).map(([position]) => position));
  const table = koffi.decode(api, koffi.array('void *', last + 1)) as Pointer[];
  const functions = {} as Record<OrtFunctionName, NativeFunction>;
  const addresses = {} as Record<OrtFunctionName, Pointer>;
  for (const [name, [position, result, parameters]] of Object.entries(ortFunctions)) {
    const proto = koffi.proto(
      resultTypes[result],
      parameters.map((parameter) => argumentTypes[parameter]),
    );
    addresses[name as OrtFunctionName] = table[position]!;
    functions[name as OrtFunctionName] = koffi.decode(table[position], proto) as NativeFunction;
  }
  return { functions, addresses, version };
}

const { functions, addresses, version } = loadTable();

/** The functions as they are: for hot paths, whose callers check the status themselves. */
export const native: Readonly<Record<OrtFunctionName, NativeFunction>> = functions;

/** Where the functions are, for machine code that calls them. */
export const nativeAddresses: Readonly<Record<OrtFunctionName, Pointer>> = addresses;

/** The release of the library that is loaded, such as `1.30.0`. */
export const libraryVersion: string = version;

/** Throws what a status says, if it says anything, and releases it. */
export function check(status: unknown): void {
  if (status === null) return;
  const message = native.GetErrorMessage(status as Pointer) as string;
  native.ReleaseStatus(status as Pointer);
  throw new SluiceError('engine_failed', `ONNX Runtime: ${message}`);
}

/** Calls a function whose last argument receives a pointer, and returns that pointer. */
export function create(name: OrtFunctionName, ...values: Argument[]): Pointer {
  const out = new BigUint64Array(1);
  check(native[name](...values, out));
  return out[0]!;
}

/** The address of a typed array's memory: valid while the array is referenced and its buffer is not detached. */
export function addressOf(array: ArrayBufferView): Pointer {
  return koffi.address(array);
}

export const libc = koffi.load(process.platform === 'win32' ? 'msvcrt.dll' : null);

/** Copies `bytes` bytes; neither side may be detached, and the regions may not overlap. */
export const copyMemory = libc.func('memcpy', 'void *', ['void *', 'void *', 'size_t']) as unknown as (
  to: PointerLike,
  from: PointerLike,
  bytes: number,
) => unknown;

/** Reads a NUL-terminated UTF-8 string. */
export function readString(pointer: Pointer): string {
  return koffi.decode(pointer, 'char', -1) as string;
}

/** Makes a C function pointer of a callback; it lives as long as the thread. */
export function registerCallback(
  result: string,
  parameters: readonly string[],
  callback: (...values: never[]) => unknown,
): Pointer {
  const proto: TypeObject = koffi.proto(result, [...parameters]);
  return koffi.register(callback, koffi.pointer(proto));
}

let environment: Pointer | undefined;

/** ORT's environment: one for the process, counted by ORT; each thread holds it until it ends. */
export function ortEnvironment(): Pointer {
  // 4 is fatal: what fails is reported by its status, once.
  environment ??= create('CreateEnv', 4, 'sluice');
  return environment;
}

let cpuMemory: Pointer | undefined;

/** The description of plain host memory that tensors over caller memory need. */
export function cpuMemoryInfo(): Pointer {
  // 0 is OrtDeviceAllocator, 0 is OrtMemTypeDefault.
  cpuMemory ??= create('CreateCpuMemoryInfo', 0, 0);
  return cpuMemory;
}

/** NUL-terminated UTF-8 strings and the array of their addresses, as `const char *const *` wants them. */
export class NameTable {
  readonly names: readonly string[];
  readonly addresses: BigUint64Array;
  /** Keeps the strings' memory alive. */
  readonly #strings: readonly Uint8Array[];

  constructor(names: readonly string[]) {
    this.names = [...names];
    this.#strings = names.map((name) => new TextEncoder().encode(`${name}\0`));
    this.addresses = BigUint64Array.from(this.#strings, addressOf);
  }
}
