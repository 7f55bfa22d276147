/**
 * Machine code that quantizes rows in blocks: float32 rows enter, int8 values leave and, for each block, what one step
 * stands for, the inputs' sum, and what centring the weights takes off an integer product.
 */
import { Assembler, at, Label, r8, rax, rcx, rdi, rdx, rsi } from './assembler.ts';
import type { InstructionSet } from './processor.ts';
import { emitEverywhere } from './vector-math.ts';

/** Places of a block's facts, in bytes: float32 step and sum, int32 -centre * sum of values. */
export const facts = { step: 0, sum: 4, centre: 8 } as const;
export const factBytes = 16;

export interface RowForm {
  /** Columns of a row of floats; the last block may have more, which count as zeros. */
  readonly inputs: number;
  readonly blockSize: number;
  /** What unsigned weights are centred on: 8 or 128. */
  readonly centre: number;
}

export const blocksOfRow = ({ inputs, blockSize }: Pick<RowForm, 'inputs' | 'blockSize'>): number =>
  Math.ceil(inputs / blockSize);

/**
 * The code's arguments: float32 [rows, inputs], int8 [rows, blocks * blockSize], facts [rows, blocks], and the number of
 * rows, at least 1, as if it were an address.
 */
export function quantizeRowsCode(form: RowForm, instructions: InstructionSet): Uint8Array {
  const code = new Assembler();
  const { inputs, blockSize } = form;
  const whole = Math.floor(inputs / blockSize);
  const rest = inputs - whole * blockSize;
  const quantizer = instructions === 'avx512' ? new Avx512Blocks(code, form) : new Avx2Blocks(code, form);
  quantizer.begin();
  const row = new Label();
  code.bind(row);
  if (whole > 0) {
    code.set(r8, whole);
    const block = new Label();
    code.bind(block);
    quantizer.block(blockSize);
    code.add(rdi, blockSize * 4);
    code.add(rsi, blockSize);
    code.add(rdx, factBytes);
    code.subtract(r8, 1);
    code.jumpIf('notEqual', block);
  }
  if (rest > 0) {
    quantizer.block(rest);
    code.add(rdi, rest * 4);
    code.add(rsi, blockSize);
    code.add(rdx, factBytes);
  }
  code.subtract(rcx, 1);
  code.jumpIf('notEqual', row);
  code.zeroUpper();
  code.return();
  return code.finish();
}

/** The smallest largest value that is told from zero. */
const tiny = 1e-30;

class Avx512Blocks {
  readonly #code: Assembler;
  readonly #form: RowForm;

  constructor(code: Assembler, form: RowForm) {
    this.#code = code;
    this.#form = form;
  }

  static readonly #registers = { signless: 16, least: 17, most: 18, share: 19, centre: 20 } as const;

  begin(): void {
    const code = this.#code;
    const { signless, least, most, share, centre } = Avx512Blocks.#registers;
    code.broadcastConstant(64, signless, Int32Array.of(0x7fffffff));
    code.broadcastConstant(64, least, Float32Array.of(tiny));
    code.broadcastConstant(64, most, Float32Array.of(127));
    code.broadcastConstant(64, share, Float32Array.of(1 / 127));
    code.broadcastConstant(64, centre, Int32Array.of(-this.#form.centre));
  }

  /** The block at rdi, of which `inputs` are there, to rsi and rdx. */
  block(inputs: number): void {
    const code = this.#code;
    const { signless, least, most, share, centre } = Avx512Blocks.#registers;
    const count = this.#form.blockSize / 16;
    const [largest, sum, total, a, inverse] = [8, 9, 10, 11, 12];
    for (let i = 0; i < count; i++) {
      const there = Math.min(16, Math.max(0, inputs - 16 * i));
      if (there === 0) code.binary(64, 'pxor', i, i, i);
      else if (there === 16) code.load(64, i, at(rdi, 64 * i));
      else {
        code.set(rax, (1 << there) - 1);
        code.maskFrom(1, rax);
        code.load(64, i, at(rdi, 64 * i), 1);
      }
      code.binary(64, 'pand', i === 0 ? largest : a, i, signless);
      if (i > 0) code.binary(64, 'maxps', largest, largest, a);
      if (i === 0) code.move(64, sum, i);
      else code.binary(64, 'addps', sum, sum, i);
    }
    emitEverywhere(code, 64, 'maxps', largest, a);
    emitEverywhere(code, 64, 'addps', sum, a);
    code.binary(64, 'maxps', largest, largest, least);
    code.binary(64, 'divps', inverse, most, largest);
    code.binary(64, 'mulps', largest, largest, share);
    code.storeFloat(at(rdx, facts.step), largest);
    code.storeFloat(at(rdx, facts.sum), sum);
    for (let i = 0; i < count; i++) {
      code.binary(64, 'mulps', i, i, inverse);
      code.unary(64, 'cvtps2dq', i, i);
      code.storeLowBytes(at(rsi, 16 * i), i);
      if (i === 0) code.move(64, total, i);
      else code.binary(64, 'paddd', total, total, i);
    }
    emitEverywhere(code, 64, 'paddd', total, a);
    code.binary(64, 'pmulld', total, total, centre);
    code.storeFloat(at(rdx, facts.centre), total);
  }
}

class Avx2Blocks {
  readonly #code: Assembler;
  readonly #form: RowForm;

  constructor(code: Assembler, form: RowForm) {
    this.#code = code;
    this.#form = form;
  }

  static readonly #registers = { signless: 8, least: 9, most: 10, share: 11, centre: 12 } as const;

  begin(): void {
    const code = this.#code;
    const { signless, least, most, share, centre } = Avx2Blocks.#registers;
    code.broadcastConstant(32, signless, Int32Array.of(0x7fffffff));
    code.broadcastConstant(32, least, Float32Array.of(tiny));
    code.broadcastConstant(32, most, Float32Array.of(127));
    code.broadcastConstant(32, share, Float32Array.of(1 / 127));
    code.broadcastConstant(32, centre, Int32Array.of(-this.#form.centre));
  }

  /** The block at rdi, of which `inputs` are there, to rsi and rdx. */
  block(inputs: number): void {
    const code = this.#code;
    const { signless, least, most, share, centre } = Avx2Blocks.#registers;
    const count = this.#form.blockSize / 8;
    const [x, largest, sum, a, total, inverse] = [0, 1, 2, 3, 4, 5];
    for (const register of [largest, sum, total]) code.binary(32, 'pxor', register, register, register);
    for (let i = 0; i < count; i++) {
      if (!this.#load(x, i, inputs)) break;
      code.binary(32, 'addps', sum, sum, x);
      code.binary(32, 'pand', x, x, signless);
      code.binary(32, 'maxps', largest, largest, x);
    }
    emitEverywhere(code, 32, 'maxps', largest, a);
    emitEverywhere(code, 32, 'addps', sum, a);
    code.binary(32, 'maxps', largest, largest, least);
    code.binary(32, 'divps', inverse, most, largest);
    code.binary(32, 'mulps', largest, largest, share);
    code.storeFloat(at(rdx, facts.step), largest);
    code.storeFloat(at(rdx, facts.sum), sum);
    for (let i = 0; i < count; i++) {
      if (this.#load(x, i, inputs)) {
        code.binary(32, 'mulps', x, x, inverse);
        code.unary(32, 'cvtps2dq', x, x);
        code.binary(32, 'paddd', total, total, x);
        code.permuteLanes(a, x, x, 1);
        code.binary(16, 'packssdw', x, x, a);
        code.binary(16, 'packsswb', x, x, x);
      } else code.binary(32, 'pxor', x, x, x);
      code.storeQuad(at(rsi, 8 * i), x);
    }
    emitEverywhere(code, 32, 'paddd', total, a);
    code.binary(32, 'pmulld', total, total, centre);
    code.storeFloat(at(rdx, facts.centre), total);
  }

  /** The i-th eight of the block, zeros where there is nothing; false where there is nothing at all. */
  #load(to: number, i: number, inputs: number): boolean {
    const code = this.#code;
    const there = Math.min(8, inputs - 8 * i);
    if (there <= 0) return false;
    if (there === 8) {
      code.load(32, to, at(rdi, 32 * i));
      return true;
    }
    const mask = Int32Array.from({ length: 8 }, (_, lane) => (lane < there ? -1 : 0));
    code.loadConstant(32, 6, new Uint8Array(mask.buffer));
    code.loadMasked(to, 6, at(rdi, 32 * i));
    return true;
  }
}
