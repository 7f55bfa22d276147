/** What loading leaves behind in a process, and the way to give it back to the system. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { libc, libraryPath, type Pointer } from './library.ts';
import { memoryCalls } from './system-memory.ts';

/** glibc keeps what is freed for later; musl, macOS and Windows have no such call. */
const mallocTrim = ((): ((keep: number) => unknown) | undefined => {
  if (process.platform !== 'linux') return undefined;
  try {
    return libc.func('malloc_trim', 'int', ['size_t']) as unknown as (keep: number) => unknown;
  } catch {
    return undefined;
  }
})();

/**
 * Gives what loading needed back to the system: memory that was freed, and the pages of the library's and of Node's code,
 * most of which nothing else runs. Those that are run come back from their file.
 */
export function trimMemory(): void {
  mallocTrim?.(0);
  if (process.platform !== 'linux') return;
  for (const { start, bytes } of mappedCode([libraryPath(), process.execPath])) {
    memoryCalls!.madvise(start, bytes, adviceDontNeed);
  }
}

const adviceDontNeed = 4;

/** Where files' code is mapped. Only code, which nothing writes to: data would be lost. */
function mappedCode(files: readonly string[]): { readonly start: Pointer; readonly bytes: number }[] {
  const names = files.map((file) => `/${path.basename(file)}`);
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes(' r-xp ') && names.some((name) => line.endsWith(name)))
    .map((line) => {
      const [start, end] = line
        .split(' ', 1)[0]!
        .split('-')
        .map((address) => BigInt(`0x${address}`)) as [Pointer, Pointer];
      return { start, bytes: Number(end - start) };
    });
}
