/** A golden checkpoint whose ranks other than 0 fail when and how the test says. Ranks open it as a module. */
import { isMainThread } from 'node:worker_threads';
import type { Checkpoint } from '../../../runtime/weights/checkpoint.ts';
import { openCheckpoint as open } from '../../../runtime/weights/open.ts';

export interface Fault {
  readonly path: string;
  readonly when: 'loading' | 'stepping' | 'idling';
  readonly how: 'throws' | 'dies';
  /** int32: 1 once the fault may happen. */
  readonly armed: SharedArrayBuffer;
}

export function openCheckpoint({ path, when, how, armed }: Fault): Checkpoint {
  const words = new Int32Array(armed);
  const fault = (): void => {
    if (isMainThread || Atomics.load(words, 0) === 0) return;
    if (how === 'dies') process.exit(3);
    throw new Error('the cosine is broken');
  };
  if (when === 'loading') fault();
  else if (when === 'idling') {
    // A follower that waits for a broadcast sleeps in Atomics.wait.
    const { wait } = Atomics;
    Atomics.wait = ((array: Int32Array, index: number, value: number, timeout?: number) => {
      if (timeout !== Number.POSITIVE_INFINITY || isMainThread) return wait(array, index, value, timeout);
      const woken = wait(array, index, value, 50);
      fault();
      return woken;
    }) as typeof Atomics.wait;
  } else {
    // Every step asks for cosines.
    const { cos } = Math;
    Math.cos = (x) => {
      fault();
      return cos(x);
    };
  }
  return open(path);
}
