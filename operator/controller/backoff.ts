/** Growing delays between repetitions, and a bucket of tokens that bounds their rate. Must not know what is repeated. */
import type { Clock, Random } from './clock.ts';

export interface BackoffOptions {
  readonly baseMs: number;
  readonly maxMs: number;
}

/**
 * The delay before repetition number `attempt` (0 is the first): doubling from the base up to the maximum, and of that
 * a random part between half and all, so that many that failed together do not come back together.
 */
export function backoffMs(attempt: number, options: BackoffOptions, random: Random): number {
  // 2 ** 40 is past every maximum, and short of infinity.
  const full = Math.min(options.baseMs * 2 ** Math.min(attempt, 40), options.maxMs);
  return full * (0.5 + random() / 2);
}

/** A bucket of `burst` tokens, refilled at `perSecond`. A token may be taken on credit: the delay says for how long. */
export class TokenBucket {
  readonly #perSecond: number;
  readonly #burst: number;
  readonly #clock: Clock;
  #tokens: number;
  #filledAt: number;

  constructor(options: { perSecond: number; burst: number }, clock: Clock) {
    this.#perSecond = options.perSecond;
    this.#burst = options.burst;
    this.#clock = clock;
    this.#tokens = options.burst;
    this.#filledAt = clock.monotonicMs();
  }

  /** Takes a token; gives the milliseconds to wait until it is there (0 when it was). */
  reserve(): number {
    this.#fill();
    this.#tokens -= 1;
    return this.#tokens >= 0 ? 0 : (-this.#tokens / this.#perSecond) * 1000;
  }

  /** Takes a token only when there is one. */
  tryTake(): boolean {
    this.#fill();
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  #fill(): void {
    const now = this.#clock.monotonicMs();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#filledAt) / 1000) * this.#perSecond);
    this.#filledAt = now;
  }
}
