/**
 * Rotary angles of a step's rows. Enters: a model's rope, the plan. Leaves: cosines and sines, a row for each packed
 * token. They are computed anew each step: a table for a long context would cost more memory than time.
 */
import type { RopeSpec } from '../models/rope.ts';
import { sliceWords } from './step-message.ts';

interface Table {
  /** In float32, as the reference has them. */
  readonly inverseFrequencies: Float32Array;
  readonly factor: number;
}

/** Tables that are kept: where the base grows with each token there would soon be many. */
const keptTables = 64;

export class RopeAngles {
  /** [rotaryDim]: floats of a row. */
  readonly rowFloats: number;
  readonly #rope: RopeSpec;
  readonly #tables = new Map<number, Table>();

  constructor(rope: RopeSpec) {
    this.#rope = rope;
    this.rowFloats = rope.rotaryDim;
  }

  /** Writes [tokens][cos rotaryDim / 2, sin rotaryDim / 2] to `out`. */
  write(plan: Int32Array, out: Float32Array): void {
    const half = this.rowFloats / 2;
    const end = 1 + plan[0]! * sliceWords;
    let at = 0;
    for (let entry = 1; entry < end; entry += sliceWords) {
      const rows = plan[entry + 1]!;
      const first = plan[entry + 2]!;
      const { inverseFrequencies, factor } = this.#table(plan[entry + 4]!);
      for (let position = first; position < first + rows; position++) {
        for (let i = 0; i < half; i++) {
          const angle = Math.fround(position * inverseFrequencies[i]!);
          out[at + i] = Math.cos(angle) * factor;
          out[at + half + i] = Math.sin(angle) * factor;
        }
        at += 2 * half;
      }
    }
  }

  #table(variant: number): Table {
    let table = this.#tables.get(variant);
    if (table === undefined) {
      const { inverseFrequencies, attentionFactor } = this.#rope.table(variant);
      table = { inverseFrequencies: Float32Array.from(inverseFrequencies), factor: attentionFactor };
      const oldest = this.#tables.keys().next();
      if (this.#tables.size >= keptTables && !oldest.done) this.#tables.delete(oldest.value);
      this.#tables.set(variant, table);
    }
    return table;
  }
}
