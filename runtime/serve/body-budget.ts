/**
 * How much memory bodies may take from their first byte until their prompts have been read: a thousand clients that send
 * long ones at once must not end the process. Whoever comes beyond is told to come again. Must not know HTTP.
 */
import { SluiceError } from '../errors.ts';

export class BodyBudget {
  readonly #mostBytes: number;
  #bytes = 0;

  constructor(mostBytes: number) {
    this.#mostBytes = mostBytes;
  }

  /** Returns what gives the bytes back, once. Throws SluiceError `overloaded`. */
  take(bytes: number): () => void {
    if (this.#bytes + bytes > this.#mostBytes)
      throw new SluiceError(
        'overloaded',
        `bodies of ${this.#bytes} bytes are being read, and with ${bytes} more they would exceed ${this.#mostBytes}: try again later`,
      );
    this.#bytes += bytes;
    let left = bytes;
    return () => {
      this.#bytes -= left;
      left = 0;
    };
  }
}
