/**
 * Ends the loading of a thread: what it left in the thread's JavaScript heap is collected now. V8 waits for idle time,
 * which a thread that loads and then computes or sleeps never reports, and keeps the room that garbage had.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { trimMemory } from '../ort/trim-memory.ts';

type Collect = (options: { readonly type: 'major'; readonly flavor: 'last-resort' }) => void;

/** Collects all garbage of the calling thread, twice 20 ms or so, and gives the pages back. */
export function collectGarbage(): void {
  // The function is found while the flag is set; other threads may set it at the same time, to no effect.
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('globalThis.gc') as Collect | undefined;
  setFlagsFromString('--no-expose-gc');
  collect?.({ type: 'major', flavor: 'last-resort' });
  trimMemory();
}
