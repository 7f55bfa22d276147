/**
 * Attention in float32 over pages of any dtype (attention-skeleton.ts): keys and values become floats as they are loaded.
 *
 * Twelve query rows walk over a chunk together, with one vector of keys or of values' columns; fewer rows take several
 * vectors, so that there are always enough sums in flight.
 */
import { at, Label, type Memory, r8, r9, r10, r11, r15, rax, rbp, rbx, rcx, rdx, rsi } from './assembler.ts';
import { elementBytes } from './attention-form.ts';
import { AttentionSkeleton } from './attention-skeleton.ts';

export class FloatAttention extends AttentionSkeleton {
  protected override query(row: number): void {
    const { code, width, work } = this;
    const rowBytes = this.form.shape.headDim * 4;
    for (let byte = 0; byte < rowBytes; byte += width) {
      code.load(width, 0, at(rax, byte));
      code.store(width, at(rsi, work.queries + row * rowBytes + byte), 0);
    }
  }

  protected override weights(vectors: number): void {
    const { code, width } = this;
    for (let i = 0; i < vectors; i++) code.store(width, at(r8, i * width), i);
  }

  protected override values(rows: number): void {
    this.spans(() => this.spanValues(rows));
  }

  private get element(): number {
    return elementBytes[this.form.dtype];
  }

  /** How many vectors `rows` rows take at once, of `most`. */
  private vectors(rows: number, most: number): number {
    const limit = this.width === 64 ? 4 : 2;
    return [4, 3, 2].find((count) => count <= limit && count * rows <= 12 && most % count === 0) ?? 1;
  }

  private loadElements(to: number, from: Memory): void {
    const { dtype } = this.form;
    if (dtype === 'float32') this.code.load(this.width, to, from);
    else if (dtype === 'bfloat16') {
      this.code.unary(this.width, 'pmovzxwd', to, from);
      this.code.shiftDwordsLeft(this.width, to, to, 16);
    } else {
      this.code.unary(this.width, 'pmovsxbd', to, from);
      this.code.unary(this.width, 'cvtdq2ps', to, to);
    }
  }

  /** Adds to the sums of each row what the float at `factor` makes of the vectors, which are in registers from 12 on. */
  private multiplyAdd(rows: number, vectors: number, factor: (row: number) => Memory): void {
    const code = this.code;
    for (let row = 0; row < rows; row++) {
      if (this.width === 64 && vectors === 1) {
        code.binaryBroadcast('fmadd231ps', row, 12, factor(row));
        continue;
      }
      // The last register that there is in both instruction sets.
      code.broadcast(this.width, 15, factor(row));
      for (let vector = 0; vector < vectors; vector++) {
        code.binary(this.width, 'fmadd231ps', row * vectors + vector, this.vector(vector), 15);
      }
    }
  }

  private vector(index: number): number {
    return this.width === 64 ? 16 + index : 12 + index;
  }

  /** The keys of a span: sums over dimensions, scaled where keys are int8, to the chunk's scores. */
  protected override scores(rows: number): void {
    const code = this.code;
    const width = this.width;
    const { shape, blockTokens, dtype } = this.form;
    const { headDim } = shape;
    const element = this.element;
    const vectors = this.vectors(rows, Math.min(blockTokens, this.chunkKeys) / this.lanes);
    const keys = vectors * this.lanes;
    code.copy(rax, rcx);
    if (element > 1) code.shiftLeft(rax, Math.log2(element));
    code.addRegister(rax, rdx);
    if (dtype === 'int8') {
      code.copy(r8, rcx);
      code.shiftLeft(r8, 2);
      code.addRegister(r8, rdx);
      code.add(r8, this.head.scales);
    }
    code.copy(r9, rbx);
    code.shiftLeft(r9, 2);
    code.addRegister(r9, rsi);
    code.add(r9, this.work.scores);
    const [next, done, dimension] = [new Label(), new Label(), new Label()];
    code.bind(next);
    for (let sum = 0; sum < rows * vectors; sum++) code.binary(width, 'pxor', sum, sum, sum);
    code.copy(r10, rax);
    code.address(r11, at(rsi, this.work.queries));
    code.set(r15, headDim / 4);
    code.bind(dimension);
    for (let d = 0; d < 4; d++) {
      for (let vector = 0; vector < vectors; vector++) {
        const from = at(r10, (d * blockTokens + vector * this.lanes) * element);
        this.loadElements(width === 64 && vectors === 1 ? 12 : this.vector(vector), from);
      }
      this.multiplyAdd(rows, vectors, (row) => at(r11, row * headDim * 4 + d * 4));
    }
    code.add(r10, 4 * blockTokens * element);
    code.add(r11, 16);
    code.subtract(r15, 1);
    code.jumpIf('notEqual', dimension);
    for (let vector = 0; vector < vectors; vector++) {
      if (dtype === 'int8') code.load(width, 15, at(r8, vector * width));
      for (let row = 0; row < rows; row++) {
        const sum = row * vectors + vector;
        if (dtype === 'int8') code.binary(width, 'mulps', sum, sum, 15);
        code.store(width, at(r9, row * this.chunkKeys * 4 + vector * width), sum);
      }
    }
    code.compare(rbp, keys);
    code.jumpIf('belowOrEqual', done);
    code.subtract(rbp, keys);
    code.add(rax, keys * element);
    code.add(r8, keys * 4);
    code.add(r9, keys * 4);
    code.jump(next);
    code.bind(done);
  }

  /** The values of a span, weighted, to the tile's outputs. */
  private spanValues(rows: number): void {
    const code = this.code;
    const width = this.width;
    const { shape, dtype } = this.form;
    const { headDim } = shape;
    const element = this.element;
    const columns = headDim / this.lanes;
    const vectors = this.vectors(rows, columns);
    code.copy(r9, rbx);
    code.shiftLeft(r9, 2);
    code.addRegister(r9, rsi);
    code.add(r9, this.work.scores);
    if (dtype === 'int8') this.scaleWeights(rows);
    code.copy(rax, rcx);
    code.multiply(rax, rax, headDim * element);
    code.addRegister(rax, rdx);
    code.add(rax, this.head.keys);
    const step = headDim * element;
    for (let first = 0; first < columns; first += vectors) {
      const place = (row: number, vector: number): Memory =>
        at(rsi, this.work.outputs + row * headDim * 4 + (first + vector) * width);
      const sums = Array.from(
        { length: rows * vectors },
        (_, i) => [Math.floor(i / vectors), i % vectors] as const,
      );
      for (const [row, vector] of sums) code.load(width, row * vectors + vector, place(row, vector));
      code.address(r10, at(rax, first * this.lanes * element));
      code.copy(r11, r9);
      code.copy(r15, rbp);
      const key = (index: number): void => {
        for (let vector = 0; vector < vectors; vector++) {
          const from = at(r10, index * step + vector * this.lanes * element);
          this.loadElements(width === 64 && vectors === 1 ? 12 : this.vector(vector), from);
        }
        this.multiplyAdd(rows, vectors, (row) => at(r11, row * this.chunkKeys * 4 + index * 4));
      };
      const [four, one, done] = [new Label(), new Label(), new Label()];
      code.bind(four);
      code.compare(r15, 4);
      code.jumpIf('below', one);
      for (let index = 0; index < 4; index++) key(index);
      code.add(r10, 4 * step);
      code.add(r11, 16);
      code.subtract(r15, 4);
      code.jump(four);
      code.bind(one);
      code.compare(r15, 0);
      code.jumpIf('equal', done);
      key(0);
      code.add(r10, step);
      code.add(r11, 4);
      code.subtract(r15, 1);
      code.jump(one);
      code.bind(done);
      for (const [row, vector] of sums) code.store(width, place(row, vector), row * vectors + vector);
    }
  }

  /** Multiplies the weights at r9 by the scales of the span's values. */
  private scaleWeights(rows: number): void {
    const code = this.code;
    const width = this.width;
    const [next, done] = [new Label(), new Label()];
    code.copy(r8, rcx);
    code.shiftLeft(r8, 2);
    code.addRegister(r8, rdx);
    code.add(r8, this.head.scales + 4 * this.form.blockTokens);
    code.copy(r10, r9);
    code.copy(r15, rbp);
    code.bind(next);
    code.load(width, 0, at(r8));
    for (let row = 0; row < rows; row++) {
      code.binary(width, 'mulps', 1, 0, at(r10, row * this.chunkKeys * 4));
      code.store(width, at(r10, row * this.chunkKeys * 4), 1);
    }
    code.compare(r15, this.lanes);
    code.jumpIf('belowOrEqual', done);
    code.subtract(r15, this.lanes);
    code.add(r8, width);
    code.add(r10, width);
    code.jump(next);
    code.bind(done);
  }
}
