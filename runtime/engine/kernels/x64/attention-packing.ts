/**
 * Keys and values as products of bfloat16 take them (attention-bfloat16.ts): numbers of pages, float32 or bfloat16, become
 * pairs of what is summed over. A chunk is packed before the first tile of a slice that needs it: keys
 * [headDim / 2][keys of a chunk][2], then values [keys of a chunk / 2][headDim][2]. Where there are other tiles, they find
 * it packed.
 */

import { elementBytes } from '../attention-reference.ts';
import { layOutWork, tileRows } from './attention-form.ts';
import { AttentionSkeleton } from './attention-skeleton.ts';
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
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdx,
  rsi,
} from './general-assembler.ts';

const registers = { order: 29, low: 30, high: 31 } as const;

export abstract class AttentionPacking extends AttentionSkeleton {
  readonly #packed = new Label();

  protected get headDim(): number {
    return this.form.shape.headDim;
  }

  /** Bytes of a chunk's packed keys, which its values follow. */
  protected get keyBytes(): number {
    return this.chunkKeys * this.headDim * 2;
  }

  protected override headStart(): void {
    const { code } = this;
    const several = new Label();
    code.set(rcx, 0);
    code.storeQuadword(this.slot('packed'), rcx);
    // One tile needs each chunk once: it is packed where the last was.
    code.loadQuad(rdx, this.slot('left'));
    code.compare(rdx, tileRows);
    code.jumpIf('belowOrEqual', several);
    code.set(rcx, this.headDim * 4);
    code.bind(several);
    code.storeQuadword(this.slot('packedStep'), rcx);
  }

  /** `to` becomes where the chunk at r12 is packed. */
  protected packedChunk(to: number): void {
    const { code } = this;
    code.copy(to, r12);
    code.multiplyMemory(to, this.slot('packedStep'));
    code.addRegister(to, rsi);
    code.add(to, layOutWork(this.headDim).bytes);
  }

  /** Packs the chunk at r12, up to the slice's end, if it is not. */
  protected pack(): void {
    this.code.call(this.#packed);
  }

  protected override functions(): void {
    super.functions();
    this.code.bind(this.#packed);
    this.#pack();
    this.code.return();
  }

  #pack(): void {
    const { code, chunkKeys } = this;
    const headDim = this.headDim;
    const [done, fill, filled] = [new Label(), new Label(), new Label()];
    code.compareMemory(r12, this.slot('packed'));
    code.jumpIf('below', done);
    code.address(rax, at(r12, chunkKeys));
    code.storeQuadword(this.slot('packed'), rax);
    code.push(r14);
    code.loadQuad(rax, this.slot('entry'));
    code.loadDword(r14, at(rax, 4));
    code.loadDword(rcx, at(rax, 8));
    code.addRegister(r14, rcx);
    code.subtractRegister(r14, r12);
    code.limit(r14, chunkKeys);
    this.loadOrder();
    this.spans(() => {
      this.#packKeys();
      this.#packValues();
    });
    // Values are read in eights of keys.
    this.packedChunk(r10);
    code.add(r10, this.keyBytes);
    code.add(r14, 1);
    code.shiftRight(r14, 1);
    code.multiply(rax, r14, headDim * 4);
    code.addRegister(r10, rax);
    code.binary(64, 'pxor', 0, 0, 0);
    code.bind(fill);
    code.copy(rax, r14);
    code.and(rax, 3);
    code.compare(rax, 0);
    code.jumpIf('equal', filled);
    for (let column = 0; column < headDim; column += 16) code.store(64, at(r10, column * 4), 0);
    code.add(r10, headDim * 4);
    code.add(r14, 1);
    code.jump(fill);
    code.bind(filled);
    code.pop(r14);
    code.bind(done);
  }

  /** Before `loadPairs`: of two vectors one after the other, the words in turn. */
  protected loadOrder(): void {
    const order = Uint16Array.from({ length: 32 }, (_, i) => (i % 2) * 16 + Math.floor(i / 2));
    this.code.loadConstant(64, registers.order, new Uint8Array(order.buffer));
  }

  /**
   * To registers from `to` on, the numbers of two vectors each in turn: those at `first`, and `apart` bytes later; absent:
   * zeros. In the order in which they lie.
   */
  protected loadPairs(to: number, first: readonly Memory[], apart: number | undefined): void {
    const { code } = this;
    const { high, order } = registers;
    const words = this.form.dtype === 'bfloat16';
    const load = (register: number, from: Memory): void => {
      if (words) code.unary(64, 'pmovzxwd', register, from);
      else code.load(64, register, from);
    };
    for (const [i, from] of first.entries()) load(to + i, from);
    if (apart === undefined) code.binary(64, 'pxor', high, high, high);
    for (const [i, { base, displacement }] of first.entries()) {
      if (apart !== undefined) load(high, at(base, displacement + apart));
      if (words) {
        code.shiftDwordsLeft(64, high, high, 16);
        code.binary(64, 'por', to + i, to + i, high);
      } else {
        code.binary(64, 'cvtne2ps2bf16', to + i, high, to + i);
        code.binary(64, 'permw', to + i, order, to + i);
      }
    }
  }

  #packPair(first: Memory, apart: number | undefined, to: Memory): void {
    this.loadPairs(registers.low, [first], apart);
    this.code.store(64, to, registers.low);
  }

  /** A span, as `spans` tells it. */
  #packKeys(): void {
    const { code, chunkKeys } = this;
    const element = elementBytes[this.form.dtype];
    const row = this.form.blockTokens * element;
    this.packedChunk(r8);
    code.copy(rax, rbx);
    code.shiftLeft(rax, 2);
    code.addRegister(r8, rax);
    code.multiply(r9, rcx, element);
    code.addRegister(r9, rdx);
    code.copy(r11, rbp);
    const [vector, pair] = [new Label(), new Label()];
    code.bind(vector);
    code.copy(rax, r8);
    code.copy(r10, r9);
    code.set(r15, this.headDim / 8);
    code.bind(pair);
    for (let i = 0; i < 4; i++) {
      this.#packPair(at(r10, 2 * i * row), row, at(rax, i * chunkKeys * 4));
    }
    code.add(rax, 16 * chunkKeys);
    code.add(r10, 8 * row);
    code.subtract(r15, 1);
    code.jumpIf('notEqual', pair);
    code.add(r8, 64);
    code.add(r9, 16 * element);
    code.subtract(r11, 16);
    code.jumpIf('above', vector);
  }

  #packValues(): void {
    const { code } = this;
    const headDim = this.headDim;
    const element = elementBytes[this.form.dtype];
    this.packedChunk(r8);
    code.multiply(rax, rbx, headDim * 2);
    code.addRegister(r8, rax);
    code.add(r8, this.keyBytes);
    code.multiply(r9, rcx, headDim * element);
    code.addRegister(r9, rdx);
    code.add(r9, this.head.keys);
    const steps = [
      [r8, headDim * 4],
      [r9, 2 * headDim * element],
    ] as const;
    this.everyPair(steps, (both) => {
      for (let column = 0; column < headDim; column += 16) {
        this.#packPair(at(r9, column * element), both ? headDim * element : undefined, at(r8, column * 4));
      }
    });
  }

  /** The rbp tokens two by two, then what may be left alone; the registers move on by their steps after each two. */
  protected everyPair(
    steps: readonly (readonly [register: number, bytes: number])[],
    each: (both: boolean) => void,
  ): void {
    const { code } = this;
    const [next, last, done] = [new Label(), new Label(), new Label()];
    code.bind(next);
    code.compare(rbp, 2);
    code.jumpIf('below', last);
    each(true);
    for (const [register, bytes] of steps) code.add(register, bytes);
    code.subtract(rbp, 2);
    code.jump(next);
    code.bind(last);
    code.compare(rbp, 0);
    code.jumpIf('equal', done);
    each(false);
    code.bind(done);
  }
}
