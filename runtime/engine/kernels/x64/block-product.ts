/**
 * Machine code of products: rows quantized in blocks (row-blocks.ts) times a matrix in groups of 16 outputs
 * (weights/column-groups.ts). A form enters, code leaves. Blocks are multiplied as integers, exactly; each block's sum is
 * then scaled and added in float32, in the order of the blocks, so that a row's result does not depend on the rows beside
 * it. The form is that of llama.cpp's ggml_vec_dot_q4_1_q8_1, of many outputs and rows at once.
 */
import { factorBytesOf, type GroupForm, groupBytesOf, valueBytesOf } from '../../../weights/column-groups.ts';
import {
  Assembler,
  at,
  Label,
  r8,
  r9,
  r10,
  r11,
  r12,
  r13,
  r14,
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdi,
  rdx,
  rsi,
  rsp,
} from './assembler.ts';
import { emitGroupExpansion } from './group-expansion.ts';
import type { InstructionSet } from './processor.ts';
import { factBytes, facts } from './row-blocks.ts';

/** Places in the array of 64-bit values whose address is the code's argument. */
export const productArguments = {
  /** int8 [rows, blocks * blockSize]. */
  values: 0,
  /** [rows, blocks] of row-blocks.ts. */
  facts: 1,
  weights: 2,
  /** float32, a row every `outBytes` bytes. */
  out: 3,
  outBytes: 4,
  rows: 5,
  groups: 6,
  /** A bit for each output of the last group. */
  lastOutputs: 7,
  /** Room for an expanded group. */
  expanded: 8,
} as const;

export interface ProductForm {
  /** Of the groups in memory. */
  readonly stored: GroupForm;
  /** Of what a group is expanded to (group-expansion.ts) before rows are multiplied with it; null: it is not. */
  readonly wide: GroupForm | null;
}

/** What differs between instruction sets: how many rows a tile has, and how it is computed. */
interface Tiles {
  readonly rows: number;
  /** Constants that stay in registers. */
  begin(): void;
  /** rax becomes the mask of the group's outputs. */
  mask(): void;
  /** Rows at rsi (values) and rdx (facts), group at r8: results to rcx, which moves on by the rows. */
  tile(rows: number): void;
}

export function blockProductCode({ stored, wide }: ProductForm, instructions: InstructionSet): Uint8Array {
  const code = new Assembler();
  const form = wide ?? stored;
  const tiles = instructions === 'avx512' ? new Avx512Tiles(code, form) : new Avx2Tiles(code, form);
  const argument = (name: keyof typeof productArguments) => at(rax, 8 * productArguments[name]);
  const saved = [rbx, rbp, r12, r13, r14, r15];
  const rowBytes = form.blocks * form.blockSize;
  const rowFactBytes = form.blocks * factBytes;
  for (const register of saved) code.push(register);
  code.push(rdi);
  tiles.begin();
  code.copy(rax, rdi);
  // The next group in memory, and the one that is multiplied.
  const next = wide === null ? r8 : r15;
  code.loadQuad(next, argument('weights'));
  if (wide !== null) code.loadQuad(r8, argument('expanded'));
  code.loadQuad(r9, argument('out'));
  code.loadQuad(r11, argument('groups'));
  code.loadQuad(r14, argument('outBytes'));
  const group = new Label();
  code.bind(group);
  if (wide !== null) emitGroupExpansion(code, stored, wide);
  // What the last group lacks is neither read nor written.
  const whole = new Label();
  code.loadQuad(rbx, at(rsp));
  code.set(rax, 0xffff);
  code.compare(r11, 1);
  code.jumpIf('notEqual', whole);
  code.loadQuad(rax, at(rbx, 8 * productArguments.lastOutputs));
  code.bind(whole);
  tiles.mask();
  code.copy(rax, rbx);
  code.loadQuad(rsi, argument('values'));
  code.loadQuad(rdx, argument('facts'));
  code.loadQuad(r10, argument('rows'));
  code.copy(rcx, r9);
  const rows = new Label();
  const rest = new Label();
  const done = new Label();
  code.bind(rows);
  code.compare(r10, tiles.rows);
  code.jumpIf('below', rest);
  tiles.tile(tiles.rows);
  code.add(rsi, tiles.rows * rowBytes);
  code.add(rdx, tiles.rows * rowFactBytes);
  code.subtract(r10, tiles.rows);
  code.jump(rows);
  code.bind(rest);
  const tails = Array.from({ length: tiles.rows - 1 }, () => new Label());
  for (const [index, tail] of tails.entries()) {
    code.compare(r10, index + 1);
    code.jumpIf('equal', tail);
  }
  code.jump(done);
  for (const [index, tail] of tails.entries()) {
    code.bind(tail);
    tiles.tile(index + 1);
    code.jump(done);
  }
  code.bind(done);
  code.add(next, groupBytesOf(stored));
  code.add(r9, 64);
  code.subtract(r11, 1);
  code.jumpIf('notEqual', group);
  code.zeroUpper();
  code.pop(rdi);
  for (const register of saved.reverse()) code.pop(register);
  code.return();
  return code.finish();
}

/** 16 outputs of 12 rows: sums and integer sums in 24 of 32 registers. */
class Avx512Tiles implements Tiles {
  readonly rows = 12;
  readonly #code: Assembler;
  readonly #form: GroupForm;

  constructor(code: Assembler, form: GroupForm) {
    this.#code = code;
    this.#form = form;
  }

  static readonly #registers = {
    low: 24,
    high: 25,
    nibbles: 26,
    scale: 27,
    minimum: 28,
    a: 29,
    b: 30,
  } as const;

  begin(): void {
    this.#code.broadcastConstant(64, Avx512Tiles.#registers.nibbles, Int32Array.of(0x0f0f0f0f));
  }

  mask(): void {
    this.#code.maskFrom(1, rax);
  }

  tile(rows: number): void {
    const code = this.#code;
    const { bits, blockSize, blocks } = this.#form;
    const { low, high, nibbles } = Avx512Tiles.#registers;
    const rowBytes = blocks * blockSize;
    const sum = (row: number): number => row;
    const integers = (row: number): number => rows + row;
    for (let row = 0; row < rows; row++) {
      code.binary(64, 'pxor', sum(row), sum(row), sum(row));
    }
    code.copy(rax, r8);
    code.address(rbx, at(r8, valueBytesOf(this.#form)));
    code.copy(rbp, rsi);
    code.copy(r12, rdx);
    code.set(r13, blocks);
    const block = new Label();
    code.bind(block);
    for (let row = 0; row < rows; row++) {
      code.broadcast(64, integers(row), at(r12, row * blocks * factBytes + facts.centre));
    }
    const inputsAtOnce = 32 / bits;
    for (let step = 0; step < blockSize / inputsAtOnce; step++) {
      const from = at(rax, step * 64);
      const add = (weights: number, offset: number): void => {
        for (let row = 0; row < rows; row++) {
          const values = at(rbp, row * rowBytes + step * inputsAtOnce + offset);
          code.binaryBroadcast('pdpbusd', integers(row), weights, values);
        }
      };
      if (bits === 8) {
        code.load(64, low, from);
        add(low, 0);
        continue;
      }
      code.load(64, high, from);
      code.binary(64, 'pand', low, high, nibbles);
      code.shiftWordsRight(64, high, high, 4);
      code.binary(64, 'pand', high, high, nibbles);
      add(low, 0);
      add(high, 4);
    }
    this.#scale(rows, sum, integers);
    code.add(rax, (blockSize * 16 * bits) / 8);
    code.add(rbx, factorBytesOf(this.#form));
    code.add(rbp, blockSize);
    code.add(r12, factBytes);
    code.subtract(r13, 1);
    code.jumpIf('notEqual', block);
    for (let row = 0; row < rows; row++) {
      code.store(64, at(rcx), sum(row), 1);
      code.addRegister(rcx, r14);
    }
  }

  /** sum += integers * step * scale + minimum * sum of the block's inputs. */
  #scale(rows: number, sum: (row: number) => number, integers: (row: number) => number): void {
    const code = this.#code;
    const { scale, minimum, a } = Avx512Tiles.#registers;
    const { bits, scales, minima, blocks } = this.#form;
    const scaleBytes = scales === 'float16' ? 32 : 64;
    if (scales === 'float16') code.loadHalves(64, scale, at(rbx));
    else code.load(64, scale, at(rbx));
    if (minima === 'float16') {
      code.loadHalves(64, minimum, at(rbx, scaleBytes));
      code.broadcastConstant(64, a, Float32Array.of(2 ** (bits - 1)));
      code.binary(64, 'fmadd231ps', minimum, scale, a);
    } else if (minima === 'float32') code.load(64, minimum, at(rbx, scaleBytes));
    const fact = (row: number, offset: number) => at(r12, row * blocks * factBytes + offset);
    for (let row = 0; row < rows; row++) {
      code.unary(64, 'cvtdq2ps', integers(row), integers(row));
      code.binaryBroadcast('mulps', a, scale, fact(row, facts.step));
      code.binary(64, 'fmadd231ps', sum(row), integers(row), a);
      if (minima !== 'none') code.binaryBroadcast('fmadd231ps', sum(row), minimum, fact(row, facts.sum));
    }
  }
}

/**
 * 8 outputs of 4 rows at a time, twice a group: 16 registers. Products of bytes are added in pairs as 16-bit words: those of
 * 4 bits fit, those of 8 bits once the sign of the weights has been moved to the inputs.
 */
class Avx2Tiles implements Tiles {
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

  tile(rows: number): void {
    this.#half(rows, 0);
    this.#half(rows, 1);
    this.#code.copy(rcx, r15);
  }

  #half(rows: number, half: 0 | 1): void {
    const code = this.#code;
    const { blockSize, blocks, bits } = this.#form;
    const sum = (row: number): number => row;
    for (let row = 0; row < rows; row++) code.binary(32, 'pxor', sum(row), sum(row), sum(row));
    code.address(rax, at(r8, 32 * half));
    code.address(rbx, at(r8, valueBytesOf(this.#form)));
    code.copy(rbp, rsi);
    code.copy(r12, rdx);
    code.set(r13, blocks);
    const block = new Label();
    code.bind(block);
    this.#integers(rows);
    this.#scale(rows, half);
    code.add(rax, (blockSize * 16 * bits) / 8);
    code.add(rbx, factorBytesOf(this.#form));
    code.add(rbp, blockSize);
    code.add(r12, factBytes);
    code.subtract(r13, 1);
    code.jumpIf('notEqual', block);
    this.#store(rows, half);
  }

  #integers(rows: number): void {
    const code = this.#code;
    const { low, high, a, b, nibbles, ones } = Avx2Tiles.#registers;
    const { bits, blockSize, blocks } = this.#form;
    const integers = (row: number): number => 4 + row;
    const values = (row: number, offset: number) => at(rbp, row * blocks * blockSize + offset);
    for (let row = 0; row < rows; row++) code.binary(32, 'pxor', integers(row), integers(row), integers(row));
    const steps = blockSize / (32 / bits);
    for (let step = 0; step < steps; step++) {
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
