/**
 * Machine code for what is done to rows of floats between products: sums with their RMS norm, gated activations. Sizes
 * enter, code leaves; rows are whole vectors of 16.
 */
import { Assembler } from './assembler.ts';
import { at, Label, r8, r9, rax, rcx, rdi, rdx, rsi } from './general-assembler.ts';
import { type InstructionSet, widthOf } from './processor.ts';
import { word } from './row-gather.ts';
import { emitEverywhere, emitExponential } from './vector-math.ts';

export interface AddNormForm {
  readonly columns: number;
  readonly epsilon: number;
}

/** Loads registers from a node's words (ort/custom-op.ts), whose address is in rdi: inputs, outputs, then the rows. */
function loadPlaces(code: Assembler, places: readonly number[], rows: number): void {
  code.copy(rax, rdi);
  for (const [i, register] of places.entries()) code.loadQuad(register, at(rax, word('places') + 8 * i));
  code.loadQuad(rows, at(rax, word('rows')));
}

/** Where rows of a sum and its norm are: registers that hold addresses, and the one that counts them. */
export const addNormPlaces = { x: rdi, residual: rsi, weight: rdx, sum: rcx, normed: r8, rows: r9 } as const;

/** What a loop over a row's columns adds to `x`, at its places. */
export interface AddedRows {
  /** Registers whose addresses move as `x` does. */
  readonly walked: readonly number[];
  /** Vector `v` holds x at the byte and becomes the sum with what else there is. */
  add(v: number, byte: number): void;
  /** Vector `v` of norms has been stored at the byte of `normed`. */
  stored?(v: number, byte: number): void;
}

/**
 * Sums and norms of at least one row, float32 [rows, columns], at addNormPlaces: sum = x + what is added + residual, normed =
 * sum / sqrt(mean(sum^2) + epsilon) * weight. Addresses end behind the last row but for the weight's; rax is lost.
 */
export function emitAddNorm(
  code: Assembler,
  width: 32 | 64,
  { columns, epsilon }: AddNormForm,
  added: AddedRows = { walked: [], add() {} },
): void {
  const rowBytes = columns * 4;
  const { x, residual, weight, sum, normed, rows } = addNormPlaces;
  const moving = [x, residual, sum, normed, ...added.walked];
  const [v, squares, more, scratch, one] = [0, 1, 2, 3, 4];
  const row = new Label();
  code.bind(row);
  code.binary(width, 'pxor', squares, squares, squares);
  code.binary(width, 'pxor', more, more, more);
  const walk = (each: (byte: number, index: number) => void): void => {
    // Two vectors a turn: columns are a multiple of 16, vectors have 8 or 16.
    const perTurn = rowBytes % (2 * width) === 0 ? 2 : 1;
    const next = new Label();
    code.set(rax, rowBytes / (perTurn * width));
    code.bind(next);
    for (let index = 0; index < perTurn; index++) each(index * width, index);
    for (const place of [...moving, weight]) code.add(place, perTurn * width);
    code.subtract(rax, 1);
    code.jumpIf('notEqual', next);
    for (const place of [...moving, weight]) code.subtract(place, rowBytes);
  };
  walk((byte, index) => {
    code.load(width, v, at(x, byte));
    added.add(v, byte);
    code.binary(width, 'addps', v, v, at(residual, byte));
    code.store(width, at(sum, byte), v);
    code.binary(width, 'fmadd231ps', index === 0 ? squares : more, v, v);
  });
  code.binary(width, 'addps', squares, squares, more);
  emitEverywhere(code, width, 'addps', squares, scratch);
  // 1 / sqrt(mean + epsilon)
  code.broadcastConstant(width, scratch, Float32Array.of(1 / columns));
  code.broadcastConstant(width, one, Float32Array.of(epsilon));
  code.binary(width, 'fmadd213ps', squares, scratch, one);
  code.unary(width, 'sqrtps', squares, squares);
  code.broadcastConstant(width, one, Float32Array.of(1));
  code.binary(width, 'divps', squares, one, squares);
  walk((byte) => {
    code.binary(width, 'mulps', v, squares, at(sum, byte));
    code.binary(width, 'mulps', v, v, at(weight, byte));
    code.store(width, at(normed, byte), v);
    added.stored?.(v, byte);
  });
  for (const place of moving) code.add(place, rowBytes);
  code.subtract(rows, 1);
  code.jumpIf('notEqual', row);
}

/**
 * A node's kernel: x, residual and weight to the norms and the sums, float32 [rows, columns]; the weight is [columns]. The
 * code's argument is the address of the node's words.
 */
export function addNormCode(form: AddNormForm, instructions: InstructionSet): Uint8Array {
  const code = new Assembler();
  const { x, residual, weight, sum, normed, rows } = addNormPlaces;
  loadPlaces(code, [x, residual, weight, normed, sum], rows);
  emitAddNorm(code, widthOf(instructions), form);
  code.zeroUpper();
  code.set(rax, 0);
  code.return();
  return code.finish();
}

/** A node's kernel: gate and up to silu(gate) * up, float32 [rows, columns]. Its argument is as addNormCode's. */
export function gatedSiluCode(
  { columns }: { readonly columns: number },
  instructions: InstructionSet,
): Uint8Array {
  const code = new Assembler();
  const width = widthOf(instructions);
  const [gate, up, out, count] = [rdi, rsi, rdx, rcx];
  const [x, e, n, p, c] = [0, 1, 2, 3, 4];
  loadPlaces(code, [gate, up, out], count);
  code.multiply(count, count, columns / 16);
  const next = new Label();
  code.bind(next);
  for (let byte = 0; byte < 64; byte += width) {
    code.load(width, x, at(gate, byte));
    code.binary(width, 'pxor', e, e, e);
    code.binary(width, 'subps', e, e, x);
    // Beyond 87 the quotient is 0 as far as floats go.
    code.broadcastConstant(width, c, Float32Array.of(87));
    code.binary(width, 'minps', e, e, c);
    emitExponential(code, width, e, [n, p, c]);
    code.broadcastConstant(width, c, Float32Array.of(1));
    code.binary(width, 'addps', e, e, c);
    code.binary(width, 'mulps', c, x, at(up, byte));
    code.binary(width, 'divps', c, c, e);
    code.store(width, at(out, byte), c);
  }
  for (const place of [gate, up, out]) code.add(place, 64);
  code.subtract(count, 1);
  code.jumpIf('notEqual', next);
  code.zeroUpper();
  code.set(rax, 0);
  code.return();
  return code.finish();
}
