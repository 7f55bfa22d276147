/**
 * Machine code that expands a group of outputs (weights/column-groups.ts) for products with many rows: values in small
 * blocks enter, values of 8 bits in wide blocks leave, which need fewer scales. Each becomes the nearest multiple of 1/127
 * of the largest that its wide block holds, or with 4 bits can hold. AVX-512.
 */
import { factorBytesOf, type GroupForm, valueBytesOf } from '../../../weights/column-groups.ts';
import type { Assembler } from './assembler.ts';
import { at, Label, type Memory, r8, r12, r13, r15, rax, rbp, rbx } from './general-assembler.ts';

/**
 * Inputs that share a scale, of the rows too. Wider blocks cost less and err more, most of all with rows whose outliers
 * then take the steps of more inputs (docs/decisions/2026-11-30-wide-products.md).
 */
const largestWideBlock = 64;
/** Blocks in a wide one, at least: with fewer there is too little to gain. Those of 4 bits also save unpacking. */
const leastJoined = { 4: 2, 8: 3 } as const;

/** What groups of a form expand to; undefined: to nothing that would be faster. */
export function wideFormOf({ bits, blockSize, blocks, twice }: GroupForm): GroupForm | undefined {
  if (twice) return undefined;
  for (let joined = Math.floor(largestWideBlock / blockSize); joined >= leastJoined[bits]; joined--) {
    if (blocks % joined !== 0) continue;
    const size = { blockSize: joined * blockSize, blocks: blocks / joined };
    return { bits: 8, ...size, scales: 'float32', minima: 'none' };
  }
  return undefined;
}

const registers = {
  // Of a block: the scale, and what the value in the middle of those of so many bits stands for.
  scale: 0,
  middle: 1,
  largest: 2,
  inverse: 3,
  // Words of even bytes and of odd ones, of 4 bits the low and the high halves.
  evenLow: 4,
  evenHigh: 5,
  oddLow: 6,
  oddHigh: 7,
  scratch: 8,
  // Least and most of a block's values, less the middle one, as floats: of 4 bits those that there can be.
  least: 9,
  most: 10,
  // Constants.
  values: 16,
  upperBytes: 17,
  upperWords: 18,
  signless: 19,
  tiny: 20,
  centre: 21,
  steps: 22,
  share: 23,
  offset: 24,
} as const;

/** Of the products of words by which values are found; all arithmetic is modulo 2^16. */
const fractionBits = 8;

/** The group at r15 to r8. Overwrites rax, rbx, rbp, r12, r13 and all vectors. */
export function emitGroupExpansion(code: Assembler, form: GroupForm, wide: GroupForm): void {
  const { scale, middle, largest, inverse, scratch, least, most } = registers;
  const { upperWords, signless, tiny, steps, share, offset } = registers;
  const { bits, blockSize } = form;
  const joined = wide.blockSize / blockSize;
  emitConstants(code, bits);
  code.copy(rax, r15);
  code.address(rbx, at(r15, valueBytesOf(form)));
  code.copy(rbp, r8);
  code.address(r12, at(r8, valueBytesOf(wide)));
  code.set(r13, wide.blocks);
  const block = new Label();
  code.bind(block);
  code.move(64, largest, tiny);
  for (let i = 0; i < joined; i++) {
    emitFactors(code, form, i);
    if (bits === 8) emitRange(code, i * blockSize, blockSize);
    for (const end of [least, most]) {
      code.move(64, scratch, middle);
      code.binary(64, 'fmadd231ps', scratch, scale, end);
      code.binary(64, 'pand', scratch, scratch, signless);
      code.binary(64, 'maxps', largest, largest, scratch);
    }
  }
  code.binary(64, 'divps', inverse, steps, largest);
  code.binary(64, 'mulps', largest, largest, share);
  code.store(64, at(r12), largest);
  for (let i = 0; i < joined; i++) {
    emitFactors(code, form, i);
    // Each value times the scale, plus what is left, is that of the wide block and half a step.
    code.binary(64, 'mulps', scale, scale, inverse);
    code.binary(64, 'mulps', middle, middle, inverse);
    code.binary(64, 'addps', middle, middle, offset);
    code.unary(64, 'cvtps2dq', scale, scale);
    code.unary(64, 'cvtps2dq', middle, middle);
    code.shiftDwordsLeft(64, scratch, scale, bits - 1);
    code.binary(64, 'psubd', middle, middle, scratch);
    for (const factor of [scale, middle]) {
      code.shiftDwordsLeft(64, scratch, factor, 16);
      code.select(scratch, factor, upperWords);
      code.move(64, factor, scratch);
    }
    const inputsAtOnce = 32 / bits;
    for (let input = i * blockSize; input < (i + 1) * blockSize; input += inputsAtOnce) {
      const emit = bits === 4 ? emitNibbles : emitBytes;
      emit(code, at(rax, input * 2 * bits), at(rbp, input * 16));
    }
  }
  code.add(rax, wide.blockSize * 2 * bits);
  code.add(rbx, joined * factorBytesOf(form));
  code.add(rbp, wide.blockSize * 16);
  code.add(r12, factorBytesOf(wide));
  code.subtract(r13, 1);
  code.jumpIf('notEqual', block);
}

function emitConstants(code: Assembler, bits: 4 | 8): void {
  const { values, upperBytes, upperWords, signless, tiny, centre, steps, share, offset, least, most } =
    registers;
  const integers = {
    [values]: bits === 4 ? 0x000f000f : 0x00ff00ff,
    [upperBytes]: 0xff00ff00,
    [upperWords]: 0xffff0000,
    [signless]: 0x7fffffff,
  };
  for (const [to, value] of Object.entries(integers)) {
    code.broadcastConstant(64, Number(to), Int32Array.of(value));
  }
  const half = 2 ** (bits - 1);
  const unit = 2 ** fractionBits;
  const floats = {
    [tiny]: 1e-30,
    [centre]: half,
    [steps]: 127 * unit,
    [share]: 1 / 127,
    [offset]: 128.5 * unit,
    [least]: -half,
    [most]: half - 1,
  };
  for (const [to, value] of Object.entries(floats)) {
    code.broadcastConstant(64, Number(to), Float32Array.of(value));
  }
}

/** Of the block that is the i-th after rbx. */
function emitFactors(code: Assembler, form: GroupForm, i: number): void {
  const { scale, middle, centre } = registers;
  const { scales, minima } = form;
  const from = i * factorBytesOf(form);
  const load = (to: number, type: 'float16' | 'float32', offset: number): void => {
    if (type === 'float16') code.loadHalves(64, to, at(rbx, offset));
    else code.load(64, to, at(rbx, offset));
  };
  load(scale, scales, from);
  if (minima === 'none') code.binary(64, 'pxor', middle, middle, middle);
  else load(middle, minima, from + (scales === 'float16' ? 32 : 64));
  if (minima === 'float16') code.binary(64, 'fmadd231ps', middle, scale, centre);
}

/** The least and the most of the bytes of `count` inputs, from the first on. */
function emitRange(code: Assembler, first: number, count: number): void {
  const { least, most, scratch, centre, values } = registers;
  const ends = [
    [least, 'pminub'],
    [most, 'pmaxub'],
  ] as const;
  for (let input = first; input < first + count; input += 4) {
    const from = at(rax, input * 16);
    for (const [end, name] of ends) {
      if (input === first) code.load(64, end, from);
      else code.binary(64, name, end, end, from);
    }
  }
  for (const [end, name] of ends) {
    for (const shift of [16, 8]) {
      code.shiftDwordsRight(64, scratch, end, shift);
      code.binary(64, name, end, end, scratch);
    }
    // The low byte of each dword.
    code.binary(64, 'pand', end, end, values);
    code.shiftDwordsLeft(64, end, end, 16);
    code.shiftDwordsRight(64, end, end, 16);
    code.unary(64, 'cvtdq2ps', end, end);
    code.binary(64, 'subps', end, end, centre);
  }
}

/** 128 values of 4 bits. */
function emitNibbles(code: Assembler, from: Memory, to: Memory): void {
  const { evenLow, evenHigh, oddLow, oddHigh, values } = registers;
  code.load(64, oddHigh, from);
  code.binary(64, 'pand', evenLow, oddHigh, values);
  code.shiftWordsRight(64, evenHigh, oddHigh, 4);
  code.binary(64, 'pand', evenHigh, evenHigh, values);
  code.shiftWordsRight(64, oddLow, oddHigh, 8);
  code.binary(64, 'pand', oddLow, oddLow, values);
  code.shiftWordsRight(64, oddHigh, oddHigh, 12);
  emitScaled(code, evenLow, oddLow, to);
  emitScaled(code, evenHigh, oddHigh, at(to.base, to.displacement + 64));
}

/** 64 values of 8 bits. */
function emitBytes(code: Assembler, from: Memory, to: Memory): void {
  const { evenLow, oddLow, values } = registers;
  code.load(64, oddLow, from);
  code.binary(64, 'pand', evenLow, oddLow, values);
  code.shiftWordsRight(64, oddLow, oddLow, 8);
  emitScaled(code, evenLow, oddLow, to);
}

/** Words become the upper bytes of what they stand for. */
function emitScaled(code: Assembler, even: number, odd: number, to: Memory): void {
  const { scale, middle, upperBytes } = registers;
  for (const words of [even, odd]) {
    code.binary(64, 'pmullw', words, words, scale);
    code.binary(64, 'paddw', words, words, middle);
  }
  code.shiftWordsRight(64, even, even, 8);
  code.select(odd, even, upperBytes);
  code.store(64, to, odd);
}
