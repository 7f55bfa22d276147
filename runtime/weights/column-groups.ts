/**
 * Quantized matrices in the form that the block-product kernels read: outputs in groups of 16, one for each place of a
 * vector. Quantized rows enter, groups leave. Pure; knows layouts, not kernels.
 *
 * A group is, in this order and padded to 64 bytes: the values, then for each block [16] scales and, where there are any,
 * [16] minima. Values are [inputs / step][16 outputs][4 bytes]: a byte of 8 bits holds one input (step 4), a byte of 4
 * bits holds input i in its low and input i + 4 in its high half (step 8). A value q stands for
 * `(q - 2^(bits - 1)) * scale + minimum`; float16 minima are those of q = 0 instead, as files have them.
 */
import assert from 'node:assert';
import type { QuantizedBytes, QuantizedLayout } from './checkpoint.ts';
import { quantizedAt } from './quantized.ts';

export const groupOutputs = 16;

export type FactorType = 'float16' | 'float32';

export interface GroupForm {
  readonly bits: 4 | 8;
  /** Inputs that share a scale: 16 to 128, a power of two. */
  readonly blockSize: number;
  /** Along the inputs; all are whole. */
  readonly blocks: number;
  readonly scales: FactorType;
  readonly minima: FactorType | 'none';
  /** `blocks` are those of the matrix twice, the second time for what rounding left of the rows (block-weight.ts). */
  readonly twice?: boolean;
}

export const largestGroupBlock = 128;

const factorBytes = { none: 0, float16: 2, float32: 4 } as const;
const alignment = 64;

/** Bytes of a group's values. */
export const valueBytesOf = ({ bits, blockSize, blocks }: GroupForm): number =>
  (blocks * blockSize * groupOutputs * bits) / 8;

/** Bytes of one block's scales and minima in a group. */
export const factorBytesOf = ({ scales, minima }: GroupForm): number =>
  groupOutputs * (factorBytes[scales] + factorBytes[minima]);

export const groupBytesOf = (form: GroupForm): number =>
  Math.ceil((valueBytesOf(form) + form.blocks * factorBytesOf(form)) / alignment) * alignment;

export const groupsOf = (outputs: number): number => Math.ceil(outputs / groupOutputs);

/** The narrowest form for what a tensor says of itself. */
export function groupFormOf(
  { zeros, minima, factors = 'float32' }: QuantizedLayout,
  size: Pick<GroupForm, 'bits' | 'blockSize' | 'blocks'>,
  twice = false,
): GroupForm {
  const { bits, blockSize } = size;
  const blocks = twice ? 2 * size.blocks : size.blocks;
  assert(blockSize >= 16 && blockSize <= largestGroupBlock, `blocks of ${blockSize}`);
  // A zero point becomes a minimum, which float16 need not hold.
  const minimaType = zeros ? 'float32' : minima ? factors : 'none';
  return { bits, blockSize, blocks, scales: factors, minima: minimaType, ...(twice ? { twice } : {}) };
}

/** `outputs` rows of whole blocks, without a permutation, to groups; what is missing in the last group is zeros. */
export function packGroups(
  form: GroupForm,
  { packed, scales, zeros, minima }: QuantizedBytes,
  outputs: number,
): Uint8Array {
  const { bits } = form;
  const copies = form.twice ? 2 : 1;
  const blocks = form.blocks / copies;
  const groupBytes = groupBytesOf(form);
  const bytes = new Uint8Array(groupsOf(outputs) * groupBytes);
  const words = new Uint32Array(bytes.buffer);
  const rowWords = valueBytesOf(form) / copies / groupOutputs / 4;
  const source =
    packed.byteOffset % 4 === 0
      ? new Uint32Array(packed.buffer, packed.byteOffset, packed.length >> 2)
      : new Uint32Array(packed.slice().buffer);
  const factors = new FactorWriter(form, bytes);
  const centre = 2 ** (bits - 1);
  const zeroBytes = Math.ceil((blocks * bits) / 8);
  for (let output = 0; output < outputs; output++) {
    const column = output % groupOutputs;
    const group = ((output - column) / groupOutputs) * groupBytes;
    let to = group / 4 + column;
    for (let copy = 0; copy < copies; copy++) {
      for (let word = output * rowWords, end = word + rowWords; word < end; word++, to += groupOutputs) {
        const value = source[word]!;
        words[to] = bits === 8 ? value : interleaved(value);
      }
    }
    for (let block = 0; block < form.blocks; block++) {
      const stored = block % blocks;
      const index = output * blocks + stored;
      const scale = scales[index]!;
      let minimum = minima?.[index] ?? 0;
      if (zeros !== undefined) {
        minimum += (centre - quantizedAt(zeros, output * zeroBytes, stored, bits)) * scale;
      }
      factors.write(group, block, column, scale, minimum);
    }
  }
  return bytes;
}

/** Eight values in the order of their bits: each byte becomes one of the first four, and one of the last above it. */
function interleaved(word: number): number {
  const low = word & 0x0f0f;
  const high = (word >>> 4) & 0x0f0f;
  const lastLow = (word >>> 16) & 0x0f0f;
  const lastHigh = (word >>> 20) & 0x0f0f;
  const even = low | (lastLow << 4);
  const odd = high | (lastHigh << 4);
  // Bytes even0, odd0, even1, odd1.
  return ((even & 255) | ((odd & 255) << 8) | ((even & 0xff00) << 8) | ((odd & 0xff00) << 16)) >>> 0;
}

class FactorWriter {
  readonly #form: GroupForm;
  readonly #halves: Float16Array;
  readonly #floats: Float32Array;
  readonly #start: number;
  readonly #blockBytes: number;
  readonly #scaleBytes: number;
  readonly #centre: number;

  constructor(form: GroupForm, bytes: Uint8Array) {
    this.#form = form;
    this.#halves = new Float16Array(bytes.buffer);
    this.#floats = new Float32Array(bytes.buffer);
    this.#start = valueBytesOf(form);
    this.#blockBytes = factorBytesOf(form);
    this.#scaleBytes = groupOutputs * factorBytes[form.scales];
    this.#centre = 2 ** (form.bits - 1);
  }

  write(group: number, block: number, column: number, scale: number, minimum: number): void {
    const { scales, minima } = this.#form;
    const at = group + this.#start + block * this.#blockBytes;
    this.#put(scales, at, column, scale);
    if (minima === 'none') return;
    const value = minima === 'float16' ? minimum - this.#centre * scale : minimum;
    this.#put(minima, at + this.#scaleBytes, column, value);
  }

  #put(type: FactorType, at: number, column: number, value: number): void {
    if (type === 'float16') this.#halves[at / 2 + column] = value;
    else this.#floats[at / 4 + column] = value;
  }
}

/** The plain reference: [outputs, blocks * blockSize] float32 of groups. Large; for tests. */
export function unpackGroups(form: GroupForm, bytes: Uint8Array, outputs: number): Float32Array {
  const { bits, blockSize, blocks, scales, minima } = form;
  const inputs = blocks * blockSize;
  const dense = new Float32Array(outputs * inputs);
  const halves = new Float16Array(bytes.buffer, bytes.byteOffset);
  const floats = new Float32Array(bytes.buffer, bytes.byteOffset);
  const centre = 2 ** (bits - 1);
  const read = (type: FactorType, at: number, column: number): number =>
    type === 'float16' ? halves[at / 2 + column]! : floats[at / 4 + column]!;
  for (let output = 0; output < outputs; output++) {
    const column = output % groupOutputs;
    const group = ((output - column) / groupOutputs) * groupBytesOf(form);
    for (let input = 0; input < inputs; input++) {
      const step = 32 / bits;
      const within = input % step;
      const byte = bytes[group + (((input - within) / step) * groupOutputs + column) * 4 + (within % 4)]!;
      const q = bits === 8 ? byte : within < 4 ? byte & 15 : byte >> 4;
      const block = Math.floor(input / blockSize);
      const at = group + valueBytesOf(form) + block * factorBytesOf(form);
      const scale = read(scales, at, column);
      let minimum = 0;
      if (minima !== 'none') {
        minimum = read(minima, at + groupOutputs * factorBytes[scales], column);
        if (minima === 'float16') minimum = Math.fround(minimum + centre * scale);
      }
      dense[output * inputs + input] = (q - centre) * scale + minimum;
    }
  }
  return dense;
}
