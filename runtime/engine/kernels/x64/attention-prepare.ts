/**
 * Machine code of what comes before attention on one layer: queries are rotated and scaled (for powers of two, as
 * attention-skeleton.ts takes them), keys are rotated, keys and values stored in pages (page-rows.ts). A layer's form
 * enters, code leaves.
 */
import assert from 'node:assert';
import { Assembler } from './assembler.ts';
import { type AttentionForm, hasAttentionCode, sliceBytes } from './attention-form.ts';
import {
  at,
  Label,
  type Memory,
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
} from './general-assembler.ts';
import { PageRows } from './page-rows.ts';
import { type InstructionSet, widthOf } from './processor.ts';

/**
 * Places in the array of 64-bit values whose address is the code's argument. Addresses: of the plan (step-message.ts), of the
 * layer's pages, of angles [tokens, rotaryDim] (cosines, then sines), of packed rows of q, k and v, of where queries go (as
 * many rows as q), of `prepareWorkBytes` bytes. The rest is the code's own.
 */
export const prepareArguments = {
  plan: 0,
  pages: 1,
  angles: 2,
  q: 3,
  k: 4,
  v: 5,
  queries: 6,
  work: 7,
} as const;
const slots = { ...prepareArguments, slices: 8, entry: 9 } as const;
export const prepareArgumentWords = Object.keys(slots).length;

/** A vector beyond those that rotating and page-rows.ts change. */
const scaleRegister = 12;

export function prepareWorkBytes({ shape }: AttentionForm): number {
  return PageRows.workBytes(shape.headDim);
}

export function prepareCode(form: AttentionForm, instructions: InstructionSet): Uint8Array {
  return new Preparation(form, instructions).finish();
}

/** Floats [from, end) of a head in vectors, the last of which may be a part of one: its mask has a number. */
class Stretch {
  readonly #code: Assembler;
  readonly #width: 32 | 64;
  readonly #mask: 1 | 2;
  readonly #tail: number;
  /** Of each vector. */
  readonly bytes: readonly number[];

  constructor(code: Assembler, width: 32 | 64, from: number, end: number, mask: 1 | 2) {
    this.#code = code;
    this.#width = width;
    this.#mask = mask;
    const lanes = width / 4;
    this.#tail = (end - from) % lanes;
    this.bytes = Array.from({ length: Math.ceil((end - from) / lanes) }, (_, i) => (from + i * lanes) * 4);
  }

  /** In the new form a mask register, in the old one a vector. */
  get #register(): number {
    return this.#width === 64 ? this.#mask : 13 + this.#mask;
  }

  /** Changes rax. */
  emitMask(): void {
    const code = this.#code;
    if (this.#tail === 0) return;
    if (this.#width === 64) {
      code.set(rax, 2 ** this.#tail - 1);
      code.maskFrom(this.#register, rax);
    } else {
      const lanes = Int32Array.from({ length: 8 }, (_, lane) => (lane < this.#tail ? -1 : 0));
      code.loadConstant(32, this.#register, new Uint8Array(lanes.buffer));
    }
  }

  #whole(byte: number): boolean {
    return this.#tail === 0 || byte !== this.bytes.at(-1);
  }

  /** Of the vector at `byte`, what is `offset` bytes after it. */
  load(to: number, base: number, byte: number, offset = 0): void {
    const from = at(base, byte + offset);
    if (this.#whole(byte)) this.#code.load(this.#width, to, from);
    else if (this.#width === 64) this.#code.load(64, to, from, this.#register);
    else this.#code.loadMasked(to, this.#register, from);
  }

  store(base: number, byte: number, from: number, offset = 0): void {
    const to = at(base, byte + offset);
    if (this.#whole(byte)) this.#code.store(this.#width, to, from);
    else if (this.#width === 64) this.#code.store(64, to, from, this.#register);
    else this.#code.storeMasked(to, this.#register, from);
  }
}

class Preparation {
  readonly #code = new Assembler();
  readonly #form: AttentionForm;
  readonly #width: 32 | 64;
  readonly #pages: PageRows;
  /** The first of each pair of floats that is rotated, and what is not rotated. */
  readonly #pairs: Stretch;
  readonly #rest: Stretch;

  constructor(form: AttentionForm, instructions: InstructionSet) {
    assert(hasAttentionCode(form));
    const { headDim, rotaryDim } = form.shape;
    this.#form = form;
    this.#width = widthOf(instructions);
    this.#pages = new PageRows(this.#code, form, instructions);
    this.#pairs = new Stretch(this.#code, this.#width, 0, rotaryDim / 2, 1);
    this.#rest = new Stretch(this.#code, this.#width, rotaryDim, headDim, 2);
  }

  finish(): Uint8Array {
    const code = this.#code;
    const { heads, kvHeads, headDim, rotaryDim, scale } = this.#form.shape;
    const saved = [rbx, rbp, r12, r13, r14, r15];
    code.save(saved);
    this.#pairs.emitMask();
    this.#rest.emitMask();
    code.broadcastConstant(this.#width, scaleRegister, Float32Array.of(scale * Math.LOG2E));
    code.loadQuad(rsi, this.#slot('work'));
    code.loadQuad(rax, this.#slot('plan'));
    code.loadDword(rcx, at(rax));
    code.storeQuadword(this.#slot('slices'), rcx);
    code.add(rax, 4);
    code.storeQuadword(this.#slot('entry'), rax);
    const [slice, row, done] = [new Label(), new Label(), new Label()];
    code.bind(slice);
    code.loadQuad(rcx, this.#slot('slices'));
    code.compare(rcx, 0);
    code.jumpIf('equal', done);
    // Entry: first row, rows, position, where the block table is in the plan.
    code.loadQuad(rax, this.#slot('entry'));
    code.loadDword(r14, at(rax, 4));
    code.loadDword(r13, at(rax, 8));
    code.loadDword(r15, at(rax, 12));
    code.shiftLeft(r15, 2);
    code.addMemory(r15, this.#slot('plan'));
    for (const [register, name, floats] of [
      [r8, 'q', heads * headDim],
      [r9, 'queries', heads * headDim],
      [r10, 'angles', rotaryDim],
      [r11, 'k', kvHeads * headDim],
      [r12, 'v', kvHeads * headDim],
    ] as const) {
      code.loadDword(rcx, at(rax));
      code.multiply(register, rcx, floats * 4);
      code.addMemory(register, this.#slot(name));
    }
    code.bind(row);
    this.#queries();
    this.#keysAndValues();
    code.add(r10, rotaryDim * 4);
    code.add(r13, 1);
    code.subtract(r14, 1);
    code.jumpIf('notEqual', row);
    for (const [name, step] of [
      ['entry', sliceBytes],
      ['slices', -1],
    ] as const) {
      code.loadQuad(rax, this.#slot(name));
      code.add(rax, step);
      code.storeQuadword(this.#slot(name), rax);
    }
    code.jump(slice);
    code.bind(done);
    code.zeroUpper();
    code.restore(saved);
    code.return();
    return code.finish();
  }

  #slot(name: keyof typeof slots): Memory {
    return at(rdi, 8 * slots[name]);
  }

  /** The row's query heads. */
  #queries(): void {
    const code = this.#code;
    const { heads, headDim } = this.#form.shape;
    const head = new Label();
    code.set(rax, heads);
    code.bind(head);
    this.#rotate(r8, r9, scaleRegister);
    code.add(r8, headDim * 4);
    code.add(r9, headDim * 4);
    code.subtract(rax, 1);
    code.jumpIf('notEqual', head);
  }

  /** The row's KV heads, to the page that its position r13 has in the table at r15. */
  #keysAndValues(): void {
    const code = this.#code;
    const { blockTokens, shape } = this.#form;
    const { kvHeads, headDim } = shape;
    code.copy(rax, r13);
    code.shiftRight(rax, Math.log2(blockTokens));
    code.shiftLeft(rax, 2);
    code.addRegister(rax, r15);
    code.loadDword(rbp, at(rax));
    code.multiply(rbp, rbp, kvHeads * this.#pages.head.bytes);
    code.addMemory(rbp, this.#slot('pages'));
    code.copy(rax, r13);
    code.and(rax, blockTokens - 1);
    this.#pages.emitPlaces();
    const head = new Label();
    code.set(rbx, kvHeads);
    code.bind(head);
    this.#rotate(r11, rsi);
    this.#pages.emitHead(r12);
    for (const register of [r11, r12]) code.add(register, headDim * 4);
    for (const register of [rcx, rdx, rbp]) code.add(register, this.#pages.head.bytes);
    code.subtract(rbx, 1);
    code.jumpIf('notEqual', head);
  }

  /** One head, rotated by the angles at r10, and multiplied by a register if there is one. */
  #rotate(from: number, to: number, scale?: number): void {
    const code = this.#code;
    const width = this.#width;
    const half = this.#form.shape.rotaryDim * 2;
    const [x, y, cosines, sines, turned, part] = [0, 1, 2, 3, 4, 5];
    const scaled = (register: number): void => {
      if (scale !== undefined) code.binary(width, 'mulps', register, register, scale);
    };
    for (const byte of this.#pairs.bytes) {
      this.#pairs.load(x, from, byte);
      this.#pairs.load(y, from, byte, half);
      this.#pairs.load(cosines, r10, byte);
      this.#pairs.load(sines, r10, byte, half);
      // Products are rounded before they are added, as the reference does.
      code.binary(width, 'mulps', turned, x, cosines);
      code.binary(width, 'mulps', part, y, sines);
      code.binary(width, 'subps', turned, turned, part);
      code.binary(width, 'mulps', y, y, cosines);
      code.binary(width, 'mulps', x, x, sines);
      code.binary(width, 'addps', y, y, x);
      scaled(turned);
      scaled(y);
      this.#pairs.store(to, byte, turned);
      this.#pairs.store(to, byte, y, half);
    }
    for (const byte of this.#rest.bytes) {
      this.#rest.load(x, from, byte);
      scaled(x);
      this.#rest.store(to, byte, x);
    }
  }
}
