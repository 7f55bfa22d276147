/** Tiles of block-product.ts in AVX2. */
import { factorBytesOf, type GroupForm, valueBytesOf } from '../../../weights/column-groups.ts';
import type { Assembler } from './assembler.ts';
import type { Tiles } from './block-product.ts';
import { at, Label, r8, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdx, rsi, rsp } from './general-assembler.ts';
import type { GroupPrefetch } from './group-prefetch.ts';
import { factBytes, facts } from './row-blocks.ts';

/**
 * 8 outputs of 4 rows at a time, twice a group: 16 registers. Products of bytes are added in pairs as 16-bit words: those of
 * 4 bits fit, those of 8 bits once the sign of the weights has been moved to the inputs.
 */
export class Avx2Tiles implements Tiles {
  readonly rows = 4;
  readonly #code: Assembler;
  readonly #form: GroupForm;

  constructor(code: Assembler, form: GroupForm) {
    this.#code = code;
    this.#form = form;
  }

  // Sums are in 0 to 3, integers in 4 to 7.
  static readonly #registers = {
    low: 8,
    high: 9,
    a: 10,
    b: 11,
    nibbles: 12,
    ones: 13,
    scale: 14,
    minimum: 15,
  } as const;

  begin(): void {
    const code = this.#code;
    const { nibbles, ones } = Avx2Tiles.#registers;
    const { bits } = this.#form;
    code.broadcastConstant(32, nibbles, Int32Array.of(bits === 4 ? 0x0f0f0f0f : 0x80808080 | 0));
    code.broadcastConstant(32, ones, Int32Array.of(0x00010001));
  }

  /** The mask stays in rax; it goes where the tile can find it. */
  mask(): void {
    // Below the stack pointer nothing is called, so nothing is overwritten.
    this.#code.storeDword(at(rsp, -8), rax);
  }

  tile(rows: number, prefetch: GroupPrefetch): void {
    this.#half(rows, 0, prefetch);
    this.#half(rows, 1, null);
    this.#code.copy(rcx, r15);
  }

  #half(rows: number, half: 0 | 1, prefetch: GroupPrefetch | null): void {
    const code = this.#code;
    const { blockSize, blocks, bits } = this.#form;
    const sum = (row: number): number => row;
    for (let row = 0; row < rows; row++) code.binary(32, 'pxor', sum(row), sum(row), sum(row));
    code.address(rax, at(r8, 32 * half));
    code.address(rbx, at(r8, valueBytesOf(this.#form)));
    code.copy(rbp, rsi);
    code.copy(r12, rdx);
    code.set(r13, blocks);
    prefetch?.begin();
    const block = new Label();
    code.bind(block);
    this.#integers(rows, prefetch);
    this.#scale(rows, half);
    code.add(rax, (blockSize * 16 * bits) / 8);
    code.add(rbx, factorBytesOf(this.#form));
    code.add(rbp, blockSize);
    code.add(r12, factBytes);
    prefetch?.endBlock();
    code.subtract(r13, 1);
    code.jumpIf('notEqual', block);
    this.#store(rows, half);
  }

  #integers(rows: number, prefetch: GroupPrefetch | null): void {
    const code = this.#code;
    const { low, high, a, b, nibbles, ones } = Avx2Tiles.#registers;
    const { bits, blockSize, blocks } = this.#form;
    const integers = (row: number): number => 4 + row;
    const values = (row: number, offset: number) => at(rbp, row * blocks * blockSize + offset);
    for (let row = 0; row < rows; row++) code.binary(32, 'pxor', integers(row), integers(row), integers(row));
    const steps = blockSize / (32 / bits);
    for (let step = 0; step < steps; step++) {
      prefetch?.step(step, steps);
      const from = at(rax, step * 64);
      if (bits === 8) {
        // Weights less 128 as magnitudes, their signs with the inputs.
        code.binary(32, 'pxor', high, nibbles, from);
        code.unary(32, 'pabsb', low, high);
        for (let row = 0; row < rows; row++) {
          code.broadcast(32, a, values(row, step * 4));
          code.binary(32, 'psignb', a, a, high);
          code.binary(32, 'pmaddubsw', a, low, a);
          code.binary(32, 'pmaddwd', a, a, ones);
          code.binary(32, 'paddd', integers(row), integers(row), a);
        }
        continue;
      }
      code.load(32, high, from);
      code.binary(32, 'pand', low, high, nibbles);
      code.shiftWordsRight(32, high, high, 4);
      code.binary(32, 'pand', high, high, nibbles);
      for (let row = 0; row < rows; row++) {
        code.broadcast(32, a, values(row, step * 8));
        code.broadcast(32, b, values(row, step * 8 + 4));
        code.binary(32, 'pmaddubsw', a, low, a);
        code.binary(32, 'pmaddubsw', b, high, b);
        code.binary(32, 'paddw', a, a, b);
        code.binary(32, 'pmaddwd', a, a, ones);
        code.binary(32, 'paddd', integers(row), integers(row), a);
      }
    }
  }

  #scale(rows: number, half: 0 | 1): void {
    const code = this.#code;
    const { a, b, scale, minimum } = Avx2Tiles.#registers;
    const { bits, scales, minima, blocks } = this.#form;
    const load = (to: number, type: 'float16' | 'float32', offset: number): void => {
      if (type === 'float16') code.loadHalves(32, to, at(rbx, offset + 16 * half));
      else code.load(32, to, at(rbx, offset + 32 * half));
    };
    load(scale, scales, 0);
    if (minima !== 'none') {
      load(minimum, minima, scales === 'float16' ? 32 : 64);
      if (minima === 'float16') {
        code.broadcastConstant(32, a, Float32Array.of(2 ** (bits - 1)));
        code.binary(32, 'fmadd231ps', minimum, scale, a);
      }
    }
    const fact = (row: number, offset: number) => at(r12, row * blocks * factBytes + offset);
    for (let row = 0; row < rows; row++) {
      const integers = 4 + row;
      // Weights of 8 bits are centred already.
      if (bits === 4) {
        code.broadcast(32, a, fact(row, facts.centre));
        code.binary(32, 'paddd', integers, integers, a);
      }
      code.unary(32, 'cvtdq2ps', integers, integers);
      code.broadcast(32, a, fact(row, facts.step));
      code.binary(32, 'mulps', a, a, scale);
      code.binary(32, 'fmadd231ps', row, integers, a);
      if (minima === 'none') continue;
      code.broadcast(32, b, fact(row, facts.sum));
      code.binary(32, 'fmadd231ps', row, minimum, b);
    }
  }

  /** Places of the last group that are no outputs are neither read nor written: a mask of dwords from the bits. */
  #store(rows: number, half: 0 | 1): void {
    const code = this.#code;
    const { a, b } = Avx2Tiles.#registers;
    const bitOf = Int32Array.from({ length: 8 }, (_, lane) => 1 << (8 * half + lane));
    code.broadcast(32, a, at(rsp, -8));
    code.loadConstant(32, b, new Uint8Array(bitOf.buffer));
    code.binary(32, 'pand', a, a, b);
    code.binary(32, 'pcmpeqd', a, a, b);
    code.copy(r15, rcx);
    for (let row = 0; row < rows; row++) {
      code.storeMasked(at(r15, 32 * half), a, row);
      code.addRegister(r15, r14);
    }
  }
}
