/**
 * The softmax of attention's machine code (attention-skeleton.ts), a chunk of keys at a time: scores of a tile's rows
 * become weights, and maxima, sums and factors are brought up to date. What weights are is the subclass's.
 *
 * Rows take turns twice, first for their maxima, then for their weights, so that what is one number for each row, the
 * growth of maxima, is one vector for all; sums stay apart by lanes until the tile ends.
 */
import assert from 'node:assert';
import { Assembler } from './assembler.ts';
import {
  type AttentionForm,
  attentionArgumentWords,
  attentionSlots,
  chunkKeysOf,
  chunkVectors,
  hasAttentionCode,
  layOutWork,
  type WorkPlaces,
} from './attention-form.ts';
import {
  at,
  Label,
  type Memory,
  r8,
  r9,
  r10,
  r11,
  r12,
  r14,
  rax,
  rbp,
  rcx,
  rdi,
  rsi,
} from './general-assembler.ts';
import { type InstructionSet, widthOf } from './processor.ts';
import { BinaryExponential, emitEverywhere } from './vector-math.ts';

/** Of keys that are not seen. */
export const leastScore = -1e30;
const maskedVectors = [2, 4, chunkVectors];

export abstract class AttentionSoftmax {
  protected readonly code = new Assembler();
  protected readonly form: AttentionForm;
  protected readonly width: 32 | 64;
  protected readonly chunkKeys: number;
  protected readonly work: WorkPlaces;
  /** For chunks of which every row sees every key, and for the others, by how many vectors of keys they have at most. */
  readonly #whole = new Label();
  readonly #masked = maskedVectors.map((vectors) => ({ vectors, label: new Label() }));

  constructor(form: AttentionForm, instructions: InstructionSet) {
    assert(hasAttentionCode(form));
    this.form = form;
    this.width = widthOf(instructions);
    this.chunkKeys = chunkKeysOf(this.width);
    this.work = layOutWork(form.shape.headDim).work;
  }

  protected get lanes(): number {
    return this.width / 4;
  }

  protected slot(name: keyof typeof attentionSlots): Memory {
    return at(rdi, 8 * attentionSlots[name]);
  }

  /**
   * Weights of rbp rows, of the chunk at r12: for each row, scores are at r8, places of its numbers count from r9, its sums
   * are at r10. May use r11, rax, rcx and vectors.
   */
  protected abstract weights(vectors: number): void;
  /**
   * What else becomes of maxima: the chunk's are in `chunk`, the new ones in `highest`, for the rows at `byte`. Nothing where
   * weights are relative to the maxima so far.
   */
  protected chunkFactors(
    _registers: {
      readonly chunk: number;
      readonly highest: number;
      readonly free: readonly [number, number];
    },
    _exponential: BinaryExponential,
    _byte: number,
  ): void {}

  /** The softmax of the chunk at r12, of which r14 keys count. */
  protected callSoftmax(rows: number): void {
    const code = this.code;
    const [some, done] = [new Label(), new Label()];
    code.set(rbp, rows);
    if (this.form.shape.window === 0) {
      // The first row ends before the others.
      code.address(rax, at(r12, this.chunkKeys));
      code.loadDword(rcx, at(rsi, this.work.ends));
      code.compareRegisters(rcx, rax);
      code.jumpIf('below', some);
      code.call(this.#whole);
      code.jump(done);
    }
    code.bind(some);
    for (const { vectors, label } of this.#masked.slice(0, -1)) {
      const more = new Label();
      code.compare(r14, vectors * this.lanes);
      code.jumpIf('above', more);
      code.call(label);
      code.jump(done);
      code.bind(more);
    }
    code.call(this.#masked.at(-1)!.label);
    code.bind(done);
  }

  /** The functions that `callSoftmax` calls. */
  protected emitSoftmax(): void {
    const functions = [
      { masks: false, vectors: chunkVectors, label: this.#whole },
      ...this.#masked.map((each) => ({ masks: true, ...each })),
    ];
    for (const { masks, vectors, label } of functions) {
      this.code.bind(label);
      this.#chunkMaxima(masks, vectors);
      this.#factors();
      this.#start();
      this.weights(vectors);
      this.code.return();
    }
  }

  #start(): void {
    const { code, work } = this;
    code.address(r8, at(rsi, work.scores));
    code.address(r9, at(rsi));
    code.address(r10, at(rsi, work.sums));
    code.copy(r11, rbp);
  }

  /** `each` for r11 rows, which it may not change. */
  protected everyRow(each: () => void): void {
    const code = this.code;
    const row = new Label();
    code.bind(row);
    each();
    code.add(r8, this.chunkKeys * 4);
    code.add(r9, 4);
    code.add(r10, 64);
    code.subtract(r11, 1);
    code.jumpIf('notEqual', row);
  }

  /** The largest scores of rows in the chunk; those that are not seen become the least. */
  #chunkMaxima(masks: boolean, vectors: number): void {
    const { code, width, work } = this;
    const [end, start, least, places, scratch, more, highest] = [8, 9, 10, 11, 12, 13, 14];
    const position = at(rdi, 8 * (attentionArgumentWords - 1));
    if (masks) {
      code.storeQuadword(position, r12);
      code.broadcastConstant(width, least, Float32Array.of(leastScore));
    }
    this.#start();
    this.everyRow(() => {
      if (masks) {
        // Places of the chunk's keys: more than start, less than end.
        code.broadcast(width, scratch, position);
        code.broadcast(width, end, at(r9, work.ends));
        code.broadcast(width, start, at(r9, work.starts));
        code.binary(width, 'psubd', end, end, scratch);
        code.binary(width, 'psubd', start, start, scratch);
      }
      for (let i = 0; i < vectors; i++) {
        const from = at(r8, i * width);
        if (masks) {
          this.#maskedLoad(0, i, from, [end, start, least, places, more]);
          code.store(width, from, 0);
        }
        if (i > 0) code.binary(width, 'maxps', highest, highest, masks ? 0 : from);
        else if (masks) code.move(width, highest, 0);
        else code.load(width, highest, from);
      }
      emitEverywhere(code, width, 'maxps', highest, scratch);
      code.storeFloat(at(r9, work.chunkMaxima), highest);
    });
  }

  /** Vector `i` of scores, those that are not seen as small as can be. */
  #maskedLoad(
    to: number,
    i: number,
    from: Memory,
    registers: readonly [number, number, number, number, number],
  ): void {
    const { code, width } = this;
    const [end, start, least, places, more] = registers;
    const indices = Int32Array.from({ length: this.lanes }, (_, lane) => i * this.lanes + lane);
    code.loadConstant(width, places, new Uint8Array(indices.buffer));
    if (width === 64) {
      code.greaterMask(1, end, places);
      code.greaterMask(1, places, start, 1);
      code.move(64, to, least);
      code.loadMerging(to, from, 1);
      return;
    }
    code.binary(32, 'pcmpgtd', more, end, places);
    code.binary(32, 'pcmpgtd', places, places, start);
    code.binary(32, 'pand', more, more, places);
    code.binary(32, 'pand', to, more, from);
    code.binary(32, 'pandn', more, more, least);
    code.binary(32, 'por', to, to, more);
  }

  /** Maxima so far, and what they have grown by, for all rows. */
  #factors(): void {
    const { code, width, work } = this;
    const [chunk, highest, factor, n, p] = [0, 1, 2, 3, 4];
    const exponential = new BinaryExponential(code, width, 5);
    exponential.emitConstants();
    for (let byte = 0; byte < 64; byte += width) {
      code.load(width, chunk, at(rsi, work.chunkMaxima + byte));
      code.load(width, factor, at(rsi, work.maxima + byte));
      code.binary(width, 'maxps', highest, chunk, factor);
      code.store(width, at(rsi, work.maxima + byte), highest);
      code.binary(width, 'subps', factor, factor, highest);
      exponential.emit(factor, n, p);
      code.store(width, at(rsi, work.factors + byte), factor);
      this.chunkFactors({ chunk, highest, free: [n, p] }, exponential, byte);
    }
  }
}
