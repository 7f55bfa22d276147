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

/** Cephes' polynomials (expf and exp2f), the highest power first. */
const naturalCoefficients = [
  1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
];
const binaryCoefficients = [
  1.5353362e-4, 1.33988744e-3, 9.61843736e-3, 5.55033247e-2, 2.402264791e-1, 6.931472028e-1, 1,
];

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

/** x, at most 127, becomes 2 to the x; 0 where that is no normal float. */
export function emitBinaryExponential(code: Assembler, width: 32 | 64, x: number, [n, p, c]: Scratch): void {
  constantsOf(code, width)(c, width === 64 ? -152 : -126);
  code.binary(width, 'maxps', x, x, c);
  code.round(width, n, x);
  code.binary(width, 'subps', x, x, n);
  emitPolynomial(code, width, binaryCoefficients, x, [p, c]);
  code.move(width, x, p);
  emitScale(code, width, x, [n, c]);
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
