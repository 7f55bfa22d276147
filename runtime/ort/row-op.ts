/**
 * Custom ops whose tensors are rows: what they are and what their kernels are given. A domain of ops (custom-op.ts) makes
 * sessions' nodes of them.
 */
import type { AttributeKind, AttributeValues, CustomOpPort } from './custom-op.ts';
import type { Pointer } from './library.ts';

/**
 * An op whose tensors are rows, as many as the run has: the addresses of its inputs and outputs are gathered before its
 * kernel is called, by machine code where there is some (RowGather).
 */
export interface RowOp<
  A extends Readonly<Record<string, AttributeKind>> = Readonly<Record<string, AttributeKind>>,
> {
  readonly name: string;
  readonly inputs: readonly CustomOpPort[];
  readonly outputs: readonly CustomOpPort[];
  readonly attributes: A;
  // biome-ignore lint/suspicious/noExplicitAny: as for CustomOp.
  kernel(attributes: any): RowKernel;
  readonly rows: true;
}

export interface RowKernel {
  /** Of each output. */
  readonly columns: readonly number[];
  /** A function; or the address of machine code, which is called with the address of the node's words (rowWords). */
  readonly run: ((places: RowPlaces) => void) | Pointer;
  /** For machine code: what it may call (rowWords.assist) with its argument; null, or the status of what was thrown. */
  readonly assist?: () => void;
}

/** What a row op's kernel is given: 64-bit words of the node, whose address is that of its kernel. */
export const rowWords = {
  run: 0,
  inputs: 1,
  outputs: 2,
  /** Where the number of rows is. */
  rowsAddress: 3,
  /** Rows of the run, and columns of an output: ORT's dimensions. */
  rows: 4,
  columns: 5,
  value: 6,
  assist: 7,
  /** Addresses of the inputs, then of the outputs, then the columns of each output. */
  places: 8,
} as const;

/** Gathers a node's addresses into its words and calls what runs it: code, and the word from which it takes the rows. */
export interface RowGather {
  /** Absent: each call of the API for a node goes through the FFI. */
  readonly code?: Pointer | undefined;
  readonly rows: BigInt64Array;
}

/** Addresses of a node's inputs and outputs, valid during the call only. */
export class RowPlaces {
  readonly #words: BigUint64Array;
  readonly #inputs: number;

  constructor(words: BigUint64Array, inputs: number) {
    this.#words = words;
    this.#inputs = inputs;
  }

  get rows(): number {
    return Number(this.#words[rowWords.rows]);
  }

  input(index: number): Pointer {
    return this.#words[rowWords.places + index]!;
  }

  output(index: number): Pointer {
    return this.#words[rowWords.places + this.#inputs + index]!;
  }
}

/** As defineCustomOp. */
export function defineRowOp<const A extends Readonly<Record<string, AttributeKind>>>(
  op: Omit<RowOp<A>, 'kernel' | 'rows'> & { kernel(attributes: AttributeValues<A>): RowKernel },
): RowOp<A> {
  return { ...op, rows: true };
}
