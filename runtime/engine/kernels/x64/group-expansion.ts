/**
 * Machine code that expands a group of outputs (weights/column-groups.ts) for products with many rows: values of 4 bits in
 * small blocks enter, values of 8 bits in wide blocks leave, which need fewer scales. Each becomes the nearest multiple of
 * 1/127 of the largest that its wide block may hold. AVX-512.
 */
import { factorBytesOf, type GroupForm, valueBytesOf } from '../../../weights/column-groups.ts';
import { type Assembler, at, Label, type Memory, r8, r12, r13, r15, rax, rbp, rbx } from './assembler.ts';

/**
 * Inputs that share a scale, of the rows too. Wider blocks cost less and err more, most of all with rows whose outliers
 * then take the steps of more inputs; narrower ones gain too little (docs/decisions/2026-11-30-wide-products.md).
 */
const wideBlock = { least: 64, largest: 128 } as const;

/** What groups of a form expand to; undefined: to nothing that would be faster. */
export function wideFormOf({ bits, blockSize, blocks, twice }: GroupForm): GroupForm | undefined {
  if (bits !== 4 || twice) return undefined;
  for (let count = Math.floor(wideBlock.largest / blockSize); count * blockSize >= wideBlock.least; count--) {
    if (blocks % count !== 0) continue;
    return {
      bits: 8,
      blockSize: count * blockSize,
      blocks: blocks / count,
      scales: 'float32',
      minima: 'none',
    };
  }
  return undefined;
}

const registers = {
  scale: 0,
  least: 1,
  most: 2,
  largest: 3,
  inverse: 4,
  // Low and high nibbles of even bytes and of odd ones.
  evenLow: 5,
  evenHigh: 6,
  oddLow: 7,
  oddHigh: 8,
  // Constants.
  nibbles: 16,
  upperBytes: 17,
  upperWords: 18,
  signless: 19,
  tiny: 20,
  range: 21,
  half: 22,
  steps: 23,
  share: 24,
  offset: 25,
} as const;

/** Bits of fractions in the products of words by which values are found. */
const fractionBits = 8;

/** The group at r15 to r8. Overwrites rax, rbx, rbp, r12, r13 and all vectors. */
export function emitGroupExpansion(code: Assembler, form: GroupForm, wide: GroupForm): void {
  const { scale, least, most, largest, inverse } = registers;
  const { nibbles, upperBytes, upperWords, signless, tiny, range, steps, share, offset, half } = registers;
  const each = wide.blockSize / form.blockSize;
  code.broadcastConstant(64, nibbles, Int32Array.of(0x000f000f));
  code.broadcastConstant(64, upperBytes, Int32Array.of(0xff00ff00 | 0));
  code.broadcastConstant(64, upperWords, Int32Array.of(0xffff0000 | 0));
  code.broadcastConstant(64, signless, Int32Array.of(0x7fffffff));
  code.broadcastConstant(64, tiny, Float32Array.of(1e-30));
  code.broadcastConstant(64, range, Float32Array.of(15));
  code.broadcastConstant(64, half, Float32Array.of(8));
  code.broadcastConstant(64, steps, Float32Array.of(127 * 2 ** fractionBits));
  code.broadcastConstant(64, share, Float32Array.of(1 / 127));
  code.broadcastConstant(64, offset, Float32Array.of(128.5 * 2 ** fractionBits));
  code.copy(rax, r15);
  code.address(rbx, at(r15, valueBytesOf(form)));
  code.copy(rbp, r8);
  code.address(r12, at(r8, valueBytesOf(wide)));
  code.set(r13, wide.blocks);
  const block = new Label();
  code.bind(block);
  code.move(64, largest, tiny);
  for (let i = 0; i < each; i++) {
    emitExtremes(code, form, i);
    code.move(64, most, least);
    code.binary(64, 'fmadd231ps', most, scale, range);
    for (const extreme of [least, most]) {
      code.binary(64, 'pand', extreme, extreme, signless);
      code.binary(64, 'maxps', largest, largest, extreme);
    }
  }
  code.binary(64, 'divps', inverse, steps, largest);
  code.binary(64, 'mulps', largest, largest, share);
  code.store(64, at(r12), largest);
  for (let i = 0; i < each; i++) {
    emitExtremes(code, form, i);
    code.binary(64, 'mulps', scale, scale, inverse);
    code.binary(64, 'mulps', least, least, inverse);
    code.binary(64, 'addps', least, least, offset);
    for (const factor of [scale, least]) {
      code.unary(64, 'cvtps2dq', most, factor);
      code.shiftDwordsLeft(64, factor, most, 16);
      code.select(factor, most, upperWords);
    }
    for (let input = 0; input < form.blockSize; input += 8) {
      const from = (i * form.blockSize + input) * 8;
      emitValues(code, at(rax, from), at(rbp, 2 * from));
    }
  }
  code.add(rax, wide.blockSize * 8);
  code.add(rbx, each * factorBytesOf(form));
  code.add(rbp, wide.blockSize * 16);
  code.add(r12, factorBytesOf(wide));
  code.subtract(r13, 1);
  code.jumpIf('notEqual', block);
}

/** The scale and what a value of no bits stands for, of the block that is the i-th after rbx. */
function emitExtremes(code: Assembler, form: GroupForm, i: number): void {
  const { scale, least, half } = registers;
  const { scales, minima } = form;
  const from = i * factorBytesOf(form);
  const load = (to: number, type: 'float16' | 'float32', offset: number): void => {
    if (type === 'float16') code.loadHalves(64, to, at(rbx, offset));
    else code.load(64, to, at(rbx, offset));
  };
  load(scale, scales, from);
  if (minima === 'none') code.binary(64, 'pxor', least, least, least);
  else load(least, minima, from + (scales === 'float16' ? 32 : 64));
  if (minima !== 'float16') code.binary(64, 'fnmadd231ps', least, scale, half);
}

/** 128 values: words times the scale, plus the least, of which the upper bytes stay. */
function emitValues(code: Assembler, from: Memory, to: Memory): void {
  const { scale, least, evenLow, evenHigh, oddLow, oddHigh, nibbles, upperBytes } = registers;
  code.load(64, oddHigh, from);
  code.binary(64, 'pand', evenLow, oddHigh, nibbles);
  code.shiftWordsRight(64, evenHigh, oddHigh, 4);
  code.binary(64, 'pand', evenHigh, evenHigh, nibbles);
  code.shiftWordsRight(64, oddLow, oddHigh, 8);
  code.binary(64, 'pand', oddLow, oddLow, nibbles);
  code.shiftWordsRight(64, oddHigh, oddHigh, 12);
  for (const words of [evenLow, evenHigh, oddLow, oddHigh]) {
    code.binary(64, 'pmullw', words, words, scale);
    code.binary(64, 'paddw', words, words, least);
  }
  for (const [even, odd, offset] of [
    [evenLow, oddLow, 0],
    [evenHigh, oddHigh, 64],
  ] as const) {
    code.shiftWordsRight(64, even, even, 8);
    code.select(odd, even, upperBytes);
    code.store(64, at(to.base, to.displacement + offset), odd);
  }
}
