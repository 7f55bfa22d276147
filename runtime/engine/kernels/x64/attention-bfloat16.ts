/**
 * Attention by products of bfloat16 (attention-skeleton.ts), two an instruction and a place: keys and values, which lie in
 * pages as float32 or bfloat16, queries and weights are rounded to bfloat16; sums are float32. For models whose other
 * products round more than that, on processors that have the instruction.
 */

import { elementBytes } from '../attention-reference.ts';
import { AttentionPacking } from './attention-packing.ts';
import {
  at,
  Label,
  type Memory,
  r8,
  r9,
  r10,
  r11,
  r14,
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdx,
  rsi,
} from './general-assembler.ts';
import { BinaryExponential } from './vector-math.ts';

const registers = { vector: 24, factor: 28 } as const;
const one = 0x3f80;
/** Rows for which packing would take longer than what it saves. */
const directRows = 6;

export class Bfloat16Attention extends AttentionPacking {
  protected override query(row: number): void {
    const { code, work } = this;
    const count = this.headDim / 16;
    for (let i = 0; i < count; i += 2) {
      for (const [each, to] of [
        [i, 0],
        [i + 1, 1],
      ] as const) {
        if (each < count) code.load(64, to, at(rax, 64 * each));
        else code.binary(64, 'pxor', to, to, to);
      }
      code.binary(64, 'cvtne2ps2bf16', 0, 1, 0);
      code.store(64, at(rsi, work.queries + row * this.headDim * 2 + 32 * i), 0);
    }
  }

  #vectors(rows: number, most: number): number {
    return this.vectorsAtOnce(rows, most, [4, 2]);
  }

  protected override scores(rows: number): void {
    this.#whereItLies(
      rows,
      () => this.spans(() => this.#spanScores(rows)),
      () => this.#packedScores(rows),
    );
  }

  protected override values(rows: number): void {
    this.#whereItLies(
      rows,
      () =>
        this.#everyColumn(rows, (first, vectors) => this.spans(() => this.#spanValues(rows, first, vectors))),
      () => this.#everyColumn(rows, (first, vectors) => this.#packedValues(rows, first, vectors)),
    );
  }

  /** The only tile of a slice, if it has few rows, takes what lies in pages as it is. */
  #whereItLies(rows: number, inPages: () => void, packed: () => void): void {
    const { code } = this;
    if (rows > directRows) {
      packed();
      return;
    }
    const [others, done] = [new Label(), new Label()];
    code.loadQuad(rax, this.slot('packedStep'));
    code.compare(rax, 0);
    code.jumpIf('notEqual', others);
    this.loadOrder();
    inPages();
    code.jump(done);
    code.bind(others);
    packed();
    code.bind(done);
  }

  #spanScores(rows: number): void {
    const { code, chunkKeys } = this;
    const { blockTokens } = this.form;
    const vectors = this.#vectors(rows, Math.min(blockTokens, chunkKeys) / 16);
    const element = elementBytes[this.form.dtype];
    const row = blockTokens * element;
    code.multiply(rax, rcx, element);
    code.addRegister(rax, rdx);
    code.multiply(r9, rbx, 4);
    code.addRegister(r9, rsi);
    this.#everyScore(rows, vectors, { keyBytes: element, pairBytes: 8 * row }, (pair) => {
      const places = Array.from({ length: vectors }, (_, i) => at(r10, 2 * pair * row + i * 16 * element));
      this.loadPairs(registers.vector, places, row);
    });
  }

  /**
   * Scores of the rbp keys at rax, some vectors at a time, which go to work.scores after r9. From one key to the next are
   * `keyBytes`, from four pairs of dimensions to the next four `pairBytes`.
   */
  #everyScore(
    rows: number,
    vectors: number,
    { keyBytes, pairBytes }: { readonly keyBytes: number; readonly pairBytes: number },
    load: (pair: number) => void,
  ): void {
    const { code, work, chunkKeys } = this;
    const next = new Label();
    code.bind(next);
    this.#dots(rows, vectors, pairBytes, load);
    for (let row = 0; row < rows; row++) {
      for (let vector = 0; vector < vectors; vector++) {
        code.store(64, at(r9, work.scores + row * chunkKeys * 4 + vector * 64), row * vectors + vector);
      }
    }
    code.add(rax, vectors * 16 * keyBytes);
    code.add(r9, vectors * 64);
    code.subtract(rbp, vectors * 16);
    code.jumpIf('above', next);
  }

  /** Queries times keys from rax on, four pairs of dimensions at a time, of which `step` bytes lie at r10 for `load`. */
  #dots(rows: number, vectors: number, step: number, load: (pair: number) => void): void {
    const { code, work } = this;
    const headDim = this.headDim;
    for (let sum = 0; sum < rows * vectors; sum++) code.binary(64, 'pxor', sum, sum, sum);
    code.copy(r10, rax);
    code.address(r11, at(rsi, work.queries));
    code.set(r15, headDim / 8);
    const pairs = new Label();
    code.bind(pairs);
    for (let pair = 0; pair < 4; pair++) {
      load(pair);
      this.#multiplyAdd(rows, vectors, (row) => at(r11, row * headDim * 2 + pair * 4));
    }
    code.add(r10, step);
    code.add(r11, 16);
    code.subtract(r15, 1);
    code.jumpIf('notEqual', pairs);
  }

  #packedScores(rows: number): void {
    const { code, chunkKeys } = this;
    const vectors = this.#vectors(rows, chunkKeys / 16);
    this.pack();
    this.packedChunk(rax);
    code.copy(r9, rsi);
    code.copy(rbp, r14);
    this.#everyScore(rows, vectors, { keyBytes: 4, pairBytes: 16 * chunkKeys }, (pair) => {
      for (let vector = 0; vector < vectors; vector++) {
        code.load(64, registers.vector + vector, at(r10, pair * chunkKeys * 4 + vector * 64));
      }
    });
  }

  /** Adds to each row's sums what the pair at `factor` makes of the vectors. */
  #multiplyAdd(rows: number, vectors: number, factor: (row: number) => Memory): void {
    const { code } = this;
    for (let row = 0; row < rows; row++) {
      code.broadcast(64, registers.factor, factor(row));
      for (let vector = 0; vector < vectors; vector++) {
        code.binary(64, 'dpbf16ps', row * vectors + vector, registers.vector + vector, registers.factor);
      }
    }
  }

  /** Weights take the scores' places, the first half of them. */
  protected override weights(vectors: number): void {
    const { code, work } = this;
    const [n, p, highest, total, ones] = [2, 3, 4, 5, 6];
    const exponential = new BinaryExponential(code, 64, 7, { precision: 'coarse' });
    exponential.emitConstants();
    code.broadcastConstant(64, ones, Int32Array.of(one * 0x10001));
    this.everyRow(() => {
      code.broadcast(64, highest, at(r9, work.maxima));
      code.broadcast(64, total, at(r9, work.factors));
      code.binary(64, 'mulps', total, total, at(r10));
      for (let i = 0; i < vectors; i += 2) {
        for (const x of [0, 1]) {
          code.load(64, x, at(r8, 64 * (i + x)));
          code.binary(64, 'subps', x, x, highest);
          exponential.emit(x, n, p);
        }
        code.binary(64, 'cvtne2ps2bf16', 0, 1, 0);
        code.store(64, at(r8, 32 * i), 0);
        code.binary(64, 'dpbf16ps', total, 0, ones);
      }
      code.store(64, at(r10), total);
    });
  }

  /** Outputs, times their factors, in registers, a few columns at a time. */
  #everyColumn(rows: number, add: (first: number, vectors: number) => void): void {
    const { code, work } = this;
    const columns = this.headDim / 16;
    const vectors = this.#vectors(rows, columns);
    for (let first = 0; first < columns; first += vectors) {
      const places = Array.from({ length: rows * vectors }, (_, sum) => {
        const column = first + (sum % vectors);
        return at(rsi, work.outputs + (Math.floor(sum / vectors) * this.headDim + column * 16) * 4);
      });
      for (const [sum, place] of places.entries()) {
        code.load(64, sum, place);
        code.binaryBroadcast('mulps', sum, sum, at(rsi, work.factors + 4 * Math.floor(sum / vectors)));
      }
      add(first, vectors);
      for (const [sum, place] of places.entries()) code.store(64, place, sum);
    }
  }

  #spanValues(rows: number, first: number, vectors: number): void {
    const { code, work, chunkKeys } = this;
    const element = elementBytes[this.form.dtype];
    const row = this.headDim * element;
    code.multiply(r10, rcx, row);
    code.addRegister(r10, rdx);
    code.add(r10, this.head.keys + first * 16 * element);
    code.multiply(r11, rbx, 2);
    code.addRegister(r11, rsi);
    const steps = [
      [r10, 2 * row],
      [r11, 4],
    ] as const;
    this.everyPair(steps, (both) => {
      const places = Array.from({ length: vectors }, (_, i) => at(r10, i * 16 * element));
      this.loadPairs(registers.vector, places, both ? row : undefined);
      this.#multiplyAdd(rows, vectors, (each) => at(r11, work.scores + each * chunkKeys * 4));
    });
  }

  #packedValues(rows: number, first: number, vectors: number): void {
    const { code, work, chunkKeys } = this;
    const headDim = this.headDim;
    this.packedChunk(r10);
    code.add(r10, this.keyBytes + first * 64);
    code.address(r11, at(rsi, work.scores));
    code.copy(rbp, r14);
    const next = new Label();
    code.bind(next);
    for (let pair = 0; pair < 4; pair++) {
      for (let vector = 0; vector < vectors; vector++) {
        code.load(64, registers.vector + vector, at(r10, pair * headDim * 4 + vector * 64));
      }
      this.#multiplyAdd(rows, vectors, (row) => at(r11, row * chunkKeys * 4 + pair * 4));
    }
    code.add(r10, headDim * 16);
    code.add(r11, 16);
    code.subtract(rbp, 8);
    code.jumpIf('above', next);
  }
}
