/**
 * The logits of a few rows where every rank writes its share of the vocabulary, and what all ranks find out about them
 * together: each reduces its own part, rank 0 puts the parts together. Enters: shared memory, who holds which ids.
 * Leaves: rows as the sampler reads them. Must not know requests or how ranks meet: between `reduce`, `weigh` and reading a row
 * the caller sees to it that all ranks have come so far.
 */
import assert from 'node:assert';
import {
  bucketBound,
  bucketCount,
  type Candidates,
  type LogitsRow,
  leastLogit,
  type Weighing,
} from '../../logits.ts';
import { createMemory, instantiateKernel, reservedBytes } from './kernel-module.ts';

/** Ids whose weights are summed together. */
const chunkIds = 256;
/** What reduce leaves of a row's part: float32 greatest, int32 its index, float64 sum of exponentials; a cache line. */
const resultBytes = 64;
/** The least float32 that does not round to weight 0. */
const leastWeight = 2 ** -35 * (1 + 2 ** -23);

interface LogitsKernel {
  greatest(at: number, count: number, result: number): void;
  nextAbove(at: number, start: number, count: number, least: number): number;
  sumExponentials(at: number, count: number, max: number): number;
  weigh(at: number, count: number, max: number, scale: number, floor: number, result: number): number;
  fillBuckets(at: number, count: number, max: number, scale: number, floor: number, result: number): number;
  pick(
    at: number,
    start: number,
    end: number,
    max: number,
    scale: number,
    floor: number,
    mass: number,
  ): number;
  collect(
    at: number,
    count: number,
    first: number,
    max: number,
    scale: number,
    floor: number,
    threshold: number,
    least: number,
    ids: number,
    found: number,
  ): number;
}

/** What threads share; plain data. */
export interface SharedTile {
  readonly memory: WebAssembly.Memory;
  readonly rows: number;
  /** Ids of each rank; ranks hold consecutive ranges. */
  readonly shares: readonly number[];
}

/** Some consecutive ids of one row, in the kernel's memory. */
interface Piece {
  readonly first: number;
  readonly count: number;
  readonly at: number;
  readonly result: number;
  /** float64: sums of chunks, or of buckets. */
  readonly sums: number;
}

const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64;
const sumsBytes = (count: number): number => aligned(8 * Math.max(bucketCount, Math.ceil(count / chunkIds)));

interface Layout {
  /** [row][rank] */
  readonly pieces: readonly (readonly Piece[])[];
  /** Where each rank's part begins, row after row without gaps. */
  readonly parts: readonly number[];
  /** A row in one piece. */
  readonly copy: Piece;
  /** int32 and float32 [vocabulary]. */
  readonly ids: number;
  readonly found: number;
  readonly bytes: number;
}

function layoutOf(rows: number, shares: readonly number[]): Layout {
  const vocabulary = shares.reduce((sum, share) => sum + share, 0);
  let end = reservedBytes;
  const take = (bytes: number): number => {
    const at = end;
    end += aligned(bytes);
    return at;
  };
  const parts = shares.map((share) => take(rows * share * 4));
  const pieces = Array.from({ length: rows }, (_, row) => {
    let first = 0;
    return shares.map((count, rank): Piece => {
      const piece = {
        first,
        count,
        at: parts[rank]! + row * count * 4,
        result: take(resultBytes),
        sums: take(sumsBytes(count)),
      };
      first += count;
      return piece;
    });
  });
  const copy = {
    first: 0,
    count: vocabulary,
    at: take(vocabulary * 4),
    result: take(resultBytes),
    sums: take(sumsBytes(vocabulary)),
  };
  return { pieces, parts, copy, ids: take(vocabulary * 4), found: take(vocabulary * 4), bytes: end };
}

export function shareTile(rows: number, shares: readonly number[]): SharedTile {
  return { memory: createMemory(layoutOf(rows, shares).bytes), rows, shares };
}

/** Views of the tile's memory and the kernel on it, of one thread. */
interface Access {
  readonly kernel: LogitsKernel;
  readonly floats: Float32Array;
  readonly words: Int32Array;
  readonly doubles: Float64Array;
}

export class LogitsTile {
  /** [rows, this rank's share] float32: where this rank writes its logits. */
  readonly output: Float32Array;
  readonly #rank: number;
  readonly #layout: Layout;
  readonly #access: Access;
  readonly #rows: readonly TileRow[];

  constructor({ memory, rows, shares }: SharedTile, rank: number) {
    const { buffer } = memory;
    const layout = layoutOf(rows, shares);
    this.#rank = rank;
    this.#layout = layout;
    this.#access = {
      kernel: instantiateKernel<LogitsKernel>('logits', memory),
      floats: new Float32Array(buffer),
      words: new Int32Array(buffer),
      doubles: new Float64Array(buffer),
    };
    this.output = new Float32Array(buffer, layout.parts[rank]!, rows * shares[rank]!);
    const copy = new TileRow(this.#access, [layout.copy], layout);
    this.#rows = layout.pieces.map((pieces) => new TileRow(this.#access, pieces, layout, copy));
  }

  /** Finds the greatest of this rank's part of a row and, when it will be asked for, the sum of exponentials. */
  reduce(row: number, sumsExponentials: boolean): void {
    reducePiece(this.#access, this.#piece(row), sumsExponentials);
  }

  /** Weighs this rank's part of a row. All ranks have reduced theirs. */
  weigh(row: number, weighing: Weighing): void {
    const max = greatestOf(this.#access, this.#layout.pieces[row]!);
    weighPiece(this.#access, this.#piece(row), max, weighing);
  }

  /** A row that all ranks have reduced, with or without sums of exponentials, and weighed so, if at all. */
  row(row: number, sumsExponentials: boolean, weighing: Weighing | undefined): LogitsRow {
    const found = this.#rows[row]!;
    found.begin(sumsExponentials, weighing);
    return found;
  }

  #piece(row: number): Piece {
    return this.#layout.pieces[row]![this.#rank]!;
  }
}

function reducePiece({ kernel, floats, doubles }: Access, piece: Piece, sumsExponentials: boolean): void {
  kernel.greatest(piece.at, piece.count, piece.result);
  if (!sumsExponentials) return;
  const sum = kernel.sumExponentials(piece.at, piece.count, floats[piece.result >> 2]!);
  doubles[(piece.result >> 3) + 1] = sum;
}

function greatestOf({ floats }: Access, pieces: readonly Piece[]): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const { result } of pieces) max = Math.max(max, floats[result >> 2]!);
  return max;
}

/** The sum of the weights is left behind the greatest. */
function weighPiece({ kernel, doubles }: Access, piece: Piece, max: number, weighing: Weighing): void {
  const { at, count, sums, result } = piece;
  const run = weighing.nucleus ? kernel.fillBuckets : kernel.weigh;
  const total = run(at, count, max, weighing.scale, leastLogit(max, weighing), sums);
  doubles[(result >> 3) + 2] = total;
}

class TileRow implements LogitsRow {
  readonly size: number;
  readonly #access: Access;
  readonly #pieces: readonly Piece[];
  readonly #layout: Layout;
  readonly #copy: TileRow | undefined;
  /** What is known of the row so far. */
  #reduced = false;
  #summed = false;
  #weighing: Weighing | undefined;

  constructor(access: Access, pieces: readonly Piece[], layout: Layout, copy?: TileRow) {
    this.#access = access;
    this.#pieces = pieces;
    this.#layout = layout;
    this.#copy = copy;
    this.size = layout.copy.count;
  }

  begin(summed: boolean, weighing: Weighing | undefined): void {
    this.#reduced = true;
    this.#summed = summed;
    this.#weighing = weighing;
  }

  forget(): void {
    this.begin(false, undefined);
    this.#reduced = false;
  }

  at(id: number): number {
    let index = 0;
    while (id >= this.#pieces[index]!.first + this.#pieces[index]!.count) index++;
    const { at, first } = this.#pieces[index]!;
    return this.#access.floats[(at >> 2) + id - first]!;
  }

  greatest(): number {
    const { floats, words } = this.#access;
    this.#reduce();
    let best = -1;
    let max = Number.NEGATIVE_INFINITY;
    for (const { first, result } of this.#pieces) {
      const logit = floats[result >> 2]!;
      if (logit <= max) continue;
      max = logit;
      best = first + words[(result >> 2) + 1]!;
    }
    return best;
  }

  nextAbove(start: number, least: number): number {
    for (const { first, count, at } of this.#pieces) {
      if (start >= first + count) continue;
      const found = this.#access.kernel.nextAbove(at, Math.max(0, start - first), count, least);
      if (found < count) return first + found;
    }
    return this.size;
  }

  logSumExp(): number {
    const { floats, doubles } = this.#access;
    if (!this.#summed) for (const piece of this.#pieces) reducePiece(this.#access, piece, true);
    this.#reduced = true;
    this.#summed = true;
    const max = greatestOf(this.#access, this.#pieces);
    if (max === Number.NEGATIVE_INFINITY) return max;
    let sum = 0;
    for (const { result } of this.#pieces) {
      const greatest = floats[result >> 2]!;
      if (greatest > Number.NEGATIVE_INFINITY) sum += doubles[(result >> 3) + 1]! * Math.exp(greatest - max);
    }
    return max + Math.log(sum);
  }

  weigh(weighing: Weighing): number {
    const { doubles } = this.#access;
    this.#reduce();
    if (this.#weighing === undefined || !sameWeighing(this.#weighing, weighing)) {
      const max = greatestOf(this.#access, this.#pieces);
      for (const piece of this.#pieces) weighPiece(this.#access, piece, max, weighing);
      this.#weighing = weighing;
    }
    let total = 0;
    for (const { result } of this.#pieces) total += doubles[(result >> 3) + 2]!;
    return total;
  }

  pick(mass: number): number {
    const { kernel, doubles } = this.#access;
    const { scale, max, floor } = this.#weighed();
    let left = mass;
    for (const { first, count, at, sums } of this.#pieces) {
      for (let chunk = 0; chunk * chunkIds < count; chunk++) {
        const sum = doubles[(sums >> 3) + chunk]!;
        if (left < sum) {
          const start = chunk * chunkIds;
          return first + kernel.pick(at, start, Math.min(count, start + chunkIds), max, scale, floor, left);
        }
        left -= sum;
      }
    }
    // A draw so near the sum of all that it rounded up to it.
    for (const { first, count, at } of this.#pieces.toReversed()) {
      const last = kernel.pick(at, 0, count, max, scale, floor, Number.POSITIVE_INFINITY);
      if (last >= 0) return first + last;
    }
    return -1;
  }

  heaviest(mass: number, into: Candidates): void {
    const { kernel, words, floats } = this.#access;
    const { scale, max, floor } = this.#weighed();
    const { ids, found } = this.#layout;
    const bucket = this.#bucketAt(mass, into);
    const least = Math.max(bucketBound(bucket), leastWeight);
    // Rounding moves a logit's exponent by far less than what is added here.
    const depth = (Math.log2(least) - 0.01) / scale;
    const threshold = max + depth - (Math.abs(max) - depth) * 2 ** -22;
    into.count = 0;
    for (const { first, count, at } of this.#pieces) {
      const size = kernel.collect(at, count, first, max, scale, floor, threshold, least, ids, found);
      for (let i = 0; i < size; i++) {
        into.ids[into.count] = words[(ids >> 2) + i]!;
        into.weights[into.count++] = floats[(found >> 2) + i]!;
      }
    }
  }

  /** The bucket in which the heaviest reach `mass`. */
  #bucketAt(mass: number, into: Candidates): number {
    const { doubles } = this.#access;
    let bucket = 0;
    into.heavier = 0;
    for (; bucket < bucketCount - 1; bucket++) {
      let sum = 0;
      for (const { sums } of this.#pieces) sum += doubles[(sums >> 3) + bucket]!;
      if (into.heavier + sum >= mass) break;
      into.heavier += sum;
    }
    into.bound = bucket === 0 ? Number.POSITIVE_INFINITY : bucketBound(bucket - 1);
    return bucket;
  }

  copy(): { values: Float32Array; row: LogitsRow } {
    const { floats } = this.#access;
    const { at: to, count } = this.#layout.copy;
    assert(this.#copy !== undefined, 'a copy of a copy');
    for (const { first, at, count } of this.#pieces) {
      floats.copyWithin((to >> 2) + first, at >> 2, (at >> 2) + count);
    }
    this.#copy.forget();
    return { values: floats.subarray(to >> 2, (to >> 2) + count), row: this.#copy };
  }

  #reduce(): void {
    if (this.#reduced) return;
    for (const piece of this.#pieces) reducePiece(this.#access, piece, false);
    this.#reduced = true;
  }

  #weighed(): { scale: number; max: number; floor: number } {
    assert(this.#weighing !== undefined, 'the row has not been weighed');
    const max = greatestOf(this.#access, this.#pieces);
    return { scale: this.#weighing.scale, max, floor: leastLogit(max, this.#weighing) };
  }
}

function sameWeighing(a: Weighing, b: Weighing): boolean {
  return a.scale === b.scale && a.below === b.below && a.nucleus === b.nucleus;
}
