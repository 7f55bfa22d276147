/**
 * Machine code for x86-64: instructions enter one by one, bytes leave. Knows encodings (Intel's Software Developer's
 * Manual, volume 2), not what the code computes. Only the instructions that the kernels here use.
 *
 * Registers are numbers: 0 to 15 for general ones (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, ...), 0 to 31 for vectors.
 */
import assert from 'node:assert';
import { type Binary, binary, type Encoding, encoding, type Unary, unary } from './encodings.ts';

export const [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
export const [r8, r9, r10, r11, r12, r13, r14, r15] = [8, 9, 10, 11, 12, 13, 14, 15] as const;

export interface Memory {
  readonly base: number;
  readonly displacement: number;
}

/** The memory `displacement` bytes after the address in a general register. */
export function at(base: number, displacement = 0): Memory {
  return { base, displacement };
}

export type Place = number | Memory;

interface Options {
  /** Bytes that one unit of a short displacement counts in the EVEX form. */
  readonly unit?: number;
  readonly broadcast?: boolean;
  /** A mask register: places whose bit is not set stay as they are, or become zero. */
  readonly mask?: number;
  readonly zeroing?: boolean;
  readonly immediate?: number;
}

export type Condition = 'below' | 'aboveOrEqual' | 'equal' | 'notEqual' | 'belowOrEqual' | 'above';
const conditionCodes: Readonly<Record<Condition, number>> = {
  below: 0x2,
  aboveOrEqual: 0x3,
  equal: 0x4,
  notEqual: 0x5,
  belowOrEqual: 0x6,
  above: 0x7,
};

export class Label {
  position: number | undefined;
  readonly uses: number[] = [];
}

/** Vectors of 64 bytes are written in the EVEX form, those of 32 and 16 in the VEX form. */
export type Width = 16 | 32 | 64;

export class Assembler {
  readonly #bytes: number[] = [];
  readonly #constants: { readonly label: Label; readonly bytes: Uint8Array }[] = [];

  /** The code, whose entry is its first byte. */
  finish(): Uint8Array {
    for (const { label, bytes } of this.#constants) {
      while (this.#bytes.length % 64 !== 0) this.#bytes.push(0xcc);
      this.bind(label);
      this.#bytes.push(...bytes);
    }
    return Uint8Array.from(this.#bytes);
  }

  // Vectors

  binary(width: Width, name: Binary, to: number, first: number, second: Place): void {
    this.#vector(width, binary[name], to, first, second, { unit: width });
  }

  /** With one float or dword of memory in all places as second source. 64-byte vectors only. */
  binaryBroadcast(name: Binary, to: number, first: number, second: Memory): void {
    this.#vector(64, binary[name], to, first, second, { unit: 4, broadcast: true });
  }

  unary(width: Width, name: Unary, to: number, from: Place): void {
    const unit = name === 'pmovzxwd' ? width / 2 : name === 'pmovsxbd' ? width / 4 : width;
    this.#vector(width, unary[name], to, 0, from, { unit });
  }

  /** A mask register: where the first source's signed dword is greater, of the places in `mask` if there is one. */
  greaterMask(to: number, first: number, second: number, mask = 0): void {
    this.#vector(64, encoding(1, 1, 0x66), to, first, second, { mask });
  }

  load(width: Width, to: number, from: Memory, mask?: number): void {
    this.#vector(width, encoding(1, 0, 0x10), to, 0, from, {
      ...masked(width, mask),
      zeroing: mask !== undefined,
    });
  }

  /** Places outside the mask stay as they are. 64-byte vectors. */
  loadMerging(to: number, from: Memory, mask: number): void {
    this.#vector(64, encoding(1, 0, 0x10), to, 0, from, { unit: 64, mask });
  }

  store(width: Width, to: Memory, from: number, mask?: number): void {
    this.#vector(width, encoding(1, 0, 0x11), from, 0, to, masked(width, mask));
  }

  /** As `load` and `store` of floats, those where the mask vector's dword is negative. 32-byte vectors. */
  loadMasked(to: number, mask: number, from: Memory): void {
    this.#vector(32, encoding(2, 1, 0x2c), to, mask, from, {});
  }

  storeMasked(to: Memory, mask: number, from: number): void {
    this.#vector(32, encoding(2, 1, 0x2e), from, mask, to, {});
  }

  move(width: Width, to: number, from: number): void {
    this.#vector(width, encoding(1, 0, 0x28), to, 0, from, {});
  }

  /** Half as many bytes of float16 as floats. */
  loadHalves(width: Width, to: number, from: Memory): void {
    this.#vector(width, encoding(2, 1, 0x13), to, 0, from, { unit: width / 2 });
  }

  /** A float in all places. */
  broadcast(width: Width, to: number, from: Place): void {
    this.#vector(width, encoding(2, 1, 0x18), to, 0, from, { unit: 4 });
  }

  shiftWordsRight(width: Width, to: number, from: number, count: number): void {
    this.#vector(width, encoding(1, 1, 0x71), 2, to, from, { immediate: count });
  }

  shiftDwordsLeft(width: Width, to: number, from: number, count: number): void {
    this.#vector(width, encoding(1, 1, 0x72), 6, to, from, { immediate: count });
  }

  /** By as many bits as 64 bits of memory say, of which 128 are read. 64-byte vectors. */
  shiftDwordsLeftBy(to: number, from: number, count: Memory): void {
    this.#vector(64, encoding(1, 1, 0xf2), to, from, count, { unit: 16 });
  }

  shiftDwordsRight(width: Width, to: number, from: number, count: number): void {
    this.#vector(width, encoding(1, 1, 0x72), 2, to, from, { immediate: count });
  }

  /** Within 16 bytes: place i gets the float that two bits of `order` name. */
  permuteFloats(width: Width, to: number, from: number, order: number): void {
    this.#vector(width, encoding(3, 1, 0x04), to, 0, from, { immediate: order });
  }

  /** 16-byte lanes of 64-byte vectors: places 0 and 1 from `first`, 2 and 3 from `second`. */
  shuffleLanes(to: number, first: number, second: number, order: number): void {
    this.#vector(64, encoding(3, 1, 0x23), to, first, second, { immediate: order });
  }

  /** 32-byte vectors: the lanes of both sources that `order` names. */
  permuteLanes(to: number, first: number, second: number, order: number): void {
    this.#vector(32, encoding(3, 1, 0x06), to, first, second, { immediate: order });
  }

  /** Bits of `to` where the mask's are set, those of `other` elsewhere. 64-byte vectors. */
  select(to: number, other: number, mask: number): void {
    this.#vector(64, encoding(3, 1, 0x25), to, other, mask, { immediate: 0xe4 });
  }

  /** Asks for the 64 bytes around an address, into the second cache; there need be none. */
  prefetch(from: Memory): void {
    this.#push(0x40 | (from.base >> 3), 0x0f, 0x18);
    this.#place(2, from, 0);
  }

  /** Rounds to the nearest integers, as floats. */
  round(width: Width, to: number, from: number): void {
    if (width === 64) this.#vector(64, encoding(3, 1, 0x08), to, 0, from, { immediate: 8 });
    else this.#vector(width, encoding(3, 1, 0x08), to, 0, from, { immediate: 8 });
  }

  /** A positive float's mantissa, from 1 to 2. */
  mantissa(to: number, from: number): void {
    this.#vector(64, encoding(3, 1, 0x26), to, 0, from, { immediate: 0 });
  }

  /** 16 dwords to 16 bytes, the low ones. */
  storeLowBytes(to: Memory, from: number): void {
    this.#vector(64, encoding(2, 2, 0x31), from, 0, to, { unit: 16 });
  }

  /** 16 dwords to 16 words, the low ones. */
  storeLowWords(to: Memory, from: number): void {
    this.#vector(64, encoding(2, 2, 0x33), from, 0, to, { unit: 32 });
  }

  /** The low 8 bytes. */
  storeQuad(to: Memory, from: number): void {
    this.#vector(16, encoding(1, 1, 0xd6), from, 0, to, {});
  }

  /** The low float. */
  storeFloat(to: Memory, from: number): void {
    this.#vector(16, encoding(1, 2, 0x11), from, 0, to, {});
  }

  /** The low float of any of 32 registers. */
  storeFloatWide(to: Memory, from: number): void {
    this.#vector(64, encoding(1, 2, 0x11), from, 0, to, { unit: 4 });
  }

  /** Clears the upper halves of vectors, for code in the old form that follows. */
  zeroUpper(): void {
    this.#push(0xc5, 0xf8, 0x77);
  }

  /** A mask register from the low 16 bits of a general one, of the first eight. */
  maskFrom(to: number, from: number): void {
    assert(from < 8);
    this.#push(0xc5, 0xf8, 0x92, 0xc0 | (to << 3) | from);
  }

  /** A constant of 4 bytes, in all places. */
  broadcastConstant(width: Width, to: number, value: Int32Array | Float32Array): void {
    this.#relative(width, encoding(2, 1, 0x18), to, new Uint8Array(value.buffer));
  }

  loadConstant(width: Width, to: number, bytes: Uint8Array): void {
    assert.equal(bytes.length, width);
    this.#relative(width, encoding(1, 0, 0x10), to, bytes);
  }

  // General registers, 64 bits

  push(register: number): void {
    this.#push(...(register >= 8 ? [0x41] : []), 0x50 | (register & 7));
  }

  pop(register: number): void {
    this.#push(...(register >= 8 ? [0x41] : []), 0x58 | (register & 7));
  }

  copy(to: number, from: number): void {
    this.#general(0x89, from, to);
  }

  loadQuad(to: number, from: Memory): void {
    this.#general(0x8b, to, from);
  }

  storeQuadword(to: Memory, from: number): void {
    this.#general(0x89, from, to);
  }

  /** Clears the upper half. */
  loadDword(to: number, from: Memory): void {
    this.#general(0x8b, to, from, 0);
  }

  storeDword(to: Memory, from: number): void {
    this.#general(0x89, from, to, 0);
  }

  compareDword(left: number, right: Memory): void {
    this.#general(0x3b, left, right, 0);
  }

  /** At once for all threads: memory += value, and value becomes what it was. */
  lockedExchangeAdd(to: Memory, value: number): void {
    const rex = 0x40 | ((value >> 3) << 2) | (to.base >> 3);
    this.#push(0xf0, rex, 0x0f, 0xc1);
    this.#place(value, to, 0);
  }

  /** At once for all threads, and what was stored before is visible to those who see it. */
  exchangeDword(to: Memory, value: number): void {
    this.#general(0x87, value, to, 0);
  }

  /** For loops that wait for memory. */
  pause(): void {
    this.#push(0xf3, 0x90);
  }

  /** The low 16 bits. */
  storeWord(to: Memory, from: number): void {
    this.#push(0x66);
    this.#general(0x89, from, to, 0);
  }

  /** The low 8 bits. */
  storeByte(to: Memory, from: number): void {
    this.#general(0x88, from, to, 0);
  }

  /** to = the address. */
  address(to: number, from: Memory): void {
    this.#general(0x8d, to, from);
  }

  addRegister(to: number, from: number): void {
    this.#general(0x01, from, to);
  }

  compareRegisters(left: number, right: number): void {
    this.#general(0x39, right, left);
  }

  add(to: number, value: number): void {
    this.#general(0x81, 0, to);
    this.#dword(value);
  }

  subtract(to: number, value: number): void {
    this.#general(0x81, 5, to);
    this.#dword(value);
  }

  compare(left: number, value: number): void {
    this.#general(0x81, 7, left);
    this.#dword(value);
  }

  and(to: number, value: number): void {
    this.#general(0x81, 4, to);
    this.#dword(value);
  }

  shiftLeft(to: number, count: number): void {
    this.#general(0xc1, 4, to);
    this.#push(count);
  }

  shiftRight(to: number, count: number): void {
    this.#general(0xc1, 5, to);
    this.#push(count);
  }

  subtractRegister(to: number, from: number): void {
    this.#general(0x29, from, to);
  }

  set(to: number, value: number): void {
    this.#general(0xc7, 0, to);
    this.#dword(value);
  }

  /** All 64 bits. */
  setQuad(to: number, value: bigint): void {
    this.#push(0x48 | (to >> 3), 0xb8 | (to & 7));
    for (let byte = 0n; byte < 8n; byte++) this.#push(Number((value >> (8n * byte)) & 255n));
  }

  compareMemory(left: number, right: Memory): void {
    this.#general(0x3b, left, right);
  }

  addMemory(to: number, from: Memory): void {
    this.#general(0x03, to, from);
  }

  multiplyMemory(to: number, from: Memory): void {
    const rex = 0x48 | ((to >> 3) << 2) | (from.base >> 3);
    this.#push(rex, 0x0f, 0xaf);
    this.#place(to, from, 0);
  }

  /** to = from * value. */
  multiply(to: number, from: number, value: number): void {
    this.#general(0x69, to, from);
    this.#dword(value);
  }

  cpuid(): void {
    this.#push(0x0f, 0xa2);
  }

  /** edx:eax = the extended control register that ecx names. */
  readExtendedControl(): void {
    this.#push(0x0f, 0x01, 0xd0);
  }

  // Control

  bind(label: Label): void {
    assert(label.position === undefined, 'a label is bound once');
    label.position = this.#bytes.length;
    for (const use of label.uses) this.#patch(use, label.position);
  }

  callAddress(register: number): void {
    this.#general(0xff, 2, register, 0);
  }

  call(label: Label): void {
    this.#push(0xe8);
    this.#use(label);
  }

  jump(label: Label): void {
    this.#push(0xe9);
    this.#use(label);
  }

  jumpIf(condition: Condition, label: Label): void {
    this.#push(0x0f, 0x80 | conditionCodes[condition]);
    this.#use(label);
  }

  return(): void {
    this.#push(0xc3);
  }

  // Encoding

  #push(...bytes: readonly number[]): void {
    this.#bytes.push(...bytes);
  }

  #dword(value: number): void {
    this.#push(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255);
  }

  #use(label: Label): void {
    const use = this.#bytes.length;
    this.#dword(0);
    if (label.position === undefined) label.uses.push(use);
    else this.#patch(use, label.position);
  }

  /** Displacements count from the end of the instruction, which is here the end of the displacement. */
  #patch(use: number, position: number): void {
    const distance = position - (use + 4);
    for (let i = 0; i < 4; i++) this.#bytes[use + i] = (distance >> (8 * i)) & 255;
  }

  #relative(width: Width, { map, prefix, opcode }: Encoding, to: number, bytes: Uint8Array): void {
    const label = new Label();
    this.#constants.push({ label, bytes });
    this.#prefix(width, { map, prefix, opcode }, to, 0, rbp, {});
    this.#push(opcode, ((to & 7) << 3) | 5);
    this.#use(label);
  }

  #general(opcode: number, register: number, place: Place, w: 0 | 1 = 1): void {
    const base = typeof place === 'number' ? place : place.base;
    const rex = 0x40 | (w << 3) | ((register >> 3) << 2) | (base >> 3);
    this.#push(rex, opcode);
    this.#place(register, place, 0);
  }

  #vector(
    width: Width,
    { map, prefix, w, opcode }: Encoding,
    register: number,
    second: number,
    place: Place,
    options: Options,
  ): void {
    this.#prefix(
      width,
      { map, prefix, opcode, ...(w === undefined ? {} : { w }) },
      register,
      second,
      place,
      options,
    );
    this.#push(opcode);
    this.#place(register, place, width === 64 ? (options.unit ?? 0) : 1);
    if (options.immediate !== undefined) this.#push(options.immediate);
  }

  #prefix(
    width: Width,
    { map, prefix, w = 0 }: Encoding,
    register: number,
    second: number,
    place: Place,
    { broadcast, mask = 0, zeroing }: Options,
  ): void {
    const inMemory = typeof place !== 'number';
    const low = inMemory ? place.base : place;
    const inverted = (bit: number): number => (bit & 1) ^ 1;
    if (width === 64) {
      this.#push(
        0x62,
        (inverted(register >> 3) << 7) |
          (inverted(inMemory ? 0 : low >> 4) << 6) |
          (inverted(low >> 3) << 5) |
          (inverted(register >> 4) << 4) |
          map,
        (w << 7) | ((~second & 15) << 3) | 4 | prefix,
        (zeroing ? 0x80 : 0) | (2 << 5) | (broadcast ? 0x10 : 0) | (inverted(second >> 4) << 3) | mask,
      );
      return;
    }
    assert(register < 16 && second < 16 && low < 16 && mask === 0, 'a vector in the VEX form');
    this.#push(
      0xc4,
      (inverted(register >> 3) << 7) | (1 << 6) | (inverted(low >> 3) << 5) | map,
      (w << 7) | ((~second & 15) << 3) | (width === 32 ? 4 : 0) | prefix,
    );
  }

  /** `unit`: what a short displacement counts in; 0: there is no short form. */
  #place(register: number, place: Place, unit: number): void {
    const field = (register & 7) << 3;
    if (typeof place === 'number') {
      this.#push(0xc0 | field | (place & 7));
      return;
    }
    const { base, displacement } = place;
    assert(Math.abs(displacement) < 2 ** 31, `a displacement of ${displacement}`);
    const short = unit > 0 && displacement % unit === 0 ? displacement / unit : Number.NaN;
    const mode = displacement === 0 && (base & 7) !== rbp ? 0 : Math.abs(short) <= 127 ? 1 : 2;
    this.#push((mode << 6) | field | (base & 7));
    if ((base & 7) === rsp) this.#push(0x24);
    if (mode === 1) this.#push(short & 255);
    else if (mode === 2) this.#dword(displacement);
  }
}

function masked(width: Width, mask: number | undefined): Options {
  return { unit: width, ...(mask === undefined ? {} : { mask }) };
}
