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
  /** Which word holds the spins that are allowed. */
  readonly #spins: number;

  /** `words` starts at address 0 of the memory that `spin` reads. Without `spin` every wait sleeps. */
  constructor(words: Int32Array, spin: Spin | undefined, spins: number) {
    this.#words = words;
    this.#spin = spin;
    this.#spins = spins;
    words[spins] = spin === undefined ? 0 : firstSpins;
  }

  /** Returns when `words[index]` differs from `old`; calls `check`, which may throw, at least every `checkMs`. */
  wait(index: number, old: number, check: () => void, checkMs: number): void {
    const spins = this.#words[this.#spins]!;
    const took = this.#spin === undefined ? -1 : this.#spin(index * 4, old, spins);
    if (took < 0) this.sleep(index, old, check, checkMs);
    else if (took * 2 > spins) this.#allow(spins * 2);
  }

  /** As `wait`, when spinning was in vain. */
  sleep(index: number, old: number, check: () => void, checkMs: number): void {
    const start = performance.now();
    while (Atomics.load(this.#words, index) === old) {
      Atomics.wait(this.#words, index, old, checkMs);
      if (Atomics.load(this.#words, index) === old) check();
    }
    const spins = this.#words[this.#spins]!;
    this.#allow(performance.now() - start < shortSleepMs ? spins * 2 : spins >> 1);
  }

  #allow(spins: number): void {
    if (this.#spin === undefined) return;
    this.#words[this.#spins] = Math.max(leastSpins, Math.min(mostSpins, spins));
  }
}
