/**
 * Rotary angles of a step's rows. Enters: a model's inverse frequencies, the plan. Leaves: cosines and sines, a row for
 * each packed token. They are computed anew each step: a table for a long context would cost more memory than time.
 */
import { sliceWords } from './step-message.ts';

export interface Rope {
  /** [rotaryDim / 2], float32 as transformers has them; empty: nothing is rotated. */
  readonly inverseFrequencies: Float32Array;
  /** Multiplies cosines and sines (longrope's attention factor). */
  readonly factor: number;
}

/** Writes [tokens][cos rotaryDim / 2, sin rotaryDim / 2] to `out`. */
export function writeAngles(rope: Rope, plan: Int32Array, out: Float32Array): void {
  const { inverseFrequencies, factor } = rope;
  const half = inverseFrequencies.length;
  const slices = plan[0]!;
  let at = 0;
  for (let slice = 0; slice < slices; slice++) {
    const rows = plan[2 + slice * sliceWords]!;
    const first = plan[3 + slice * sliceWords]!;
    for (let position = first; position < first + rows; position++) {
      for (let i = 0; i < half; i++) {
        // In float32, as the reference multiplies.
        const angle = Math.fround(position * inverseFrequencies[i]!);
        out[at + i] = Math.cos(angle) * factor;
        out[at + half + i] = Math.sin(angle) * factor;
      }
      at += 2 * half;
    }
  }
}
