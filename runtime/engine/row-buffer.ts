/**
 * Memory for a tensor [rows, columns] whose row count changes from step to step, and the OrtValues over it: one for
 * each count that has come up, so that a step makes none.
 */
import type { DType } from '../dtype.ts';
import { OrtValue } from '../ort/value.ts';

export class RowBuffer<Memory extends ArrayBufferView> implements Disposable {
  readonly memory: Memory;
  readonly #dtype: DType;
  readonly #columns: number | undefined;
  readonly #values = new Map<number, OrtValue>();

  /** Without `columns` the tensor has one dimension. */
  constructor(memory: Memory, dtype: DType, columns?: number) {
    this.memory = memory;
    this.#dtype = dtype;
    this.#columns = columns;
  }

  /** The first `rows` rows. */
  value(rows: number): OrtValue {
    let value = this.#values.get(rows);
    if (value === undefined) {
      const shape = this.#columns === undefined ? [rows] : [rows, this.#columns];
      value = OrtValue.over(this.memory, this.#dtype, shape);
      this.#values.set(rows, value);
    }
    return value;
  }

  close(): void {
    for (const value of this.#values.values()) value.close();
    this.#values.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
