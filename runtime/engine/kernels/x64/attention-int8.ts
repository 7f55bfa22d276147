/**
 * Attention in integers over pages of int8 (attention-skeleton.ts), four products of bytes an instruction: queries are
 * quantized to int8, a step each, and weights, times the steps of their values, to 8 bits, a step for each chunk. Keys and
 * values lie in fours of what is summed over: keys [headDim / 4][tokens][4], values [tokens / 4][headDim][4].
 *
 * Scores have the logarithms of values' steps added, so that their exponentials are weights times steps, and the largest
 * of a chunk is 255; sums of weights take the steps off again.
 *
 * The instruction takes unsigned bytes on one side: keys are moved up by 128 as they are loaded, and what that adds is
 * taken off by a number for each row.
 */

import { AttentionSkeleton } from './attention-skeleton.ts';
import {
  at,
  Label,
  type Memory,
  r8,
  r9,
  r10,
  r11,
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdx,
  rsi,
} from './general-assembler.ts';
import { BinaryExponential, emitBinaryLogarithm, emitEverywhere } from './vector-math.ts';

const registers = { vector: 24, sign: 28, a: 29, b: 30, weight: 31 } as const;
const signs = Int32Array.of(0x80808080 | 0);
const mostWeight = 255;
/** Steps of values beyond are taken for these: there is nothing so small, and of tokens that are not there yet anything. */
const valueSteps = { least: 1e-20, most: 1e20 };

export class Int8Attention extends AttentionSkeleton {
  protected override query(row: number): void {
    const { code, work } = this;
    const { headDim } = this.form.shape;
    const count = headDim / 16;
    const [largest, total, scratch, inverse] = [16, 17, 18, 19];
    code.broadcastConstant(64, inverse, Int32Array.of(0x7fffffff));
    for (let i = 0; i < count; i++) {
      code.load(64, i, at(rax, 64 * i));
      code.binary(64, 'pand', i === 0 ? largest : scratch, i, inverse);
      if (i > 0) code.binary(64, 'maxps', largest, largest, scratch);
    }
    emitEverywhere(code, 64, 'maxps', largest, scratch);
    this.#steps(largest, inverse, scratch, work.querySteps + 4 * row);
    for (let i = 0; i < count; i++) {
      code.binary(64, 'mulps', i, i, inverse);
      code.unary(64, 'cvtps2dq', i, i);
      code.storeLowBytes(at(rsi, work.queries + row * headDim + 16 * i), i);
      if (i === 0) code.move(64, total, i);
      else code.binary(64, 'paddd', total, total, i);
    }
    this.#centre(total, scratch, work.queryCentres + 4 * row);
  }

  /** The register of largest values becomes steps, which go to `place` at rsi; their inverses go to a register. */
  #steps(largest: number, inverse: number, scratch: number, place: number): void {
    const { code } = this;
    // The smallest largest value that is told from zero.
    code.broadcastConstant(64, scratch, Float32Array.of(1e-30));
    code.binary(64, 'maxps', largest, largest, scratch);
    code.broadcastConstant(64, scratch, Float32Array.of(127));
    code.binary(64, 'divps', inverse, scratch, largest);
    code.broadcastConstant(64, scratch, Float32Array.of(1 / 127));
    code.binary(64, 'mulps', largest, largest, scratch);
    code.storeFloatWide(at(rsi, place), largest);
  }

  /** What moving bytes up by 128 adds to products with these, taken off. */
  #centre(total: number, scratch: number, place: number): void {
    const { code } = this;
    emitEverywhere(code, 64, 'paddd', total, scratch);
    code.broadcastConstant(64, scratch, Int32Array.of(-128));
    code.binary(64, 'pmulld', total, total, scratch);
    code.storeFloatWide(at(rsi, place), total);
  }

  protected override scores(rows: number): void {
    this.spans(() => this.#spanScores(rows));
  }

  #spanScores(rows: number): void {
    const { code, work, chunkKeys } = this;
    const { headDim } = this.form.shape;
    const { blockTokens } = this.form;
    const most = Math.min(blockTokens, chunkKeys) / 16;
    const vectors = this.vectorsAtOnce(rows, most, [4, 2]);
    const keys = vectors * 16;
    code.broadcastConstant(64, registers.sign, signs);
    code.copy(rax, rcx);
    code.shiftLeft(rax, 2);
    code.addRegister(rax, rdx);
    code.copy(r8, rax);
    code.add(r8, this.head.scales);
    code.copy(r9, rbx);
    code.shiftLeft(r9, 2);
    code.addRegister(r9, rsi);
    const [next, done, dimension] = [new Label(), new Label(), new Label()];
    const sum = (row: number, vector: number): number => row * vectors + vector;
    code.bind(next);
    for (let row = 0; row < rows; row++) {
      for (let vector = 0; vector < vectors; vector++) {
        code.broadcast(64, sum(row, vector), at(rsi, work.queryCentres + 4 * row));
      }
    }
    code.copy(r10, rax);
    code.address(r11, at(rsi, work.queries));
    code.set(r15, headDim / 4);
    code.bind(dimension);
    for (let vector = 0; vector < vectors; vector++) {
      code.binary(64, 'pxor', registers.vector + vector, registers.sign, at(r10, 64 * vector));
    }
    for (let row = 0; row < rows; row++) {
      for (let vector = 0; vector < vectors; vector++) {
        code.binaryBroadcast('pdpbusd', sum(row, vector), registers.vector + vector, at(r11, row * headDim));
      }
    }
    code.add(r10, 4 * blockTokens);
    code.add(r11, 4);
    code.subtract(r15, 1);
    code.jumpIf('notEqual', dimension);
    for (let vector = 0; vector < vectors; vector++) {
      this.#valueSteps(at(r8, 4 * blockTokens + 64 * vector), at(r9, work.valueInverses + 64 * vector));
      code.load(64, registers.a, at(r8, 64 * vector));
      for (let row = 0; row < rows; row++) {
        const register = sum(row, vector);
        code.unary(64, 'cvtdq2ps', register, register);
        code.binaryBroadcast('mulps', register, register, at(rsi, work.querySteps + 4 * row));
        code.binary(64, 'fmadd213ps', register, registers.a, registers.b);
        code.store(64, at(r9, work.scores + row * chunkKeys * 4 + vector * 64), register);
      }
    }
    code.compare(rbp, keys);
    code.jumpIf('belowOrEqual', done);
    code.subtract(rbp, keys);
    code.add(rax, keys * 4);
    code.add(r8, keys * 4);
    code.add(r9, keys * 4);
    code.jump(next);
    code.bind(done);
  }

  /** Logarithms of the steps of values go to registers.b, inverses to memory. */
  #valueSteps(from: Memory, inverses: Memory): void {
    const { code } = this;
    const { a, b, vector, weight } = registers;
    code.load(64, a, from);
    // Of two of which one is no number this gives the second.
    code.broadcastConstant(64, b, Float32Array.of(valueSteps.least));
    code.binary(64, 'maxps', a, a, b);
    code.broadcastConstant(64, b, Float32Array.of(valueSteps.most));
    code.binary(64, 'minps', a, a, b);
    code.unary(64, 'rcp14ps', b, a);
    code.store(64, inverses, b);
    emitBinaryLogarithm(code, b, a, [vector, weight]);
  }

  protected override weights(vectors: number): void {
    const { code, work, chunkKeys } = this;
    const [highest, total, places, n, p, constants] = [8, 9, 10, 11, 12, 13];
    const exponential = new BinaryExponential(code, 64, constants, {
      precision: 'coarse',
      scale: mostWeight,
    });
    exponential.emitConstants();
    // Packing leaves fours of a vector in every fourth place.
    const order = Int32Array.from({ length: 16 }, (_, i) => (i % 4) * 4 + Math.floor(i / 4));
    code.loadConstant(64, places, new Uint8Array(order.buffer));
    code.address(rax, at(rsi, work.weights));
    this.everyRow(() => {
      code.broadcast(64, highest, at(r9, work.chunkMaxima));
      for (let i = 0; i < vectors; i++) {
        const x = i % 4;
        code.load(64, x, at(r8, 64 * i));
        code.binary(64, 'subps', x, x, highest);
        exponential.emit(x, n, p);
        if (i === 0) code.binary(64, 'mulps', total, x, at(rsi, work.valueInverses));
        else code.binary(64, 'fmadd231ps', total, x, at(rsi, work.valueInverses + 64 * i));
        code.unary(64, 'cvtps2dq', x, x);
        if (x < 3 && i < vectors - 1) continue;
        code.binary(64, 'packusdw', 0, 0, 1);
        // Where there are but two, what stands for the others is not read.
        if (x === 3) code.binary(64, 'packusdw', 2, 2, 3);
        code.binary(64, 'packuswb', 0, 0, 2);
        code.binary(64, 'permd', 0, places, 0);
        code.store(64, at(rax, 16 * (i - x)), 0);
      }
      code.binaryBroadcast('mulps', total, total, at(r9, work.chunkFactors));
      code.load(64, n, at(r10));
      code.binaryBroadcast('fmadd231ps', total, n, at(r9, work.factors));
      code.store(64, at(r10), total);
      code.add(rax, chunkKeys);
    });
  }

  /** Weights are relative to the chunk's maxima. */
  protected override chunkFactors(
    { chunk, highest, free: [n, p] }: Parameters<AttentionSkeleton['chunkFactors']>[0],
    exponential: BinaryExponential,
    byte: number,
  ): void {
    const { code, work } = this;
    code.binary(64, 'subps', chunk, chunk, highest);
    exponential.emit(chunk, n, p);
    code.store(64, at(rsi, work.chunkFactors + byte), chunk);
  }

  protected override values(rows: number): void {
    const { code, work, chunkKeys } = this;
    const { headDim } = this.form.shape;
    const columns = headDim / 16;
    const vectors = this.vectorsAtOnce(rows, columns, [4, 2]);
    const sum = (row: number, vector: number): number => row * vectors + vector;
    for (let first = 0; first < columns; first += vectors) {
      for (let i = 0; i < rows * vectors; i++) code.binary(64, 'pxor', i, i, i);
      this.spans(() => {
        // rcx is a multiple of 16: bytes before a token are headDim times its place.
        code.multiply(rcx, rcx, headDim);
        code.addRegister(rdx, rcx);
        code.add(rdx, this.head.keys + first * 64);
        code.address(r11, at(rbx));
        code.addRegister(r11, rsi);
        const next = new Label();
        code.bind(next);
        // Of the tokens that are not there weights are zero.
        for (let four = 0; four < 4; four++) {
          for (let vector = 0; vector < vectors; vector++) {
            code.load(64, registers.vector + vector, at(rdx, four * headDim * 4 + 64 * vector));
          }
          for (let row = 0; row < rows; row++) {
            code.broadcast(64, registers.weight, at(r11, work.weights + row * chunkKeys + 4 * four));
            for (let vector = 0; vector < vectors; vector++) {
              code.binary(64, 'pdpbusd', sum(row, vector), registers.weight, registers.vector + vector);
            }
          }
        }
        code.add(rdx, headDim * 16);
        code.add(r11, 16);
        code.subtract(rbp, 16);
        code.jumpIf('above', next);
      });
      for (let row = 0; row < rows; row++) {
        for (let vector = 0; vector < vectors; vector++) {
          const register = sum(row, vector);
          const place = at(rsi, work.outputs + (row * headDim + (first + vector) * 16) * 4);
          code.unary(64, 'cvtdq2ps', register, register);
          code.binaryBroadcast('mulps', register, register, at(rsi, work.chunkFactors + 4 * row));
          code.load(64, registers.a, place);
          code.binaryBroadcast('fmadd231ps', register, registers.a, at(rsi, work.factors + 4 * row));
          code.store(64, place, register);
        }
      }
    }
  }
}
