/**
 * Machine code of products: rows quantized in blocks (row-blocks.ts) times a matrix in groups of 16 outputs
 * (weights/column-groups.ts). A form enters, code leaves. Blocks are multiplied as integers, exactly; each block's sum is
 * then scaled and added in float32, in the order of the blocks, so that a row's result does not depend on the rows beside
 * it. The form is that of llama.cpp's ggml_vec_dot_q4_1_q8_1, of many outputs and rows at once.
 */
import { factorBytesOf, type GroupForm, groupBytesOf, valueBytesOf } from '../../../weights/column-groups.ts';
import { Assembler } from './assembler.ts';
import { Avx2Tiles } from './block-product-avx2.ts';
import {
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
} from './general-assembler.ts';
import { emitGroupExpansion } from './group-expansion.ts';
import { GroupPrefetch } from './group-prefetch.ts';
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
export interface Tiles {
  readonly rows: number;
  /** Constants that stay in registers. */
  begin(): void;
  /** rax becomes the mask of the group's outputs. */
  mask(): void;
  /**
   * Rows at rsi (values) and rdx (facts), group at r8: results to rcx, which moves on by the rows. `prefetch` asks for the
   * groups to come.
   */
  tile(rows: number, prefetch: GroupPrefetch): void;
}

export function blockProductCode({ stored, wide }: ProductForm, instructions: InstructionSet): Uint8Array {
  const code = new Assembler();
  const form = wide ?? stored;
  const tiles = instructions === 'avx512' ? new Avx512Tiles(code, form) : new Avx2Tiles(code, form);
  /** The group in memory; r8 has the one that is multiplied. */
  const group = wide === null ? r8 : r15;
  const prefetch = new GroupPrefetch(code, stored, form.blocks, group);
  const argument = (name: keyof typeof productArguments) => at(rax, 8 * productArguments[name]);
  const saved = [rbx, rbp, r12, r13, r14, r15];
  const rowBytes = form.blocks * form.blockSize;
  const rowFactBytes = form.blocks * factBytes;
  code.save(saved);
  code.push(rdi);
  tiles.begin();
  code.copy(rax, rdi);
  code.loadQuad(group, argument('weights'));
  if (wide !== null) code.loadQuad(r8, argument('expanded'));
  code.loadQuad(r9, argument('out'));
  code.loadQuad(r11, argument('groups'));
  code.loadQuad(r14, argument('outBytes'));
  const next = new Label();
  code.bind(next);
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
  tiles.tile(tiles.rows, prefetch);
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
    tiles.tile(index + 1, prefetch);
    code.jump(done);
  }
  code.bind(done);
  code.add(group, groupBytesOf(stored));
  code.add(r9, 64);
  code.subtract(r11, 1);
  code.jumpIf('notEqual', next);
  code.zeroUpper();
  code.pop(rdi);
  code.restore(saved);
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

  tile(rows: number, prefetch: GroupPrefetch): void {
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
    prefetch.begin();
    const block = new Label();
    code.bind(block);
    for (let row = 0; row < rows; row++) {
      code.broadcast(64, integers(row), at(r12, row * blocks * factBytes + facts.centre));
    }
    const inputsAtOnce = 32 / bits;
    const steps = blockSize / inputsAtOnce;
    for (let step = 0; step < steps; step++) {
      prefetch.step(step, steps);
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
    prefetch.endBlock();
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
