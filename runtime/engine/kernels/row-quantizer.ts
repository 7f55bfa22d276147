/**
 * The kernel wasm/row-int8.ts and the memory it works in. Enters: addresses of rows of floats and where results belong.
 * Leaves: rotated rows as bytes with one step's size each. Must not know graphs.
 *
 * Rows pass through in chunks that stay in the processor's cache.
 */
import assert from 'node:assert';
import { addressOf, copyMemory, type Pointer } from '../../ort/library.ts';
import { createMemory, instantiateKernel, reservedBytes } from './kernel-module.ts';

interface RowInt8Exports {
  quantizeRows(x: number, rows: number, width: number, values: number, steps: number): void;
  quantizeAddNorm(
    x: number,
    residual: number,
    weight: number,
    epsilon: number,
    rows: number,
    width: number,
    values: number,
    steps: number,
  ): void;
  quantizeGated(
    products: number,
    scales: number,
    rows: number,
    width: number,
    values: number,
    steps: number,
  ): void;
}

/** Where the results of some rows go: uint8 [rows, width], float32 [rows]. */
export interface QuantizedPlace {
  readonly values: Pointer;
  readonly steps: Pointer;
}

const memoryBytes = 4 * 2 ** 20;
const chunkBytes = 256 * 2 ** 10;
const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64;

export class RowQuantizer {
  readonly #exports: RowInt8Exports;
  /** Of the kernel's address 0. */
  readonly #base: Pointer;

  constructor() {
    const memory = createMemory(memoryBytes);
    this.#exports = instantiateKernel<RowInt8Exports>('row-int8', memory);
    this.#base = addressOf(new Uint8Array(memory.buffer));
  }

  /** x float32 [rows, width]. */
  quantize(rows: number, width: number, x: Pointer, to: QuantizedPlace): void {
    const chunks = new Chunks(rows, [width * 4, width, 4]);
    const [at, values, steps] = chunks.places as [number, number, number];
    for (const { first, count } of chunks) {
      this.#enter(at, x, first, count, width * 4);
      this.#exports.quantizeRows(at, count, width, values, steps);
      this.#leave(to, first, count, width, values, steps);
    }
  }

  /** The RMS norm of x + residual, both [rows, width]; the sums go to `sums`. `weight` is [width]. */
  addNorm(
    rows: number,
    width: number,
    from: { readonly x: Pointer; readonly residual: Pointer; readonly weight: Pointer },
    epsilon: number,
    sums: Pointer,
    to: QuantizedPlace,
  ): void {
    const rowBytes = width * 4;
    const chunks = new Chunks(rows, [rowBytes, rowBytes, width, 4], rowBytes);
    const [x, residual, values, steps] = chunks.places as [number, number, number, number];
    const weight = chunks.constants;
    copyMemory(this.#base + BigInt(weight), from.weight, rowBytes);
    for (const { first, count } of chunks) {
      this.#enter(x, from.x, first, count, rowBytes);
      this.#enter(residual, from.residual, first, count, rowBytes);
      this.#exports.quantizeAddNorm(x, residual, weight, epsilon, count, width, values, steps);
      copyMemory(sums + BigInt(first * rowBytes), this.#base + BigInt(x), count * rowBytes);
      this.#leave(to, first, count, width, values, steps);
    }
  }

  /** silu(gate) * up of products [rows, 2 * width], each times its row's scale. */
  gated(rows: number, width: number, products: Pointer, scales: Pointer, to: QuantizedPlace): void {
    const rowBytes = width * 8;
    const chunks = new Chunks(rows, [rowBytes, 4, width, 4]);
    const [at, scalesAt, values, steps] = chunks.places as [number, number, number, number];
    for (const { first, count } of chunks) {
      this.#enter(at, products, first, count, rowBytes);
      this.#enter(scalesAt, scales, first, count, 4);
      this.#exports.quantizeGated(at, scalesAt, count, width, values, steps);
      this.#leave(to, first, count, width, values, steps);
    }
  }

  #enter(at: number, from: Pointer, first: number, count: number, rowBytes: number): void {
    copyMemory(this.#base + BigInt(at), from + BigInt(first * rowBytes), count * rowBytes);
  }

  #leave(
    to: QuantizedPlace,
    first: number,
    count: number,
    width: number,
    values: number,
    steps: number,
  ): void {
    copyMemory(to.values + BigInt(first * width), this.#base + BigInt(values), count * width);
    copyMemory(to.steps + BigInt(first * 4), this.#base + BigInt(steps), count * 4);
  }
}

/** How rows pass through the memory: some at once, what belongs to them in one place for each part. */
class Chunks {
  /** For each part. */
  readonly places: readonly number[];
  /** Where what all rows share lies. */
  readonly constants: number;
  readonly #rows: number;
  readonly #most: number;

  /** `parts`: bytes of a row in each part. */
  constructor(rows: number, parts: readonly number[], constantBytes = 0) {
    const rowBytes = parts.reduce((sum, bytes) => sum + bytes, 0);
    this.#rows = rows;
    this.#most = Math.min(rows, Math.max(1, Math.floor(chunkBytes / rowBytes)));
    this.constants = reservedBytes;
    let at = reservedBytes + aligned(constantBytes);
    this.places = parts.map((bytes) => {
      const place = at;
      at += aligned(bytes * this.#most);
      return place;
    });
    assert(at <= memoryBytes, `rows of ${rowBytes} bytes`);
  }

  *[Symbol.iterator](): Generator<{ readonly first: number; readonly count: number }> {
    for (let first = 0; first < this.#rows; first += this.#most) {
      yield { first, count: Math.min(this.#most, this.#rows - first) };
    }
  }
}
