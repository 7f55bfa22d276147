/**
 * Attention in float32 over pages of any dtype (attention-skeleton.ts): keys and values become floats as they are loaded.
 */

import { elementBytes } from '../attention-reference.ts';
import { AttentionSkeleton } from './attention-skeleton.ts';
import {
  at,
  Label,
  type Memory,
  r8,
  r9,
  r10,
  r11,
  r15,
  rax,
  rbp,
  rbx,
  rcx,
  rdx,
  rsi,
} from './general-assembler.ts';
import { BinaryExponential } from './vector-math.ts';

export class FloatAttention extends AttentionSkeleton {
  protected override query(row: number): void {
    const { code, width, work } = this;
    const rowBytes = this.form.shape.headDim * 4;
    for (let byte = 0; byte < rowBytes; byte += width) {
      code.load(width, 0, at(rax, byte));
      code.store(width, at(rsi, work.queries + row * rowBytes + byte), 0);
    }
  }

  /** Weights take the scores' places. */
  protected override weights(vectors: number): void {
    const { code, width, work } = this;
    const [x, n, p, highest, total] = [0, 1, 2, 3, 4];
    const exponential = new BinaryExponential(code, width, 5);
    exponential.emitConstants();
    this.everyRow(() => {
      code.broadcast(width, highest, at(r9, work.maxima));
      code.broadcast(width, total, at(r9, work.factors));
      code.binary(width, 'mulps', total, total, at(r10));
      for (let i = 0; i < vectors; i++) {
        code.load(width, x, at(r8, i * width));
        code.binary(width, 'subps', x, x, highest);
        exponential.emit(x, n, p);
        code.binary(width, 'addps', total, total, x);
        code.store(width, at(r8, i * width), x);
      }
      code.store(width, at(r10), total);
    });
  }

  private get element(): number {
    return elementBytes[this.form.dtype];
  }

  private vectors(rows: number, most: number): number {
    return this.vectorsAtOnce(rows, most, this.width === 64 ? [4, 3, 2] : [2]);
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

  /** Adds to the sums of each row what the float at `factor` makes of the vectors. */
  private multiplyAdd(rows: number, vectors: number, factor: (row: number) => Memory): void {
    const code = this.code;
    for (let row = 0; row < rows; row++) {
      code.broadcast(this.width, this.scratch, factor(row));
      for (let vector = 0; vector < vectors; vector++) {
        code.binary(this.width, 'fmadd231ps', row * vectors + vector, this.vector(vector), this.scratch);
      }
    }
  }

  private vector(index: number): number {
    return this.width === 64 ? 24 + index : 12 + index;
  }

  private get scratch(): number {
    return this.width === 64 ? 28 : 15;
  }

  protected override scores(rows: number): void {
    this.spans(() => this.spanScores(rows));
  }

  /** The keys of a span: sums over dimensions, scaled where keys are int8, to the chunk's scores. */
  private spanScores(rows: number): void {
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
        this.loadElements(this.vector(vector), from);
      }
      this.multiplyAdd(rows, vectors, (row) => at(r11, row * headDim * 4 + d * 4));
    }
    code.add(r10, 4 * blockTokens * element);
    code.add(r11, 16);
    code.subtract(r15, 1);
    code.jumpIf('notEqual', dimension);
    for (let vector = 0; vector < vectors; vector++) {
      if (dtype === 'int8') code.load(width, this.scratch, at(r8, vector * width));
      for (let row = 0; row < rows; row++) {
        const sum = row * vectors + vector;
        if (dtype === 'int8') code.binary(width, 'mulps', sum, sum, this.scratch);
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

  protected override values(rows: number): void {
    const { code, width, work } = this;
    const { headDim } = this.form.shape;
    const columns = headDim / this.lanes;
    const vectors = this.vectors(rows, columns);
    for (let first = 0; first < columns; first += vectors) {
      const everySum = (
        each: (sum: number, place: Memory) => void,
        eachRow?: (row: number) => void,
      ): void => {
        for (let row = 0; row < rows; row++) {
          eachRow?.(row);
          for (let vector = 0; vector < vectors; vector++) {
            const column = first + vector;
            each(row * vectors + vector, at(rsi, work.outputs + row * headDim * 4 + column * width));
          }
        }
      };
      everySum(
        (sum, place) => code.binary(width, 'mulps', sum, this.scratch, place),
        (row) => code.broadcast(width, this.scratch, at(rsi, work.factors + 4 * row)),
      );
      this.spans(() => this.spanValues(rows, first, vectors));
      everySum((sum, place) => code.store(width, place, sum));
    }
  }

  /** The values of a span, weighted, to the sums of `vectors` columns. */
  private spanValues(rows: number, first: number, vectors: number): void {
    const { code, element } = this;
    const { headDim } = this.form.shape;
    const step = headDim * element;
    code.copy(r11, rbx);
    code.shiftLeft(r11, 2);
    code.addRegister(r11, rsi);
    code.add(r11, this.work.scores);
    if (this.form.dtype === 'int8' && first === 0) this.scaleWeights(rows);
    code.copy(r10, rcx);
    code.multiply(r10, r10, step);
    code.addRegister(r10, rdx);
    code.add(r10, this.head.keys + first * this.lanes * element);
    const key = (index: number): void => {
      for (let vector = 0; vector < vectors; vector++) {
        this.loadElements(this.vector(vector), at(r10, index * step + vector * this.lanes * element));
      }
      this.multiplyAdd(rows, vectors, (row) => at(r11, row * this.chunkKeys * 4 + index * 4));
    };
    const [four, one, done] = [new Label(), new Label(), new Label()];
    code.bind(four);
    code.compare(rbp, 4);
    code.jumpIf('below', one);
    for (let index = 0; index < 4; index++) key(index);
    code.add(r10, 4 * step);
    code.add(r11, 16);
    code.subtract(rbp, 4);
    code.jump(four);
    code.bind(one);
    code.compare(rbp, 0);
    code.jumpIf('equal', done);
    key(0);
    code.add(r10, step);
    code.add(r11, 4);
    code.subtract(rbp, 1);
    code.jump(one);
    code.bind(done);
  }

  /** Multiplies the weights at r11 by the scales of the span's values. */
  private scaleWeights(rows: number): void {
    const code = this.code;
    const { width, scratch } = this;
    const scale = this.vector(0);
    const [next, done] = [new Label(), new Label()];
    code.copy(r8, rcx);
    code.shiftLeft(r8, 2);
    code.addRegister(r8, rdx);
    code.add(r8, this.head.scales + 4 * this.form.blockTokens);
    code.copy(r10, r11);
    code.copy(r15, rbp);
    code.bind(next);
    code.load(width, scale, at(r8));
    for (let row = 0; row < rows; row++) {
      code.binary(width, 'mulps', scratch, scale, at(r10, row * this.chunkKeys * 4));
      code.store(width, at(r10, row * this.chunkKeys * 4), scratch);
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
