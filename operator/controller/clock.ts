/**
 * Time as everything in this room takes it: passed in, so that tests decide when it passes. Must not know what the time
 * is used for.
 */
import { uptime } from 'node:os';

export interface Clock {
  /** The wall clock, for what people and other machines read. */
  now(): Date;
  /** Milliseconds since some moment; never goes back, and goes on while this process or the machine is stopped. */
  monotonicMs(): number;
  /** Calls back once after so many milliseconds, or later; the result cancels. Keeps the process alive. */
  after(delayMs: number, callback: () => void): () => void;
}

/** A number in [0, 1). */
export type Random = () => number;

/** setTimeout takes a longer delay for no delay at all. */
const longestTimeoutMs = 2 ** 31 - 1;
const uptimeAtStart = uptime();
const performanceAtStart = performance.now();

export const systemClock: Clock = {
  now: () => new Date(),
  // performance.now() (CLOCK_MONOTONIC) goes on while the process is stopped by a signal, but not while the machine is
  // suspended; uptime() (CLOCK_BOOTTIME) counts both, in steps of 10 ms. The larger of two clocks that never go back
  // never goes back, and errs towards "more time has passed".
  monotonicMs: () => Math.max(performance.now() - performanceAtStart, (uptime() - uptimeAtStart) * 1000),
  after(delayMs, callback) {
    const timer = setTimeout(callback, Math.min(Math.max(delayMs, 0), longestTimeoutMs));
    return () => clearTimeout(timer);
  },
};

/** Resolves after the delay, or at once when the signal aborts: the caller looks at the signal. */
export function sleep(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const finish = () => {
      cancel();
      signal.removeEventListener('abort', finish);
      resolve();
    };
    const cancel = clock.after(delayMs, finish);
    signal.addEventListener('abort', finish, { once: true });
  });
}
