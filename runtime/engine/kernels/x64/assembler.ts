/**
 * Machine code for x86-64 with vectors, as general-assembler.ts. Vector registers are numbers from 0 to 31, in the VEX form
 * to 15.
 */
import assert from 'node:assert';
import { type Binary, binary, type Encoding, encoding, type Unary, unary } from './encodings.ts';
import { GeneralAssembler, Label, type Memory, type Place, rbp } from './general-assembler.ts';

interface Options {
  /** Bytes that one unit of a short displacement counts in the EVEX form. */
  readonly unit?: number;
  readonly broadcast?: boolean;
  /** A mask register: places whose bit is not set stay as they are, or become zero. */
  readonly mask?: number;
  readonly zeroing?: boolean;
  readonly immediate?: number;
}

/** Vectors of 64 bytes are written in the EVEX form, those of 32 and 16 in the VEX form. */
export type Width = 16 | 32 | 64;

export class Assembler extends GeneralAssembler {
  readonly #constants: { readonly label: Label; readonly bytes: Uint8Array }[] = [];

  /** With the constants behind the code. */
  override finish(): Uint8Array {
    for (const { label, bytes } of this.#constants) {
      while (this.length % 64 !== 0) this.emit(0xcc);
      this.bind(label);
      this.emit(...bytes);
    }
    return super.finish();
  }

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
    this.emit(0x40 | (from.base >> 3), 0x0f, 0x18);
    this.emitPlace(2, from, 0);
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
    this.emit(0xc5, 0xf8, 0x77);
  }

  /** A mask register from the low 16 bits of a general one, of the first eight. */
  maskFrom(to: number, from: number): void {
    assert(from < 8);
    this.emit(0xc5, 0xf8, 0x92, 0xc0 | (to << 3) | from);
  }

  /** A constant of 4 bytes, in all places. */
  broadcastConstant(width: Width, to: number, value: Int32Array | Float32Array): void {
    this.#relative(width, encoding(2, 1, 0x18), to, new Uint8Array(value.buffer));
  }

  loadConstant(width: Width, to: number, bytes: Uint8Array): void {
    assert.equal(bytes.length, width);
    this.#relative(width, encoding(1, 0, 0x10), to, bytes);
  }

  // Encoding

  #relative(width: Width, { map, prefix, opcode }: Encoding, to: number, bytes: Uint8Array): void {
    const label = new Label();
    this.#constants.push({ label, bytes });
    this.#prefix(width, { map, prefix, opcode }, to, 0, rbp, {});
    this.emit(opcode, ((to & 7) << 3) | 5);
    this.emitDistance(label);
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
    this.emit(opcode);
    this.emitPlace(register, place, width === 64 ? (options.unit ?? 0) : 1);
    if (options.immediate !== undefined) this.emit(options.immediate);
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
      this.emit(
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
    this.emit(
      0xc4,
      (inverted(register >> 3) << 7) | (1 << 6) | (inverted(low >> 3) << 5) | map,
      (w << 7) | ((~second & 15) << 3) | (width === 32 ? 4 : 0) | prefix,
    );
  }
}

function masked(width: Width, mask: number | undefined): Options {
  return { unit: width, ...(mask === undefined ? {} : { mask }) };
}
