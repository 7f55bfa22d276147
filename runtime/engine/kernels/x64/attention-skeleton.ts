/**
 * What machine code of paged attention on one layer has in common, whatever it multiplies: queries, rotated and scaled (for
 * powers of two, not of e), attend causally over pages of keys and values (../wasm/lib/pages.ts tells their layout). A layer's
 * shape enters, code leaves. The algorithm is that of
 * ../wasm/attention.ts (FlashAttention's, arXiv 2205.14135): chunks of keys with a running maximum and sum. What a row
 * gives does not depend on the rows beside it.
 *
 * Twelve query rows walk over a chunk together; fewer rows take more vectors of keys or of values' columns, so that there are
 * always enough sums in flight.
 */
import { headsOfKv } from '../attention-reference.ts';
import { headLayout, sliceBytes, tileRows } from './attention-form.ts';
import { AttentionSoftmax, leastScore } from './attention-softmax.ts';
import { at, Label, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdx, rsi } from './general-assembler.ts';
import { emitEverywhere } from './vector-math.ts';

export abstract class AttentionSkeleton extends AttentionSoftmax {
  protected readonly head = headLayout(this.form);

  finish(): Uint8Array {
    const code = this.code;
    const saved = [rbx, rbp, r12, r13, r14, r15];
    code.save(saved);
    code.loadQuad(rsi, this.slot('work'));
    code.loadQuad(rax, this.slot('plan'));
    code.loadDword(rcx, at(rax));
    code.storeQuadword(this.slot('slices'), rcx);
    code.add(rax, 4);
    code.storeQuadword(this.slot('entry'), rax);
    const [slice, done] = [new Label(), new Label()];
    code.bind(slice);
    code.loadQuad(rcx, this.slot('slices'));
    code.compare(rcx, 0);
    code.jumpIf('equal', done);
    this.slice();
    code.loadQuad(rcx, this.slot('slices'));
    code.subtract(rcx, 1);
    code.storeQuadword(this.slot('slices'), rcx);
    code.loadQuad(rax, this.slot('entry'));
    code.add(rax, sliceBytes);
    code.storeQuadword(this.slot('entry'), rax);
    code.jump(slice);
    code.bind(done);
    code.zeroUpper();
    code.restore(saved);
    code.return();
    this.functions();
    return code.finish();
  }

  /** What the code calls. */
  protected functions(): void {
    this.emitSoftmax();
  }

  protected slice(): void {
    const code = this.code;
    const { heads, kvHeads, headDim } = this.form.shape;
    const rowBytes = heads * headDim * 4;
    // Entry: first row, rows, position, where the block table is in the plan.
    code.loadQuad(rax, this.slot('entry'));
    code.loadDword(rcx, at(rax, 12));
    code.shiftLeft(rcx, 2);
    code.loadQuad(rdx, this.slot('plan'));
    code.addRegister(rcx, rdx);
    code.storeQuadword(this.slot('table'), rcx);
    code.loadDword(rcx, at(rax));
    code.multiply(rcx, rcx, rowBytes);
    for (const [from, to] of [
      ['q', 'sliceQ'],
      ['out', 'sliceOut'],
    ] as const) {
      code.loadQuad(rdx, this.slot(from));
      code.addRegister(rdx, rcx);
      code.storeQuadword(this.slot(to), rdx);
    }
    code.loadQuad(rdx, this.slot('layer'));
    code.storeQuadword(this.slot('headLayer'), rdx);
    code.set(rdx, kvHeads);
    code.storeQuadword(this.slot('head'), rdx);
    const head = new Label();
    code.bind(head);
    this.headGroup();
    code.loadQuad(rax, this.slot('entry'));
    code.loadDword(rcx, at(rax, 4));
    code.multiplyMemory(rcx, this.slot('group'));
    code.storeQuadword(this.slot('left'), rcx);
    code.loadDword(rcx, at(rax, 8));
    code.set(rdx, 0);
    for (const name of ['position', 'outPosition'] as const) code.storeQuadword(this.slot(name), rcx);
    for (const name of ['within', 'outWithin'] as const) code.storeQuadword(this.slot(name), rdx);
    for (const [from, to] of [
      ['sliceQ', 'query'],
      ['sliceOut', 'outAt'],
    ] as const) {
      code.loadQuad(rdx, this.slot(from));
      code.storeQuadword(this.slot(to), rdx);
    }
    this.headStart();
    this.tiles();
    for (const name of ['sliceQ', 'sliceOut'] as const) {
      code.loadQuad(rcx, this.slot('group'));
      code.multiply(rcx, rcx, headDim * 4);
      code.loadQuad(rdx, this.slot(name));
      code.addRegister(rdx, rcx);
      code.storeQuadword(this.slot(name), rdx);
    }
    code.loadQuad(rdx, this.slot('headLayer'));
    code.add(rdx, this.head.bytes);
    code.storeQuadword(this.slot('headLayer'), rdx);
    code.loadQuad(rdx, this.slot('head'));
    code.subtract(rdx, 1);
    code.storeQuadword(this.slot('head'), rdx);
    code.jumpIf('notEqual', head);
  }

  /** Notes how many query heads the KV head has: `head` counts down from the first to 1. */
  protected headGroup(): void {
    const { code } = this;
    const { heads, kvHeads, headDim } = this.form.shape;
    const counts = Array.from({ length: kvHeads }, (_, kv) => {
      const { start, end } = headsOfKv(this.form.shape, kv);
      return end - start;
    });
    const note = (count: number): void => {
      code.set(rcx, count);
      code.storeQuadword(this.slot('group'), rcx);
      code.set(rcx, (heads - count) * headDim * 4);
      code.storeQuadword(this.slot('others'), rcx);
    };
    // Only the first and the last may have fewer than those between.
    const usual = counts[1] ?? counts[0]!;
    note(kvHeads > 2 ? usual : counts[0]!);
    for (const kv of new Set([0, kvHeads - 1])) {
      const next = new Label();
      code.loadQuad(rcx, this.slot('head'));
      code.compare(rcx, kvHeads - kv);
      code.jumpIf('notEqual', next);
      note(counts[kv]!);
      code.bind(next);
    }
  }

  /** All query rows of a slice and a KV head. */
  protected tiles(): void {
    const code = this.code;
    const [next, done] = [new Label(), new Label()];
    const parts = Array.from({ length: tileRows }, () => new Label());
    code.bind(next);
    code.loadQuad(rcx, this.slot('left'));
    for (let rows = 1; rows < tileRows; rows++) {
      code.compare(rcx, rows);
      code.jumpIf('equal', parts[rows - 1]!);
    }
    code.compare(rcx, 0);
    code.jumpIf('equal', done);
    for (const rows of Array.from({ length: tileRows }, (_, i) => tileRows - i)) {
      code.bind(parts[rows - 1]!);
      this.tile(rows);
      code.loadQuad(rcx, this.slot('left'));
      code.subtract(rcx, rows);
      code.storeQuadword(this.slot('left'), rcx);
      code.jump(next);
    }
    code.bind(done);
  }

  /** Walks over the tile's rows: rax is a row's place, rcx its position, rdx its head within the group. */
  protected walk(
    rows: number,
    [place, position, within]: readonly [
      'query' | 'outAt',
      'position' | 'outPosition',
      'within' | 'outWithin',
    ],
    each: (row: number) => void,
  ): void {
    const code = this.code;
    const { headDim } = this.form.shape;
    code.loadQuad(rax, this.slot(place));
    code.loadQuad(rcx, this.slot(position));
    code.loadQuad(rdx, this.slot(within));
    for (let row = 0; row < rows; row++) {
      each(row);
      const same = new Label();
      code.add(rax, headDim * 4);
      code.add(rdx, 1);
      code.compareMemory(rdx, this.slot('group'));
      code.jumpIf('notEqual', same);
      code.set(rdx, 0);
      code.add(rcx, 1);
      code.addMemory(rax, this.slot('others'));
      code.bind(same);
    }
    code.storeQuadword(this.slot(place), rax);
    code.storeQuadword(this.slot(position), rcx);
    code.storeQuadword(this.slot(within), rdx);
  }

  protected tile(rows: number): void {
    const code = this.code;
    const width = this.width;
    const { headDim, window } = this.form.shape;
    const { outputs, ends, starts, maxima, sums } = this.work;
    const rowBytes = headDim * 4;
    this.walk(rows, ['query', 'position', 'within'], (row) => {
      this.query(row);
      code.address(rbx, at(rcx, 1));
      code.storeDword(at(rsi, ends + 4 * row), rbx);
      // One before the first key that the row sees.
      code.set(rbx, -1);
      if (window > 0) code.address(rbx, at(rcx, -window));
      code.storeDword(at(rsi, starts + 4 * row), rbx);
      if (row === rows - 1) code.address(r13, at(rcx, 1));
      if (row > 0) return;
      code.set(r12, 0);
      if (window === 0) return;
      const fromStart = new Label();
      code.compare(rcx, window);
      code.jumpIf('below', fromStart);
      code.address(r12, at(rcx, 1 - window));
      code.and(r12, -this.chunkKeys);
      code.bind(fromStart);
    });
    code.binary(width, 'pxor', 0, 0, 0);
    for (let byte = 0; byte < rows * rowBytes; byte += width) code.store(width, at(rsi, outputs + byte), 0);
    for (let byte = 0; byte < rows * 64; byte += width) code.store(width, at(rsi, sums + byte), 0);
    code.broadcastConstant(width, 0, Float32Array.of(leastScore));
    for (let byte = 0; byte < 64; byte += width) code.store(width, at(rsi, maxima + byte), 0);
    const [chunk, done] = [new Label(), new Label()];
    code.bind(chunk);
    code.compareRegisters(r12, r13);
    code.jumpIf('aboveOrEqual', done);
    code.copy(r14, r13);
    code.subtractRegister(r14, r12);
    code.limit(r14, this.chunkKeys);
    this.scores(rows);
    this.callSoftmax(rows);
    this.values(rows);
    code.add(r12, this.chunkKeys);
    code.jump(chunk);
    code.bind(done);
    code.broadcastConstant(width, 1, Float32Array.of(1));
    this.walk(rows, ['outAt', 'outPosition', 'outWithin'], (row) => {
      code.load(width, 0, at(rsi, sums + 64 * row));
      emitEverywhere(code, width, 'addps', 0, 2);
      code.binary(width, 'divps', 0, 1, 0);
      for (let byte = 0; byte < rowBytes; byte += width) {
        code.binary(width, 'mulps', 2, 0, at(rsi, outputs + row * rowBytes + byte));
        code.store(width, at(rax, byte), 2);
      }
    });
  }

  /** How many vectors `rows` rows take at once, of `most`: of these counts the first that there are registers for. */
  protected vectorsAtOnce(rows: number, most: number, counts: readonly number[]): number {
    const sums = this.width === 64 ? 24 : 12;
    return counts.find((count) => count * rows <= sums && most % count === 0) ?? 1;
  }

  /** Before the tiles of a slice and a KV head. */
  protected headStart(): void {}
  /** The query at rax becomes the tile's row; registers from rbx on, but for rcx and rdx, are free. */
  protected abstract query(row: number): void;
  /** Scores of the chunk's keys. */
  protected abstract scores(rows: number): void;
  /** Brings the tile's outputs up to date: times their rows' factors, and the chunk's values, weighted. */
  protected abstract values(rows: number): void;

  /**
   * The pages of the chunk at r12, of which r14 keys count. For each: rbx its first key within the chunk, rbp how many
   * there are, rdx the page of the head, rcx the first key's place in it.
   */
  protected spans(each: () => void): void {
    const code = this.code;
    const { shape, blockTokens } = this.form;
    const span = Math.min(blockTokens, this.chunkKeys);
    const next = new Label();
    code.set(rbx, 0);
    code.bind(next);
    code.address(rcx, at(r12));
    code.addRegister(rcx, rbx);
    code.copy(rdx, rcx);
    code.shiftRight(rdx, Math.log2(blockTokens));
    code.shiftLeft(rdx, 2);
    code.loadQuad(rax, this.slot('table'));
    code.addRegister(rdx, rax);
    code.loadDword(rdx, at(rdx));
    code.multiply(rdx, rdx, shape.kvHeads * this.head.bytes);
    code.loadQuad(rax, this.slot('headLayer'));
    code.addRegister(rdx, rax);
    code.and(rcx, blockTokens - 1);
    code.copy(rbp, r14);
    code.subtractRegister(rbp, rbx);
    code.limit(rbp, span);
    each();
    code.add(rbx, span);
    code.compareRegisters(rbx, r14);
    code.jumpIf('below', next);
  }
}
