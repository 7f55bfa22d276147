/**
 * The block formats of GGUF tensors (ggml's `block_q*` structs) as QuantizedBytes, exactly: no value is rounded again.
 * Bytes of whole rows go in; what leaves has no zero points, since each format's offset is folded into the stored values
 * (symmetric ones) or into the minima (affine ones). Source: ggml-common.h and ggml-quants.c of llama.cpp.
 */
import type { QuantizedBytes } from '../checkpoint.ts';
import { float16Table } from '../half.ts';

export interface BlockFormat {
  /** As `--quantization-encoding` and GGUF's own names have it, lower case. */
  readonly name: string;
  /** ggml's type number. */
  readonly type: number;
  /** Elements and bytes of one stored block. */
  readonly elements: number;
  readonly bytes: number;
  /** What a stored block becomes: bits a value and values a scale. */
  readonly bits: 4 | 8;
  readonly blockSize: number;
  /** Scales, and minima of the stored value 0, are float16 in the file. Default: float32, or made of several numbers. */
  readonly factors?: 'float16';
  /** Converts `count` stored blocks, which lie one after the other, into the arrays of `to`. */
  convert(from: Uint8Array, count: number, to: BlockSink): void;
}

interface BlockSink {
  readonly packed: Uint8Array;
  readonly scales: Float32Array;
  readonly minima: Float32Array;
}

const half = (bytes: Uint8Array, at: number): number => float16Table[bytes[at]! | (bytes[at + 1]! << 8)]!;

/** ggml puts elements 0..15 in the low and 16..31 in the high nibbles; ours are neighbours in a byte. */
function repackNibbles(from: Uint8Array, at: number, to: Uint8Array, out: number): void {
  for (let i = 0; i < 8; i++) {
    const first = from[at + 2 * i]!;
    const second = from[at + 2 * i + 1]!;
    to[out + i] = (first & 15) | ((second & 15) << 4);
    to[out + 8 + i] = (first >> 4) | (second & 0xf0);
  }
}

/** The fifth bits of a Q5_0 or Q5_1 block (a little-endian word, one bit an element) and its nibbles, plus `offset`. */
function unpackFive(
  from: Uint8Array,
  bitsAt: number,
  nibblesAt: number,
  to: Uint8Array,
  out: number,
  offset: number,
): void {
  for (let i = 0; i < 32; i++) {
    const nibble = i < 16 ? from[nibblesAt + i]! & 15 : from[nibblesAt + i - 16]! >> 4;
    const fifth = (from[bitsAt + (i >> 3)]! >> (i & 7)) & 1;
    to[out + i] = nibble + (fifth << 4) + offset;
  }
}

/** Scale and minimum j of the eight in a K-quant's 12 packed bytes, 6 bits each. */
function scaleAndMinimum(from: Uint8Array, at: number, j: number): readonly [number, number] {
  if (j < 4) return [from[at + j]! & 63, from[at + j + 4]! & 63];
  return [
    (from[at + j + 4]! & 15) | ((from[at + j - 4]! >> 6) << 4),
    (from[at + j + 4]! >> 4) | ((from[at + j]! >> 6) << 4),
  ];
}

export const blockFormats: readonly BlockFormat[] = [
  {
    name: 'q4_0',
    type: 2,
    elements: 32,
    bytes: 18,
    bits: 4,
    blockSize: 32,
    factors: 'float16',
    // w = (q - 8) d
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 18) {
        to.scales[b] = half(from, at);
        repackNibbles(from, at + 2, to.packed, b * 16);
      }
    },
  },
  {
    name: 'q4_1',
    type: 3,
    elements: 32,
    bytes: 20,
    bits: 4,
    blockSize: 32,
    factors: 'float16',
    // w = q d + m = (q - 8) d + (m + 8 d)
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 20) {
        const d = half(from, at);
        to.scales[b] = d;
        to.minima[b] = half(from, at + 2) + 8 * d;
        repackNibbles(from, at + 4, to.packed, b * 16);
      }
    },
  },
  {
    name: 'q5_0',
    type: 6,
    elements: 32,
    bytes: 22,
    bits: 8,
    blockSize: 32,
    factors: 'float16',
    // w = (q - 16) d; stored as q + 112, so that the middle is 128
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 22) {
        to.scales[b] = half(from, at);
        unpackFive(from, at + 2, at + 6, to.packed, b * 32, 112);
      }
    },
  },
  {
    name: 'q5_1',
    type: 7,
    elements: 32,
    bytes: 24,
    bits: 8,
    blockSize: 32,
    // w = q d + m = (q - 16) d + (m + 16 d)
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 24) {
        const d = half(from, at);
        to.scales[b] = d;
        to.minima[b] = half(from, at + 2) + 16 * d;
        unpackFive(from, at + 4, at + 8, to.packed, b * 32, 112);
      }
    },
  },
  {
    name: 'q8_0',
    type: 8,
    elements: 32,
    bytes: 34,
    bits: 8,
    blockSize: 32,
    factors: 'float16',
    // w = q d, q signed
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 34) {
        to.scales[b] = half(from, at);
        for (let i = 0; i < 32; i++) to.packed[b * 32 + i] = from[at + 2 + i]! ^ 0x80;
      }
    },
  },
  {
    name: 'q4_k',
    type: 12,
    elements: 256,
    bytes: 144,
    bits: 4,
    blockSize: 32,
    // w = d s q - dmin m, eight (s, m) for 32 values each
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 144) {
        const d = half(from, at);
        const dmin = half(from, at + 2);
        for (let j = 0; j < 8; j++) {
          const [scale, minimum] = scaleAndMinimum(from, at + 4, j);
          const block = b * 8 + j;
          to.scales[block] = d * scale;
          to.minima[block] = 8 * d * scale - dmin * minimum;
          // 64 values share 32 bytes: the first 32 in the low nibbles, the others in the high ones.
          const quants = at + 16 + (j >> 1) * 32;
          for (let i = 0; i < 16; i++) {
            const first = from[quants + 2 * i]!;
            const second = from[quants + 2 * i + 1]!;
            to.packed[block * 16 + i] =
              j & 1 ? (first >> 4) | (second & 0xf0) : (first & 15) | ((second & 15) << 4);
          }
        }
      }
    },
  },
  {
    name: 'q5_k',
    type: 13,
    elements: 256,
    bytes: 176,
    bits: 8,
    blockSize: 32,
    // as q4_k, with a fifth bit: bit j of 32 bytes for sub-block j
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 176) {
        const d = half(from, at);
        const dmin = half(from, at + 2);
        for (let j = 0; j < 8; j++) {
          const [scale, minimum] = scaleAndMinimum(from, at + 4, j);
          const block = b * 8 + j;
          to.scales[block] = d * scale;
          to.minima[block] = 16 * d * scale - dmin * minimum;
          const quants = at + 48 + (j >> 1) * 32;
          for (let i = 0; i < 32; i++) {
            const nibble = j & 1 ? from[quants + i]! >> 4 : from[quants + i]! & 15;
            to.packed[block * 32 + i] = nibble + (((from[at + 16 + i]! >> j) & 1) << 4) + 112;
          }
        }
      }
    },
  },
  {
    name: 'q6_k',
    type: 14,
    elements: 256,
    bytes: 210,
    bits: 8,
    blockSize: 16,
    // w = d s (q - 32), sixteen signed s for 16 values each; stored as q + 96
    convert(from, count, to) {
      for (let b = 0, at = 0; b < count; b++, at += 210) {
        const d = half(from, at + 208);
        for (let s = 0; s < 16; s++) to.scales[b * 16 + s] = d * ((from[at + 192 + s]! << 24) >> 24);
        for (let i = 0; i < 256; i++) {
          const part = i >> 7;
          const within = i & 127;
          const lane = within & 31;
          const quarter = within >> 5;
          const low = from[at + part * 64 + (quarter & 1) * 32 + lane]!;
          const high = from[at + 128 + part * 32 + lane]!;
          const q = (quarter < 2 ? low & 15 : low >> 4) | (((high >> (2 * quarter)) & 3) << 4);
          to.packed[b * 256 + i] = q + 96;
        }
      }
    },
  },
];

const affine = new Set(['q4_1', 'q5_1', 'q4_k', 'q5_k']);

/** Whether the format's blocks have minima. */
export const isAffine = (format: BlockFormat): boolean => affine.has(format.name);

/** `bytes`: `outputs` rows of `inputs` values in `format`; `inputs` is a multiple of the format's elements. */
export function convertBlocks(
  format: BlockFormat,
  bytes: Uint8Array,
  outputs: number,
  inputs: number,
): QuantizedBytes {
  const stored = (outputs * inputs) / format.elements;
  const blocks = (outputs * inputs) / format.blockSize;
  const packed = new Uint8Array((outputs * inputs * format.bits) / 8);
  const scales = new Float32Array(blocks);
  const minima = new Float32Array(isAffine(format) ? blocks : 0);
  format.convert(bytes, stored, { packed, scales, minima });
  return minima.length > 0 ? { packed, scales, minima } : { packed, scales };
}
