/**
 * Memory in large pages, for what is read from one end to the other again and again: with small ones a good part of the
 * time goes into looking up where they are. Bytes enter, addresses leave. Must not know what they hold.
 */
import { readFileSync } from 'node:fs';
import type { Pointer } from './library.ts';
import { mapMemory, memoryCalls } from './system-memory.ts';

const pageBytes = 2n * 2n ** 20n;
const lineBytes = 64n;
const adviceHugePage = 14;

/** Whether the system gives large pages to those who ask. */
function offered(): boolean {
  if (process.platform !== 'linux') return false;
  try {
    return !readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8').includes('[never]');
  } catch {
    return false;
  }
}

export class LargePages implements Disposable {
  readonly #start: Pointer;
  readonly #bytes: number;
  #free: Pointer;
  #open = true;

  private constructor(start: Pointer, bytes: number) {
    this.#start = start;
    this.#bytes = bytes;
    this.#free = (start + pageBytes - 1n) & ~(pageBytes - 1n);
  }

  /** Room for pieces of these sizes; undefined where there are no large pages, or no room. */
  static reserve(sizes: readonly number[]): LargePages | undefined {
    const used = sizes.reduce((sum, size) => sum + size + Number(lineBytes), 0);
    if (used < Number(pageBytes) || !offered()) return undefined;
    const bytes = used + 2 * Number(pageBytes);
    const start = mapMemory(bytes);
    if (start === undefined) return undefined;
    memoryCalls!.madvise(start, bytes, adviceHugePage);
    return new LargePages(start, bytes);
  }

  /** The next piece. */
  take(bytes: number): Pointer {
    const place = this.#free;
    this.#free = (place + BigInt(bytes) + lineBytes - 1n) & ~(lineBytes - 1n);
    return place;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    memoryCalls!.munmap(this.#start, this.#bytes);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
