/**
 * Attention in integers over pages of int8 (attention-skeleton.ts), four products of bytes an instruction: queries are
 * quantized to int8, a step each, and weights, times the steps of their values, to 14 bits, a step for each chunk. Keys and
 * values lie in fours of what is summed over: keys [headDim / 4][tokens][4], values [tokens / 4][headDim][4].
 *
 * The instruction takes unsigned bytes on one side: keys and values are moved up by 128 as they are loaded, and what that
 * adds is taken off by a number for each row.
 */
import { at, Label, r8, r9, r10, r11, r15, rax, rbp, rbx, rcx, rdx, rsi } from './assembler.ts';
import { tileRows } from './attention-form.ts';
import { AttentionSkeleton } from './attention-skeleton.ts';
import { emitEverywhere } from './vector-math.ts';

const registers = { vector: 24, sign: 28, a: 29, b: 30 } as const;
const signs = Int32Array.of(0x80808080 | 0);
/** Halves of weights are 0 to 127. */
const weightBits = 14;
const mostWeight = 2 ** weightBits - 1;

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
    this.#steps(largest, inverse, scratch, 127, work.querySteps + 4 * row);
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
  #steps(largest: number, inverse: number, scratch: number, most: number, place: number): void {
    const { code } = this;
    // The smallest largest value that is told from zero.
    code.broadcastConstant(64, scratch, Float32Array.of(1e-30));
    code.binary(64, 'maxps', largest, largest, scratch);
    code.broadcastConstant(64, scratch, Float32Array.of(most));
    code.binary(64, 'divps', inverse, scratch, largest);
    code.broadcastConstant(64, scratch, Float32Array.of(1 / most));
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
    const { code, work, chunkKeys } = this;
    const { headDim } = this.form.shape;
    const { blockTokens } = this.form;
    const most = Math.min(blockTokens, chunkKeys) / 16;
    const vectors = [4, 2].find((count) => count * rows <= 24 && most % count === 0) ?? 1;
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
      code.load(64, registers.a, at(r8, 64 * vector));
      for (let row = 0; row < rows; row++) {
        const register = sum(row, vector);
        code.unary(64, 'cvtdq2ps', register, register);
        code.binary(64, 'mulps', register, register, registers.a);
        code.binaryBroadcast('mulps', register, register, at(rsi, work.querySteps + 4 * row));
        code.store(64, at(r9, work.scores + row * chunkKeys * 4 + vector * 64), register);
      }
      // Steps of values that are not there yet may be anything; weights are zero there, and so must products be.
      code.load(64, registers.a, at(r8, 4 * blockTokens + 64 * vector));
      code.binary(64, 'pxor', registers.b, registers.b, registers.b);
      code.binary(64, 'maxps', registers.a, registers.a, registers.b);
      code.broadcastConstant(64, registers.b, Float32Array.of(1e30));
      code.binary(64, 'minps', registers.a, registers.a, registers.b);
      code.store(64, at(r9, work.valueSteps + vector * 64), registers.a);
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

  protected override weights(vectors: number): void {
    const { code, work, chunkKeys } = this;
    const [largest, total, scratch, inverse, low, lowBits] = [16, 17, 18, 19, 20, 21];
    // The row's index is what r9 is past the ends, in fours.
    code.copy(r11, r9);
    code.subtractRegister(r11, rsi);
    code.subtract(r11, work.ends);
    code.copy(r15, r11);
    code.multiply(r15, r15, chunkKeys / 4);
    code.addRegister(r15, rsi);
    for (let i = 0; i < vectors; i++) {
      code.binary(64, 'mulps', i, i, at(rsi, work.valueSteps + 64 * i));
      if (i === 0) code.move(64, largest, i);
      else code.binary(64, 'maxps', largest, largest, i);
    }
    emitEverywhere(code, 64, 'maxps', largest, scratch);
    code.addRegister(r11, rsi);
    code.copy(rax, rsi);
    code.copy(rsi, r11);
    this.#steps(largest, inverse, scratch, mostWeight, work.weightSteps);
    code.copy(rsi, rax);
    code.broadcastConstant(64, lowBits, Int32Array.of(127));
    for (let i = 0; i < vectors; i++) {
      code.binary(64, 'mulps', i, i, inverse);
      code.unary(64, 'cvtps2dq', i, i);
      if (i === 0) code.move(64, total, i);
      else code.binary(64, 'paddd', total, total, i);
      code.binary(64, 'pand', low, i, lowBits);
      code.storeLowBytes(at(r15, work.lowWeights + 16 * i), low);
      code.shiftDwordsRight(64, i, i, weightBits / 2);
      code.storeLowBytes(at(r15, work.highWeights + 16 * i), i);
    }
    code.copy(rsi, r11);
    this.#centre(total, scratch, work.weightCentres);
    code.copy(rsi, rax);
  }

  protected override values(rows: number): void {
    const { code, work, chunkKeys } = this;
    const { headDim } = this.form.shape;
    const high = (row: number): number => row;
    const low = (row: number): number => tileRows + row;
    for (let column = 0; column < headDim; column += 16) {
      for (let row = 0; row < rows; row++) {
        code.binary(64, 'pxor', high(row), high(row), high(row));
        code.broadcast(64, low(row), at(rsi, work.weightCentres + 4 * row));
      }
      code.broadcastConstant(64, registers.sign, signs);
      this.spans(() => {
        // rcx is a multiple of 4: bytes before a token are headDim times its place.
        code.copy(rax, rcx);
        code.multiply(rax, rax, headDim);
        code.addRegister(rax, rdx);
        code.add(rax, this.head.keys + column * 4);
        code.copy(r11, rbx);
        code.addRegister(r11, rsi);
        code.add(rbp, 3);
        code.shiftRight(rbp, 2);
        const next = new Label();
        code.bind(next);
        code.binary(64, 'pxor', registers.vector, registers.sign, at(rax));
        for (let row = 0; row < rows; row++) {
          const place = row * chunkKeys;
          code.binaryBroadcast('pdpbusd', high(row), registers.vector, at(r11, work.highWeights + place));
          code.binaryBroadcast('pdpbusd', low(row), registers.vector, at(r11, work.lowWeights + place));
        }
        code.add(rax, headDim * 4);
        code.add(r11, 4);
        code.subtract(rbp, 1);
        code.jumpIf('notEqual', next);
      });
      for (let row = 0; row < rows; row++) {
        const place = at(rsi, work.outputs + (row * headDim + column) * 4);
        code.shiftDwordsLeft(64, high(row), high(row), weightBits / 2);
        code.binary(64, 'paddd', low(row), low(row), high(row));
        code.unary(64, 'cvtdq2ps', low(row), low(row));
        code.load(64, registers.a, place);
        code.binaryBroadcast('fmadd231ps', registers.a, low(row), at(rsi, work.weightSteps + 4 * row));
        code.store(64, place, registers.a);
      }
    }
  }
}
