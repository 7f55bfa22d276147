/**
 * How instructions on vectors are encoded (Intel's Software Developer's Manual, volume 2): a table. Only those that the
 * kernels here use.
 */

/** A vector instruction: opcode map (1: 0F, 2: 0F38, 3: 0F3A), mandatory prefix (0: none, 1: 66, 2: F3, 3: F2), W, opcode. */
export interface Encoding {
  readonly map: 1 | 2 | 3;
  readonly prefix: 0 | 1 | 2 | 3;
  readonly w?: 0 | 1;
  readonly opcode: number;
}

export const encoding = (map: 1 | 2 | 3, prefix: 0 | 1 | 2 | 3, opcode: number, w: 0 | 1 = 0): Encoding => ({
  map,
  prefix,
  opcode,
  w,
});

/** Three operands: destination, first source, second source (register or memory). */
export const binary = {
  addps: encoding(1, 0, 0x58),
  mulps: encoding(1, 0, 0x59),
  subps: encoding(1, 0, 0x5c),
  minps: encoding(1, 0, 0x5d),
  divps: encoding(1, 0, 0x5e),
  maxps: encoding(1, 0, 0x5f),
  /** Both sources' bits. */
  pand: encoding(1, 1, 0xdb),
  pandn: encoding(1, 1, 0xdf),
  por: encoding(1, 1, 0xeb),
  pxor: encoding(1, 1, 0xef),
  /** All bits where the first source's signed dword is greater; 16- and 32-byte vectors. */
  pcmpgtd: encoding(1, 1, 0x66),
  /** All bits where the dwords are equal; 16- and 32-byte vectors. */
  pcmpeqd: encoding(1, 1, 0x76),
  /** Of unsigned bytes. */
  pminub: encoding(1, 1, 0xda),
  pmaxub: encoding(1, 1, 0xde),
  paddw: encoding(1, 1, 0xfd),
  paddd: encoding(1, 1, 0xfe),
  psubd: encoding(1, 1, 0xfa),
  /** The low words of products of words. */
  pmullw: encoding(1, 1, 0xd5),
  pmulld: encoding(2, 1, 0x40),
  /** Pairs of signed words: their products' sum. */
  pmaddwd: encoding(1, 1, 0xf5),
  /** Unsigned bytes of the first source times signed ones of the second: sums of pairs in words, saturated. */
  pmaddubsw: encoding(2, 1, 0x04),
  psignb: encoding(2, 1, 0x08),
  packssdw: encoding(1, 1, 0x6b),
  packsswb: encoding(1, 1, 0x63),
  /** Within 16 bytes each: dwords, then words, of both sources with as many bits but no sign, saturated. */
  packusdw: encoding(2, 1, 0x2b),
  packuswb: encoding(1, 1, 0x67),
  /** Dwords of the second source, at the places that the first names; 64-byte vectors. */
  permd: encoding(2, 1, 0x36),
  /** Adds to each dword four products of unsigned bytes of the first source and signed ones of the second. */
  pdpbusd: encoding(2, 1, 0x50),
  /** Adds to each float two products of bfloat16; 64-byte vectors, as what follows. */
  dpbf16ps: encoding(2, 2, 0x52),
  /** Floats of the second source, then of the first, as bfloat16. */
  cvtne2ps2bf16: encoding(2, 3, 0x72),
  /** Words of the second source, at the places that the first names. */
  permw: encoding(2, 1, 0x8d, 1),
  /** Adds the product of both sources. */
  fmadd231ps: encoding(2, 1, 0xb8),
  /** The first source times 2 to the floor of the second; 64-byte vectors. */
  scalefps: encoding(2, 1, 0x2c),
  /** Subtracts the product of both sources. */
  fnmadd231ps: encoding(2, 1, 0xbc),
  /** destination = destination * first source + second source. */
  fmadd213ps: encoding(2, 1, 0xa8),
} as const;
export type Binary = keyof typeof binary;

/** Two operands: destination, source. */
export const unary = {
  /** Dwords to floats. */
  cvtdq2ps: encoding(1, 0, 0x5b),
  /** Floats to the nearest dwords. */
  cvtps2dq: encoding(1, 1, 0x5b),
  pabsb: encoding(2, 1, 0x1c),
  /** Unsigned words, of half as many bytes, to dwords. */
  pmovzxwd: encoding(2, 1, 0x33),
  /** Signed bytes, of a quarter as many bytes, to dwords. */
  pmovsxbd: encoding(2, 1, 0x21),
  sqrtps: encoding(1, 0, 0x51),
  /** The exponent, as a float, of a positive float; 64-byte vectors, as what follows. */
  getexpps: encoding(2, 1, 0x42),
  /** About one divided by it, to 14 bits. */
  rcp14ps: encoding(2, 1, 0x4c),
} as const;
export type Unary = keyof typeof unary;
