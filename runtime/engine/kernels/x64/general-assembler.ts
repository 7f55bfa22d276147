/**
 * Machine code for x86-64: instructions on general registers enter one by one, bytes leave. Knows encodings (Intel's Software
 * Developer's Manual, volume 2), not what the code computes. Only the instructions that the kernels here use.
 *
 * Registers are numbers, 0 to 15.
 */
import assert from 'node:assert';

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

export class GeneralAssembler {
  readonly #bytes: number[] = [];

  /** The code so far, whose entry is its first byte. */
  finish(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }

  push(register: number): void {
    this.emit(...(register >= 8 ? [0x41] : []), 0x50 | (register & 7));
  }

  pop(register: number): void {
    this.emit(...(register >= 8 ? [0x41] : []), 0x58 | (register & 7));
  }

  /** Pushes registers, for `restore`. */
  save(registers: readonly number[]): void {
    for (const register of registers) this.push(register);
  }

  restore(registers: readonly number[]): void {
    for (const register of registers.toReversed()) this.pop(register);
  }

  /** The register becomes `most` if it was more, without a sign. */
  limit(register: number, most: number): void {
    const within = new Label();
    this.compare(register, most);
    this.jumpIf('belowOrEqual', within);
    this.set(register, most);
    this.bind(within);
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
    this.emit(0xf0, rex, 0x0f, 0xc1);
    this.emitPlace(value, to, 0);
  }

  /** At once for all threads, and what was stored before is visible to those who see it. */
  exchangeDword(to: Memory, value: number): void {
    this.#general(0x87, value, to, 0);
  }

  /** For loops that wait for memory. */
  pause(): void {
    this.emit(0xf3, 0x90);
  }

  /** The low 16 bits. */
  storeWord(to: Memory, from: number): void {
    this.emit(0x66);
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
    this.emitDword(value);
  }

  subtract(to: number, value: number): void {
    this.#general(0x81, 5, to);
    this.emitDword(value);
  }

  compare(left: number, value: number): void {
    this.#general(0x81, 7, left);
    this.emitDword(value);
  }

  and(to: number, value: number): void {
    this.#general(0x81, 4, to);
    this.emitDword(value);
  }

  shiftLeft(to: number, count: number): void {
    this.#general(0xc1, 4, to);
    this.emit(count);
  }

  shiftRight(to: number, count: number): void {
    this.#general(0xc1, 5, to);
    this.emit(count);
  }

  subtractRegister(to: number, from: number): void {
    this.#general(0x29, from, to);
  }

  set(to: number, value: number): void {
    this.#general(0xc7, 0, to);
    this.emitDword(value);
  }

  /** All 64 bits. */
  setQuad(to: number, value: bigint): void {
    this.emit(0x48 | (to >> 3), 0xb8 | (to & 7));
    for (let byte = 0n; byte < 8n; byte++) this.emit(Number((value >> (8n * byte)) & 255n));
  }

  compareMemory(left: number, right: Memory): void {
    this.#general(0x3b, left, right);
  }

  addMemory(to: number, from: Memory): void {
    this.#general(0x03, to, from);
  }

  multiplyMemory(to: number, from: Memory): void {
    const rex = 0x48 | ((to >> 3) << 2) | (from.base >> 3);
    this.emit(rex, 0x0f, 0xaf);
    this.emitPlace(to, from, 0);
  }

  /** to = from * value. */
  multiply(to: number, from: number, value: number): void {
    this.#general(0x69, to, from);
    this.emitDword(value);
  }

  cpuid(): void {
    this.emit(0x0f, 0xa2);
  }

  /** edx:eax = the extended control register that ecx names. */
  readExtendedControl(): void {
    this.emit(0x0f, 0x01, 0xd0);
  }

  bind(label: Label): void {
    assert(label.position === undefined, 'a label is bound once');
    label.position = this.#bytes.length;
    for (const use of label.uses) this.#patch(use, label.position);
  }

  callAddress(register: number): void {
    this.#general(0xff, 2, register, 0);
  }

  call(label: Label): void {
    this.emit(0xe8);
    this.emitDistance(label);
  }

  jump(label: Label): void {
    this.emit(0xe9);
    this.emitDistance(label);
  }

  jumpIf(condition: Condition, label: Label): void {
    this.emit(0x0f, 0x80 | conditionCodes[condition]);
    this.emitDistance(label);
  }

  return(): void {
    this.emit(0xc3);
  }

  // Encoding

  /** How many bytes there are. */
  protected get length(): number {
    return this.#bytes.length;
  }

  protected emit(...bytes: readonly number[]): void {
    this.#bytes.push(...bytes);
  }

  protected emitDword(value: number): void {
    this.emit(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255);
  }

  protected emitDistance(label: Label): void {
    const use = this.#bytes.length;
    this.emitDword(0);
    if (label.position === undefined) label.uses.push(use);
    else this.#patch(use, label.position);
  }

  /** Displacements count from the end of the instruction, which is here the end of the displacement. */
  #patch(use: number, position: number): void {
    const distance = position - (use + 4);
    for (let i = 0; i < 4; i++) this.#bytes[use + i] = (distance >> (8 * i)) & 255;
  }

  #general(opcode: number, register: number, place: Place, w: 0 | 1 = 1): void {
    const base = typeof place === 'number' ? place : place.base;
    const rex = 0x40 | (w << 3) | ((register >> 3) << 2) | (base >> 3);
    this.emit(rex, opcode);
    this.emitPlace(register, place, 0);
  }

  /** `unit`: what a short displacement counts in; 0: there is no short form. */
  protected emitPlace(register: number, place: Place, unit: number): void {
    const field = (register & 7) << 3;
    if (typeof place === 'number') {
      this.emit(0xc0 | field | (place & 7));
      return;
    }
    const { base, displacement } = place;
    assert(Math.abs(displacement) < 2 ** 31, `a displacement of ${displacement}`);
    const short = unit > 0 && displacement % unit === 0 ? displacement / unit : Number.NaN;
    const mode = displacement === 0 && (base & 7) !== rbp ? 0 : Math.abs(short) <= 127 ? 1 : 2;
    this.emit((mode << 6) | field | (base & 7));
    if ((base & 7) === rsp) this.emit(0x24);
    if (mode === 1) this.emit(short & 255);
    else if (mode === 2) this.emitDword(displacement);
  }
}
