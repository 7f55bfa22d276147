/**
 * How ranks meet: each contributes a partial result and all leave with the same sum. Every rank calls the same
 * operations in the same order. Must not know what is summed. One conformance suite runs on all implementations.
 */

export interface Collective {
  readonly rank: number;
  readonly ranks: number;
  /** Where machine code of this rank meets the others; absent: nowhere. */
  readonly meeting?: MeetingPlace;
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

/**
 * The memory of a barrier, for machine code that passes it as `barrier` does (x64/meeting.ts): addresses, and offsets in bytes
 * from `words`. Words are int32.
 */
export interface MeetingPlace {
  readonly words: bigint;
  /** How many ranks have arrived; how often all have. */
  readonly arrived: number;
  readonly generation: number;
  /** Not 0 once a rank has failed. */
  readonly failed: number;
  /** How many ranks sleep until the generation changes, and have to be woken. */
  readonly sleepers: number;
  /** This rank's own words (rankPlace). */
  readonly own: number;
  /** From a rank's own words to the next rank's. */
  readonly ownBytes: number;
  /** Parts of reductions: of rank 0, in the buffer of even generations; from a rank's part to the next, and to odd ones'. */
  readonly parts: number;
  readonly partBytes: number;
  readonly bufferBytes: number;
  /**
   * What waiting code calls when it has looked `spins` times in vain, who came last when there are sleepers, and who passed
   * when a rank has failed. Throws when one has.
   */
  assist(): void;
}

/** Offsets in bytes of a rank's own words: the generation it leaves, how often it looks, two addresses for the others. */
export const rankPlace = { left: 0, spins: 4, first: 8, second: 16 } as const;

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
