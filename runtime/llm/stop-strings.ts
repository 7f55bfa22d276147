/**
 * Watches a stream of text for strings that end it. Enters: text in any pieces; leaves: the text that is certainly
 * before any match, the same however the stream was cut into pieces.
 */

export class StopStrings {
  readonly #stops: readonly string[];
  readonly #longest: number;
  /** The end of the text so far that may be the beginning of a stop string. */
  #held = '';

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop.length > 0);
    this.#longest = Math.max(0, ...this.#stops.map((stop) => stop.length));
  }

  /** `stop`: the string that matched; nothing may be pushed after it. */
  push(piece: string): { text: string; stop: string | null } {
    const text = this.#held + piece;
    const match = this.#firstMatch(text);
    if (match !== undefined) {
      this.#held = '';
      return { text: text.slice(0, match.start), stop: match.stop };
    }
    const kept = this.#possibleStart(text);
    this.#held = text.slice(kept);
    return { text: text.slice(0, kept), stop: null };
  }

  /** What was held back, when the stream ends without a match. */
  flush(): string {
    const text = this.#held;
    this.#held = '';
    return text;
  }

  /** The match that is complete first, and of those the longest: what a reader one character at a time would find. */
  #firstMatch(text: string): { start: number; stop: string } | undefined {
    let first: { start: number; stop: string } | undefined;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      if (start < 0) continue;
      const end = start + stop.length;
      const known = first === undefined ? Number.POSITIVE_INFINITY : first.start + first.stop.length;
      if (end < known || (end === known && start < first!.start)) first = { start, stop };
    }
    return first;
  }

  #possibleStart(text: string): number {
    for (let start = Math.max(0, text.length - this.#longest + 1); start < text.length; start++) {
      const end = text.slice(start);
      if (this.#stops.some((stop) => stop.startsWith(end))) return start;
    }
    return text.length;
  }
}
