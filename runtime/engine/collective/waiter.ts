/**
 * Waits for a word of shared memory to change: spins while waits are short, sleeps as soon as they are not.
 *
 * A sleep costs tens of microseconds, more than a small all-reduce; a spin costs a core that another program, or the
 * very rank that is waited for, may need. So the spins allowed follow what waits have cost lately: they grow when the
 * change came late or just after the spin ended, and shrink when spinning was in vain.
 */

/** `spin` of wasm/reduce.ts. */
export type Spin = (address: number, old: number, limit: number) => number;

const leastSpins = 64;
const mostSpins = 200_000;
const firstSpins = 20_000;
/** A sleep shorter than this would have been better spent spinning. */
const shortSleepMs = 0.15;

export class Waiter {
  readonly #words: Int32Array;
  readonly #spin: Spin | undefined;
  #spins = firstSpins;

  /** `words` starts at address 0 of the memory that `spin` reads. Without `spin` every wait sleeps. */
  constructor(words: Int32Array, spin: Spin | undefined) {
    this.#words = words;
    this.#spin = spin;
  }

  /** Returns when `words[index]` differs from `old`; calls `check`, which may throw, at least every `checkMs`. */
  wait(index: number, old: number, check: () => void, checkMs: number): void {
    if (this.#spin === undefined) {
      this.#sleep(index, old, check, checkMs);
      return;
    }
    const took = this.#spin(index * 4, old, this.#spins);
    if (took >= 0) {
      if (took * 2 > this.#spins) this.#spins = Math.min(mostSpins, this.#spins * 2);
      return;
    }
    const start = performance.now();
    this.#sleep(index, old, check, checkMs);
    this.#spins =
      performance.now() - start < shortSleepMs
        ? Math.min(mostSpins, this.#spins * 2)
        : Math.max(leastSpins, this.#spins >> 1);
  }

  #sleep(index: number, old: number, check: () => void, checkMs: number): void {
    while (Atomics.load(this.#words, index) === old) {
      Atomics.wait(this.#words, index, old, checkMs);
      if (Atomics.load(this.#words, index) === old) check();
    }
  }
}
