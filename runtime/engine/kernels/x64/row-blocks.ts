/**
 * Machine code that quantizes rows in blocks: float32 rows enter, int8 values leave and, for each block, what one step
 * stands for, the inputs' sum, and what centring the weights takes off an integer product.
 */
import { Assembler } from './assembler.ts';
import { at, Label, r8, rax, rcx, rdi, rdx, rsi } from './general-assembler.ts';
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
  /** After a row's blocks as many again, for what rounding left of it; their facts hold no sum of inputs. */
  readonly twice: boolean;
}

const blocksOfRow = ({ inputs, blockSize }: RowForm): number => Math.ceil(inputs / blockSize);

/**
 * The code's arguments: float32 [rows, inputs], int8 [rows, blocks * blockSize], facts [rows, blocks], and the number of
 * rows, at least 1, as if it were an address. With `twice` there are two times as many blocks.
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
  if (form.twice) {
    code.add(rsi, blocksOfRow(form) * blockSize);
    code.add(rdx, blocksOfRow(form) * factBytes);
  }
  code.subtract(rcx, 1);
  code.jumpIf('notEqual', row);
  code.zeroUpper();
  code.return();
  return code.finish();
}

/** The smallest largest value that is told from zero. */
const tiny = 1e-30;

interface ConstantRegisters {
  readonly signless: number;
  readonly least: number;
  readonly most: number;
  readonly share: number;
  readonly centre: number;
}

function emitConstants(
  code: Assembler,
  width: 32 | 64,
  { signless, least, most, share, centre }: ConstantRegisters,
  form: RowForm,
): void {
  code.broadcastConstant(width, signless, Int32Array.of(0x7fffffff));
  code.broadcastConstant(width, least, Float32Array.of(tiny));
  code.broadcastConstant(width, most, Float32Array.of(127));
  code.broadcastConstant(width, share, Float32Array.of(1 / 127));
  code.broadcastConstant(width, centre, Int32Array.of(-form.centre));
}

class Avx512Blocks {
  readonly #code: Assembler;
  readonly #form: RowForm;

  constructor(code: Assembler, form: RowForm) {
    this.#code = code;
    this.#form = form;
  }

  static readonly #registers = {
    // Below: the block.
    step: 16,
    sum: 17,
    total: 18,
    inverse: 19,
    scratch: 20,
    signless: 21,
    least: 22,
    most: 23,
    share: 24,
    centre: 25,
  } as const;

  begin(): void {
    emitConstants(this.#code, 64, Avx512Blocks.#registers, this.#form);
  }

  /** The block at rdi, of which `inputs` are there, to rsi and rdx. */
  block(inputs: number): void {
    const code = this.#code;
    const { blockSize, twice } = this.#form;
    for (let i = 0; i < blockSize / 16; i++) this.#load(i, i, inputs);
    this.#quantize(0);
    if (!twice) return;
    // What the values, which have become integers, left of the inputs.
    for (let i = 0; i < blockSize / 16; i++) {
      code.unary(64, 'cvtdq2ps', i, i);
      code.binary(64, 'mulps', i, i, Avx512Blocks.#registers.step);
      this.#load(Avx512Blocks.#registers.scratch, i, inputs);
      code.binary(64, 'subps', i, Avx512Blocks.#registers.scratch, i);
    }
    this.#quantize(blocksOfRow(this.#form));
  }

  /** The i-th sixteen of the block, zeros where there is nothing. */
  #load(to: number, i: number, inputs: number): void {
    const code = this.#code;
    const there = Math.min(16, Math.max(0, inputs - 16 * i));
    if (there === 0) code.binary(64, 'pxor', to, to, to);
    else if (there === 16) code.load(64, to, at(rdi, 64 * i));
    else {
      code.set(rax, (1 << there) - 1);
      code.maskFrom(1, rax);
      code.load(64, to, at(rdi, 64 * i), 1);
    }
  }

  /** The first registers become integers, which go `blocks` blocks after rsi and rdx. */
  #quantize(blocks: number): void {
    const code = this.#code;
    const {
      signless,
      least,
      most,
      share,
      centre,
      step,
      sum,
      total,
      inverse,
      scratch: a,
    } = Avx512Blocks.#registers;
    const { blockSize } = this.#form;
    const count = blockSize / 16;
    for (let i = 0; i < count; i++) {
      code.binary(64, 'pand', i === 0 ? step : a, i, signless);
      if (i > 0) code.binary(64, 'maxps', step, step, a);
      if (i === 0) code.move(64, sum, i);
      else code.binary(64, 'addps', sum, sum, i);
    }
    emitEverywhere(code, 64, 'maxps', step, a);
    emitEverywhere(code, 64, 'addps', sum, a);
    if (blocks > 0) code.binary(64, 'pxor', sum, sum, sum);
    code.binary(64, 'maxps', step, step, least);
    code.binary(64, 'divps', inverse, most, step);
    code.binary(64, 'mulps', step, step, share);
    const fact = (offset: number) => at(rdx, blocks * factBytes + offset);
    code.storeFloatWide(fact(facts.step), step);
    code.storeFloatWide(fact(facts.sum), sum);
    for (let i = 0; i < count; i++) {
      code.binary(64, 'mulps', i, i, inverse);
      code.unary(64, 'cvtps2dq', i, i);
      code.storeLowBytes(at(rsi, blocks * blockSize + 16 * i), i);
      if (i === 0) code.move(64, total, i);
      else code.binary(64, 'paddd', total, total, i);
    }
    emitEverywhere(code, 64, 'paddd', total, a);
    code.binary(64, 'pmulld', total, total, centre);
    code.storeFloatWide(fact(facts.centre), total);
  }
}

class Avx2Blocks {
  readonly #code: Assembler;
  readonly #form: RowForm;

  constructor(code: Assembler, form: RowForm) {
    this.#code = code;
    this.#form = form;
  }

  static readonly #registers = {
    first: { step: 1, inverse: 5 },
    second: { step: 13, inverse: 14 },
    scratch: 3,
    signless: 8,
    least: 9,
    most: 10,
    share: 11,
    centre: 12,
  } as const;

  begin(): void {
    emitConstants(this.#code, 32, Avx2Blocks.#registers, this.#form);
  }

  /** The block at rdi, of which `inputs` are there, to rsi and rdx. */
  block(inputs: number): void {
    const { first } = Avx2Blocks.#registers;
    this.#quantize(first, (to, i) => this.#load(to, i, inputs), 0);
    if (!this.#form.twice) return;
    // What the values left of the inputs.
    const left = (to: number, i: number): boolean => {
      const code = this.#code;
      if (!this.#load(to, i, inputs)) return false;
      const { scratch } = Avx2Blocks.#registers;
      code.binary(32, 'mulps', scratch, to, first.inverse);
      code.unary(32, 'cvtps2dq', scratch, scratch);
      code.unary(32, 'cvtdq2ps', scratch, scratch);
      code.binary(32, 'mulps', scratch, scratch, first.step);
      code.binary(32, 'subps', to, to, scratch);
      return true;
    };
    this.#quantize(Avx2Blocks.#registers.second, left, blocksOfRow(this.#form));
  }

  /** `load` gives the block's eights; the results go `blocks` blocks after rsi and rdx. */
  #quantize(
    { step, inverse }: { readonly step: number; readonly inverse: number },
    load: (to: number, i: number) => boolean,
    blocks: number,
  ): void {
    const code = this.#code;
    const { signless, least, most, share, centre, scratch: a } = Avx2Blocks.#registers;
    const { blockSize } = this.#form;
    const count = blockSize / 8;
    const [x, sum, total] = [0, 2, 4];
    for (const register of [step, sum, total]) code.binary(32, 'pxor', register, register, register);
    for (let i = 0; i < count; i++) {
      if (!load(x, i)) break;
      code.binary(32, 'addps', sum, sum, x);
      code.binary(32, 'pand', x, x, signless);
      code.binary(32, 'maxps', step, step, x);
    }
    emitEverywhere(code, 32, 'maxps', step, a);
    emitEverywhere(code, 32, 'addps', sum, a);
    if (blocks > 0) code.binary(32, 'pxor', sum, sum, sum);
    code.binary(32, 'maxps', step, step, least);
    code.binary(32, 'divps', inverse, most, step);
    code.binary(32, 'mulps', step, step, share);
    const fact = (offset: number) => at(rdx, blocks * factBytes + offset);
    code.storeFloat(fact(facts.step), step);
    code.storeFloat(fact(facts.sum), sum);
    for (let i = 0; i < count; i++) {
      if (load(x, i)) {
        code.binary(32, 'mulps', x, x, inverse);
        code.unary(32, 'cvtps2dq', x, x);
        code.binary(32, 'paddd', total, total, x);
        code.permuteLanes(a, x, x, 1);
        code.binary(16, 'packssdw', x, x, a);
        code.binary(16, 'packsswb', x, x, x);
      } else code.binary(32, 'pxor', x, x, x);
      code.storeQuad(at(rsi, blocks * blockSize + 8 * i), x);
    }
    emitEverywhere(code, 32, 'paddd', total, a);
    code.binary(32, 'pmulld', total, total, centre);
    code.storeFloat(fact(facts.centre), total);
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
