/**
 * How ranks meet: each contributes a partial result and all leave with the same sum. Every rank calls the same
 * operations in the same order. Must not know what is summed. One conformance suite runs on all implementations.
 */

export interface Collective {
  readonly rank: number;
  readonly ranks: number;
  /**
   * Where this rank puts its part of the next `allReduce`: the first `count` floats of a buffer that belongs to the
   * collective. Ask anew for each reduction; the buffers alternate.
   */
  contribution(count: number): Float32Array;
  /**
   * Waits for every rank's contribution and sums them, in rank order, so all ranks get the same bits. The sum is valid
   * until this rank's next call.
   */
  allReduce(count: number): Float32Array;
  /** Returns when every rank has called it. What a rank wrote to shared memory before is then visible to all. */
  barrier(): void;
  /**
   * Rank 0 hands `words` (int32) to all; the others wait for them, for as long as it takes. Undefined: the collective
   * was closed. The words are overwritten by the next broadcast, which rank 0 may begin as soon as all ranks have since
   * met in a barrier or an all-reduce.
   */
  broadcast(words?: Int32Array): Int32Array | undefined;
  /** Ends the waiting of the ranks that are in `broadcast`. */
  close(): void;
  /** Makes every operation of every rank throw from now on. */
  fail(reason: string): void;
}

/** One rank alone: nothing to wait for, nothing to sum. */
export class SoloCollective implements Collective {
  readonly rank = 0;
  readonly ranks = 1;
  readonly #buffer: Float32Array;
  #failure: string | undefined;

  /** `reduceFloats`: the largest all-reduce. */
  constructor(reduceFloats: number) {
    this.#buffer = new Float32Array(reduceFloats);
  }

  contribution(count: number): Float32Array {
    return this.#buffer.subarray(0, count);
  }

  allReduce(count: number): Float32Array {
    this.barrier();
    return this.#buffer.subarray(0, count);
  }

  barrier(): void {
    if (this.#failure !== undefined) throw new Error(this.#failure);
  }

  broadcast(words?: Int32Array): Int32Array | undefined {
    this.barrier();
    return words;
  }

  close(): void {}

  fail(reason: string): void {
    this.#failure = reason;
  }
}
