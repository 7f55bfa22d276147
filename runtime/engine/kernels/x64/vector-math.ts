/** Pieces of code that several kernels need: a vector's registers enter, instructions leave. */
import type { Assembler, Width } from './assembler.ts';
import type { Binary } from './encodings.ts';

/** Every place becomes the result of all. */
export function emitEverywhere(
  code: Assembler,
  width: 32 | 64,
  name: Extract<Binary, 'maxps' | 'addps' | 'paddd'>,
  register: number,
  scratch: number,
): void {
  if (width === 64) {
    for (const order of [0x4e, 0xb1]) {
      code.shuffleLanes(scratch, register, register, order);
      code.binary(64, name, register, register, scratch);
    }
  } else {
    code.permuteLanes(scratch, register, register, 1);
    code.binary(32, name, register, register, scratch);
  }
  for (const order of [0x4e, 0xb1]) {
    code.permuteFloats(width, scratch, register, order);
    code.binary(width, name, register, register, scratch);
  }
}

/** Cephes' polynomial (expf), the highest power first. */
const naturalCoefficients = [
  1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
];
/** Minimax polynomials of 2 to the x from -0.5 to 0.5, exact at 0: errors of 9e-8 and of 1e-4 of the result. */
const binaryCoefficients = {
  fine: [0.001326472744, 0.009671512927, 0.05550733745, 0.2402224208, 0.6931469776, 1],
  coarse: [0.05500893271, 0.2422109767, 0.6932829289, 1],
} as const;
/** A minimax polynomial of the binary logarithm from 1 to 2: an error of 9e-5. */
const logarithmCoefficients = [-0.08161581075, 0.645142465, -2.120675557, 4.070091403, -2.512854914];

/** Three registers that are overwritten. */
type Scratch = readonly [number, number, number];

/** x, at most 87, becomes e to the x; 0 where that is no normal float. */
export function emitExponential(code: Assembler, width: 32 | 64, x: number, [n, p, c]: Scratch): void {
  const constant = constantsOf(code, width);
  constant(c, width === 64 ? -105 : -87);
  code.binary(width, 'maxps', x, x, c);
  constant(c, Math.LOG2E);
  code.binary(width, 'mulps', n, x, c);
  code.round(width, n, n);
  constant(c, 0.693359375);
  code.binary(width, 'fnmadd231ps', x, n, c);
  constant(c, -2.1219444e-4);
  code.binary(width, 'fnmadd231ps', x, n, c);
  emitPolynomial(code, width, naturalCoefficients, x, [p, c]);
  // 1 + x + x * x * p
  code.binary(width, 'mulps', p, p, x);
  code.binary(width, 'fmadd213ps', p, x, x);
  constant(c, 1);
  code.binary(width, 'addps', x, p, c);
  emitScale(code, width, x, [n, c]);
}

/** 2 to the x, of vectors of a width, with its constants in registers from `first` on. */
export class BinaryExponential {
  readonly #code: Assembler;
  readonly #width: 32 | 64;
  readonly #first: number;
  readonly #coefficients: readonly number[];

  /** The result is `scale` times as large; coarse: with an error of 1e-4. */
  constructor(
    code: Assembler,
    width: 32 | 64,
    first: number,
    {
      precision = 'fine',
      scale = 1,
    }: { readonly precision?: 'fine' | 'coarse'; readonly scale?: number } = {},
  ) {
    this.#code = code;
    this.#width = width;
    this.#first = first;
    this.#coefficients = binaryCoefficients[precision].map((coefficient) => coefficient * scale);
  }

  /** Fills 6 registers, 9 of vectors of 32 bytes. */
  emitConstants(): void {
    const least = this.#width === 64 ? [] : [-126, 2e-38, 0];
    for (const [index, value] of [...this.#coefficients, ...least].entries()) {
      this.#code.broadcastConstant(this.#width, this.#first + index, Float32Array.of(value));
    }
  }

  /** x, at most 127, becomes 2 to the x; 0 where that is no normal float. n and p are overwritten. */
  emit(x: number, n: number, p: number): void {
    const code = this.#code;
    const width = this.#width;
    const [least, nothing, zero] = [0, 1, 2].map((i) => this.#first + this.#coefficients.length + i) as [
      number,
      number,
      number,
    ];
    if (width === 32) code.binary(32, 'maxps', x, x, least);
    code.round(width, n, x);
    code.binary(width, 'subps', x, x, n);
    code.move(width, p, this.#first);
    for (let i = 1; i < this.#coefficients.length; i++) {
      code.binary(width, 'fmadd213ps', p, x, this.#first + i);
    }
    if (width === 64) {
      code.binary(64, 'scalefps', x, p, n);
      return;
    }
    code.unary(32, 'cvtps2dq', n, n);
    code.shiftDwordsLeft(32, n, n, 23);
    code.binary(32, 'paddd', x, p, n);
    // What the least x has become is nothing; of larger values this takes less than they can tell.
    code.binary(32, 'subps', x, x, nothing);
    code.binary(32, 'maxps', x, x, zero);
  }
}

/** The binary logarithm of positive floats, to 9e-5. 64-byte vectors; `to` is not `x`. */
export function emitBinaryLogarithm(
  code: Assembler,
  to: number,
  x: number,
  [p, c]: readonly [number, number],
): void {
  code.mantissa(to, x);
  emitPolynomial(code, 64, logarithmCoefficients, to, [p, c]);
  code.unary(64, 'getexpps', to, x);
  code.binary(64, 'addps', to, to, p);
}

function constantsOf(code: Assembler, width: Width): (to: number, value: number) => void {
  return (to, value) => code.broadcastConstant(width, to, Float32Array.of(value));
}

function emitPolynomial(
  code: Assembler,
  width: 32 | 64,
  [first, ...others]: readonly number[],
  x: number,
  [p, c]: readonly [number, number],
): void {
  const constant = constantsOf(code, width);
  constant(p, first!);
  for (const coefficient of others) {
    constant(c, coefficient);
    code.binary(width, 'fmadd213ps', p, x, c);
  }
}

/** x times 2 to the n. */
function emitScale(code: Assembler, width: 32 | 64, x: number, [n, c]: readonly [number, number]): void {
  if (width === 64) {
    code.binary(64, 'scalefps', x, x, n);
    return;
  }
  code.unary(32, 'cvtps2dq', n, n);
  code.shiftDwordsLeft(32, n, n, 23);
  code.binary(32, 'paddd', x, x, n);
  // What the least x has become is nothing; of larger values this takes less than they can tell.
  constantsOf(code, 32)(c, 2e-38);
  code.binary(32, 'subps', x, x, c);
  code.binary(32, 'pxor', c, c, c);
  code.binary(32, 'maxps', x, x, c);
}
