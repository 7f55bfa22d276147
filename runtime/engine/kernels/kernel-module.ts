/**
 * Loads a compiled kernel (wasm/<name>.wasm) onto a shared memory. Modules are compiled once per thread.
 */
import { readFileSync } from 'node:fs';

const modules = new Map<string, WebAssembly.Module>();

/** The largest memory that a 32-bit address reaches, less one page so that sizes still fit 32 bits. */
export const maximumMemoryBytes = 65535 * 65536;

/** Bytes at the start of every memory that belong to the kernels themselves. */
export const reservedBytes = 65536;

/** The pages that the compiled kernels declare as their least. */
const leastPages = 16;

/** A shared memory of at least `bytes`. Pages that are never touched take no room. */
export function createMemory(bytes: number): WebAssembly.Memory {
  const pages = Math.max(leastPages, Math.ceil(bytes / 65536));
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

export function instantiateKernel<Exports>(name: string, memory: WebAssembly.Memory): Exports {
  let compiled = modules.get(name);
  if (compiled === undefined) {
    compiled = new WebAssembly.Module(readFileSync(new URL(`./wasm/${name}.wasm`, import.meta.url)));
    modules.set(name, compiled);
  }
  const instance = new WebAssembly.Instance(compiled, { env: { memory } });
  return instance.exports as Exports;
}
