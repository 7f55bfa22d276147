/**
 * Machine code of what ranks do together: a barrier, sums of their parts, and sums with the residual and its RMS norm.
 * Where they meet enters (collective.ts), code leaves.
 *
 * Of few rows every rank copies its part to the shared buffers and, after a barrier, does all rows for itself. Of many rows
 * each rank does a share of them, reading the others' parts and writing to the others' outputs where these are, between two
 * barriers: what sums over rows costs is then divided by the ranks (sequence parallelism of Korthikanti et al. 2022, in one
 * memory). A row has the same bits either way: parts are added in the order of the ranks.
 */
import { type MeetingPlace, rankPlace } from '../../collective/collective.ts';
import { Assembler } from './assembler.ts';
import {
  at,
  Label,
  type Memory,
  r10,
  r11,
  r12,
  r13,
  r14,
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdi,
  rdx,
  rsi,
} from './general-assembler.ts';
import { type InstructionSet, widthOf } from './processor.ts';
import { word } from './row-gather.ts';
import { type AddNormForm, addNormPlaces, emitAddNorm } from './rows.ts';

/** A reduction's node on one rank. */
export interface ReduceForm {
  readonly columns: number;
  readonly rank: number;
  readonly ranks: number;
  /** Whether the rank has a part; else its input only has the shape. */
  readonly contributes: boolean;
}

export interface ReduceNormForm extends ReduceForm, AddNormForm {
  /** Whether a rank may leave out the sums of rows that are not its share: only nodes like this one read them. */
  readonly split: boolean;
}

/** From this many rows on, shares pay for a second barrier. */
export const leastSplitRows = 32;
/** Addresses of all ranks are in registers. */
const mostSplitRanks = 4;
/** A pause takes as long as 2^5 of the looks that JavaScript counts (waiter.ts). */
const looksOfPause = 5;

const saved = [rbx, rbp, r12, r13, r14, r15];

/** AllReduce: partial [rows, columns] to the sum over ranks. The argument of this code, and of the next, is a node's words. */
export function allReduceCode(
  form: ReduceForm,
  meeting: MeetingPlace,
  instructions: InstructionSet,
): Uint8Array {
  const code = new Assembler();
  const reduce = new Reduction(code, form, meeting, widthOf(instructions));
  reduce.begin();
  reduce.contribute();
  reduce.meet();
  const width = widthOf(instructions);
  const [part, out, count] = [rdi, rsi, rcx];
  code.copy(part, r15);
  code.loadQuad(out, reduce.place(1));
  reduce.vectors(count);
  const next = new Label();
  code.bind(next);
  code.load(width, 0, at(part));
  reduce.addParts(0, part, 0);
  code.store(width, at(out), 0);
  code.add(part, width);
  code.add(out, width);
  code.subtract(count, 1);
  code.jumpIf('notEqual', next);
  reduce.end();
  return code.finish();
}

/** AllReduceNorm: partial, residual and weight to norms and sums, as addNormCode of the sum over ranks. */
export function allReduceNormCode(
  form: ReduceNormForm,
  meeting: MeetingPlace,
  instructions: InstructionSet,
): Uint8Array {
  const code = new Assembler();
  const width = widthOf(instructions);
  const reduce = new Reduction(code, form, meeting, width);
  const { x, residual, weight, sum, normed, rows } = addNormPlaces;
  const splits = form.split && form.ranks <= mostSplitRanks;
  const [many, end] = [new Label(), new Label()];
  const loadRest = (): void => {
    for (const [index, register] of [residual, weight, normed, sum].entries()) {
      code.loadQuad(register, reduce.place(1 + index));
    }
    code.loadQuad(rows, at(rbx, word('rows')));
  };
  reduce.begin();
  if (splits) {
    code.loadQuad(rax, at(rbx, word('rows')));
    code.compare(rax, leastSplitRows);
    code.jumpIf('aboveOrEqual', many);
  }
  reduce.contribute();
  reduce.meet();
  code.copy(x, r15);
  loadRest();
  emitAddNorm(code, width, form, { walked: [], add: (v, byte) => reduce.addParts(v, x, byte) });
  if (splits) {
    code.jump(end);
    code.bind(many);
    reduce.publish(3);
    reduce.meet();
    loadRest();
    reduce.share(rows, [residual, sum, normed]);
    const others = Array.from({ length: form.ranks }, (_, rank) => rank).filter((rank) => rank !== form.rank);
    const registers = [r10, r11, r12, r13, r14, r15];
    const parts = Array.from({ length: form.ranks - 1 }, (_, i) => registers[i]!);
    const norms = others.map((_, i) => registers[form.ranks - 1 + i]!);
    reduce.partsOfShare([x, ...parts]);
    reduce.normsOfShare(others, norms);
    const none = new Label();
    code.compare(rows, 0);
    code.jumpIf('equal', none);
    emitAddNorm(code, width, form, {
      walked: [...parts, ...norms],
      add: (v, byte) => {
        for (const part of parts) code.binary(width, 'addps', v, v, at(part, byte));
      },
      stored: (v, byte) => {
        for (const norm of norms) code.store(width, at(norm, byte), v);
      },
    });
    code.bind(none);
    reduce.meet();
    code.bind(end);
  }
  reduce.end();
  return code.finish();
}

/** Pieces of a node's code: rbx holds the address of its words throughout. */
class Reduction {
  readonly #code: Assembler;
  readonly #form: ReduceForm;
  readonly #meeting: MeetingPlace;
  readonly #width: 32 | 64;
  readonly #barrier = new Label();
  readonly #return = new Label();

  constructor(code: Assembler, form: ReduceForm, meeting: MeetingPlace, width: 32 | 64) {
    this.#code = code;
    this.#form = form;
    this.#meeting = meeting;
    this.#width = width;
  }

  begin(): void {
    this.#code.save(saved);
    this.#code.copy(rbx, rdi);
  }

  /** The node's success; then the barrier's code. */
  end(): void {
    const code = this.#code;
    code.zeroUpper();
    code.set(rax, 0);
    code.bind(this.#return);
    code.restore(saved);
    code.return();
    this.#emitBarrier();
  }

  place(index: number): Memory {
    return at(rbx, word('places') + 8 * index);
  }

  /** How many vectors all rows have. */
  vectors(to: number): void {
    this.#code.loadQuad(to, at(rbx, word('rows')));
    this.#code.multiply(to, to, (this.#form.columns * 4) / this.#width);
  }

  /** This rank's part goes to the shared buffer, where r15 is then the address of rank 0's. */
  contribute(): void {
    const code = this.#code;
    const { rank, contributes } = this.#form;
    const { words, generation, parts, bufferBytes } = this.#meeting;
    code.setQuad(rax, words);
    code.loadDword(r15, at(rax, generation));
    code.and(r15, 1);
    code.multiply(r15, r15, bufferBytes);
    code.addRegister(r15, rax);
    code.add(r15, parts);
    code.loadQuad(rsi, this.place(0));
    code.copy(rdi, r15);
    code.add(rdi, rank * this.#meeting.partBytes);
    this.#fill(contributes);
  }

  /** The rows at rdi become those at rsi, or zeros. */
  #fill(copies: boolean): void {
    const code = this.#code;
    const width = this.#width;
    this.vectors(rcx);
    if (!copies) code.binary(width, 'pxor', 0, 0, 0);
    const next = new Label();
    code.bind(next);
    if (copies) code.load(width, 0, at(rsi));
    code.store(width, at(rdi), 0);
    if (copies) code.add(rsi, width);
    code.add(rdi, width);
    code.subtract(rcx, 1);
    code.jumpIf('notEqual', next);
  }

  /** v, which holds rank 0's part at the byte, becomes the sum of all. */
  addParts(v: number, part: number, byte: number): void {
    for (let rank = 1; rank < this.#form.ranks; rank++) {
      const place = at(part, byte + rank * this.#meeting.partBytes);
      this.#code.binary(this.#width, 'addps', v, v, place);
    }
  }

  /** Tells the others where this rank's part and its output `index` are. */
  publish(index: number): void {
    const code = this.#code;
    const { contributes, rank } = this.#form;
    const { words, own, partBytes } = this.#meeting;
    if (contributes) code.loadQuad(rax, this.place(0));
    else {
      this.contribute();
      code.copy(rax, r15);
      code.add(rax, rank * partBytes);
    }
    code.setQuad(rdx, words);
    code.storeQuadword(at(rdx, own + rankPlace.first), rax);
    code.loadQuad(rax, this.place(index));
    code.storeQuadword(at(rdx, own + rankPlace.second), rax);
  }

  /**
   * `rows` becomes how many are this rank's share, and the registers, addresses of rows, those of its first; rbp becomes the
   * bytes before it.
   */
  share(rows: number, places: readonly number[]): void {
    const code = this.#code;
    const { rank, ranks, columns } = this.#form;
    code.copy(rax, rows);
    code.add(rax, ranks - 1);
    // Exact up to 2^29 / ranks rows.
    code.multiply(rax, rax, Math.floor(2 ** 29 / ranks) + 1);
    code.shiftRight(rax, 29);
    code.multiply(rbp, rax, rank);
    const [some, none, done] = [new Label(), new Label(), new Label()];
    code.compareRegisters(rbp, rows);
    code.jumpIf('aboveOrEqual', none);
    code.subtractRegister(rows, rbp);
    code.compareRegisters(rows, rax);
    code.jumpIf('belowOrEqual', some);
    code.copy(rows, rax);
    code.bind(some);
    code.multiply(rbp, rbp, columns * 4);
    for (const place of places) code.addRegister(place, rbp);
    code.jump(done);
    code.bind(none);
    code.set(rows, 0);
    code.bind(done);
  }

  /** Where the share starts in each rank's part. */
  partsOfShare(registers: readonly number[]): void {
    const { words, own, ownBytes } = this.#meeting;
    const first = own - this.#form.rank * ownBytes;
    this.#code.setQuad(rax, words);
    for (const [rank, register] of registers.entries()) {
      this.#code.loadQuad(register, at(rax, first + rank * ownBytes + rankPlace.first));
      this.#code.addRegister(register, rbp);
    }
  }

  /** Where it starts in the outputs of other ranks. */
  normsOfShare(ranks: readonly number[], registers: readonly number[]): void {
    const { own, ownBytes } = this.#meeting;
    const first = own - this.#form.rank * ownBytes;
    for (const [i, register] of registers.entries()) {
      this.#code.loadQuad(register, at(rax, first + ranks[i]! * ownBytes + rankPlace.second));
      this.#code.addRegister(register, rbp);
    }
  }

  /** Returns when all ranks have come here; the node ends with the status when one has failed. */
  meet(): void {
    this.#code.call(this.#barrier);
    this.#code.compare(rax, 0);
    this.#code.jumpIf('notEqual', this.#return);
  }

  /** As ThreadCollective.barrier; keeps what calls keep. */
  #emitBarrier(): void {
    const code = this.#code;
    const { words, arrived, generation, failed, sleepers, own } = this.#meeting;
    const [place, left, looks] = [rdx, rax, rcx];
    const [wait, look, passed, assist] = [new Label(), new Label(), new Label(), new Label()];
    code.bind(this.#barrier);
    code.setQuad(place, words);
    code.loadDword(left, at(place, generation));
    code.storeDword(at(place, own + rankPlace.left), left);
    code.set(looks, 1);
    code.lockedExchangeAdd(at(place, arrived), looks);
    code.compare(looks, this.#form.ranks - 1);
    code.jumpIf('notEqual', wait);
    code.set(looks, 0);
    code.storeDword(at(place, arrived), looks);
    code.add(left, 1);
    code.exchangeDword(at(place, generation), left);
    code.loadDword(looks, at(place, sleepers));
    code.compare(looks, 0);
    code.jumpIf('notEqual', assist);
    code.jump(passed);
    code.bind(wait);
    code.loadDword(looks, at(place, own + rankPlace.spins));
    code.shiftRight(looks, looksOfPause);
    code.bind(look);
    code.compareDword(left, at(place, generation));
    code.jumpIf('notEqual', passed);
    code.pause();
    code.subtract(looks, 1);
    code.jumpIf('aboveOrEqual', look);
    code.bind(assist);
    code.zeroUpper();
    code.copy(rdi, rbx);
    code.loadQuad(rax, at(rbx, word('assist')));
    // The stack is aligned here: a return address, the saved registers, and the one of this call.
    code.callAddress(rax);
    code.return();
    code.bind(passed);
    code.loadDword(rax, at(place, failed));
    code.compare(rax, 0);
    code.jumpIf('notEqual', assist);
    code.return();
  }
}
