/**
 * Machine code that stores one token's keys and values of one head in a page (../wasm/lib/pages.ts tells the layouts): a
 * layer's form enters, instructions leave. What is stored has the same bits as what ../wasm/attention.ts stores.
 */

import { elementBytes } from '../attention-reference.ts';
import type { Assembler } from './assembler.ts';
import { attendsInIntegers } from './attention.ts';
import { type AttentionForm, headLayout } from './attention-form.ts';
import { at, type Memory, rax, rbp, rcx, rdx, rsi } from './general-assembler.ts';
import { type InstructionSet, widthOf } from './processor.ts';
import { emitEverywhere } from './vector-math.ts';

/** These vectors, and rax, are changed. */
const [x, y, inverse, largest, scratch, lowByte] = [0, 1, 2, 3, 4, 5];

export class PageRows {
  readonly #code: Assembler;
  readonly #form: AttentionForm;
  readonly #width: 32 | 64;
  readonly #fours: boolean;
  readonly head: ReturnType<typeof headLayout>;

  /** What lies at rsi: a head of keys, then how many bits a byte of a token's values moves up within its four. */
  static workBytes(headDim: number): number {
    return headDim * 4 + 16;
  }

  constructor(code: Assembler, form: AttentionForm, instructions: InstructionSet) {
    this.#code = code;
    this.#form = form;
    this.#width = widthOf(instructions);
    this.#fours = attendsInIntegers(form, instructions);
    this.head = headLayout(form);
  }

  get #shift(): Memory {
    return at(rsi, this.#form.shape.headDim * 4);
  }

  /** From a page's head at rbp and a token's place rax in it: where its keys (rcx), values (rdx) and scales (rbp) go. */
  emitPlaces(): void {
    const code = this.#code;
    const { shape, dtype } = this.#form;
    const element = elementBytes[dtype];
    code.multiply(rcx, rax, this.#fours ? 4 : element);
    code.addRegister(rcx, rbp);
    if (this.#fours) {
      code.copy(rdx, rax);
      code.and(rdx, 3);
      code.shiftLeft(rdx, 3);
      code.storeQuadword(this.#shift, rdx);
      code.copy(rdx, rax);
      code.shiftRight(rdx, 2);
      code.multiply(rdx, rdx, shape.headDim * 4);
    } else code.multiply(rdx, rax, shape.headDim * element);
    code.addRegister(rdx, rbp);
    code.add(rdx, this.head.keys);
    if (dtype !== 'int8') return;
    code.shiftLeft(rax, 2);
    code.addRegister(rbp, rax);
    code.add(rbp, this.head.scales);
  }

  /** Stores the keys at rsi, which are overwritten, and the values at `values`. */
  emitHead(values: number): void {
    const { dtype, blockTokens } = this.#form;
    if (dtype === 'float32') {
      this.#scatter();
      for (const byte of this.#vectors()) {
        this.#code.load(this.#width, x, at(values, byte));
        this.#code.store(this.#width, at(rdx, byte), x);
      }
    } else if (dtype === 'bfloat16') {
      this.#roundKeys();
      this.#scatter();
      this.#roundValues(values);
    } else {
      this.#steps(rsi, at(rbp));
      this.#quantizeKeys();
      this.#scatter();
      this.#steps(values, at(rbp, 4 * blockTokens));
      if (this.#fours) this.#quantizeFours(values);
      else this.#quantizeTo(rdx, values);
    }
  }

  #vectors(width: 16 | 32 | 64 = this.#width): number[] {
    return Array.from({ length: (this.#form.shape.headDim * 4) / width }, (_, i) => i * width);
  }

  /** Dwords at rsi, or what is low in them, to the token's place in each row of keys. */
  #scatter(): void {
    const code = this.#code;
    const { shape, blockTokens, dtype } = this.#form;
    const element = this.#fours ? 4 : elementBytes[dtype];
    const count = this.#fours ? shape.headDim / 4 : shape.headDim;
    for (let i = 0; i < count; i++) {
      const to = at(rcx, i * blockTokens * element);
      code.loadDword(rax, at(rsi, 4 * i));
      if (element === 4) code.storeDword(to, rax);
      else if (element === 2) code.storeWord(to, rax);
      else code.storeByte(to, rax);
    }
  }

  /** The low halves of the register's dwords become what bfloat16 is nearest, ties to even. */
  #round(width: 16 | 32 | 64): void {
    const code = this.#code;
    code.shiftDwordsRight(width, y, x, 16);
    code.broadcastConstant(width, scratch, Int32Array.of(1));
    code.binary(width, 'pand', y, y, scratch);
    code.binary(width, 'paddd', x, x, y);
    code.broadcastConstant(width, scratch, Int32Array.of(0x7fff));
    code.binary(width, 'paddd', x, x, scratch);
    code.shiftDwordsRight(width, x, x, 16);
  }

  #roundKeys(): void {
    for (const byte of this.#vectors()) {
      this.#code.load(this.#width, x, at(rsi, byte));
      this.#round(this.#width);
      this.#code.store(this.#width, at(rsi, byte), x);
    }
  }

  #roundValues(values: number): void {
    const code = this.#code;
    if (this.#width === 64) {
      for (const byte of this.#vectors()) {
        code.load(64, x, at(values, byte));
        this.#round(64);
        code.storeLowWords(at(rdx, byte / 2), x);
      }
      return;
    }
    // Vectors of 16 bytes: wider ones are packed in halves.
    for (const byte of this.#vectors(16)) {
      code.load(16, x, at(values, byte));
      this.#round(16);
      code.binary(16, 'packusdw', x, x, x);
      code.storeQuad(at(rdx, byte / 2), x);
    }
  }

  /** The step of a head of floats, a 127th of its largest, goes to `to`, its inverse to all places of a register. */
  #steps(floats: number, to: Memory): void {
    const code = this.#code;
    const width = this.#width;
    const constant = (value: Int32Array | Float32Array): void =>
      code.broadcastConstant(width, scratch, value);
    constant(Int32Array.of(0x7fffffff));
    for (const byte of this.#vectors()) {
      code.binary(width, 'pand', byte === 0 ? largest : x, scratch, at(floats, byte));
      if (byte > 0) code.binary(width, 'maxps', largest, largest, x);
    }
    emitEverywhere(code, width, 'maxps', largest, scratch);
    constant(Float32Array.of(127));
    code.binary(width, 'divps', largest, largest, scratch);
    code.storeFloat(to, largest);
    // Where all are zero any inverse will do that is a number.
    constant(Float32Array.of(2 ** -126));
    code.binary(width, 'maxps', largest, largest, scratch);
    constant(Float32Array.of(1));
    code.binary(width, 'divps', inverse, scratch, largest);
  }

  /** Keys become integers, bytes where they lie in fours. */
  #quantizeKeys(): void {
    const code = this.#code;
    if (this.#fours) {
      this.#quantizeTo(rsi, rsi);
      return;
    }
    for (const byte of this.#vectors()) {
      this.#integers(this.#width, at(rsi, byte));
      code.store(this.#width, at(rsi, byte), x);
    }
  }

  #integers(width: 16 | 32 | 64, from: Memory): void {
    this.#code.binary(width, 'mulps', x, inverse, from);
    this.#code.unary(width, 'cvtps2dq', x, x);
  }

  /** As bytes, one after the other. */
  #quantizeTo(to: number, floats: number): void {
    const code = this.#code;
    if (this.#width === 64) {
      for (const byte of this.#vectors()) {
        this.#integers(64, at(floats, byte));
        code.storeLowBytes(at(to, byte / 4), x);
      }
      return;
    }
    // Vectors of 16 bytes: wider ones are packed in halves.
    for (const byte of this.#vectors(16)) {
      this.#integers(16, at(floats, byte));
      code.binary(16, 'packssdw', x, x, x);
      code.binary(16, 'packsswb', x, x, x);
      code.storeFloat(at(to, byte / 4), x);
    }
  }

  /** Values become one byte in each dword at rdx; the other three are other tokens'. */
  #quantizeFours(values: number): void {
    const code = this.#code;
    code.broadcastConstant(64, lowByte, Int32Array.of(0xff));
    code.shiftDwordsLeftBy(lowByte, lowByte, this.#shift);
    for (const byte of this.#vectors()) {
      this.#integers(64, at(values, byte));
      code.shiftDwordsLeftBy(x, x, this.#shift);
      code.binary(64, 'pand', x, x, lowByte);
      code.binary(64, 'pandn', y, lowByte, at(rdx, byte));
      code.binary(64, 'por', x, x, y);
      code.store(64, at(rdx, byte), x);
    }
  }
}
