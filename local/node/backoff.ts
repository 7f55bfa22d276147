/** How long a crashing container waits before it starts again, as kubelets count it. Pure: times are given. */

export class RestartBackoff {
  readonly #baseMs: number;
  #delayMs = 0;

  /** The first restart is at once, the next after the base, doubling up to thirty times the base. */
  constructor(baseMs: number) {
    this.#baseMs = baseMs;
  }

  /** How long to wait after an exit, for a container that had run so long. */
  next(ranMs: number): number {
    if (ranMs > this.#baseMs * 60) this.#delayMs = 0;
    const delayMs = this.#delayMs;
    this.#delayMs = delayMs === 0 ? this.#baseMs : Math.min(delayMs * 2, this.#baseMs * 30);
    return delayMs;
  }
}

/** "10s", "2m40s", "5m0s": durations as Go prints them. */
export function goDuration(ms: number): string {
  if (ms < 1000) return `${ms}ms`;
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${seconds}s` : `${Math.floor(seconds / 60)}m${seconds % 60}s`;
}
