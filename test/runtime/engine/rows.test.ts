import assert from 'node:assert/strict';
import { test } from 'node:test';
import { availableInstructionSets } from '../../../runtime/engine/kernels/x64/processor.ts';
import { addNormCode, gatedSiluCode } from '../../../runtime/engine/kernels/x64/rows.ts';
import { addressOf } from '../../../runtime/ort/library.ts';
import { nativeFunction } from '../../../runtime/ort/native-code.ts';
import { rowWords } from '../../../runtime/ort/row-op.ts';

function spread(count: number, size: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => size * Math.sin((i + 1) * 12.9898 + seed * 78.233));
}

function near(actual: Float32Array, expected: readonly number[], relative: number): void {
  assert.equal(actual.length, expected.length);
  for (const [i, value] of expected.entries()) {
    const room = relative * Math.max(Math.abs(value), 1e-6);
    assert.ok(Math.abs(actual[i]! - value) <= room, `[${i}] is ${actual[i]}, expected ${value}`);
  }
}

/** As ONNX Runtime runs a node of such a kernel: `places` are its inputs, then its outputs. */
function run(code: Uint8Array, rows: number, places: readonly Float32Array[]): void {
  const words = new BigUint64Array(rowWords.places + places.length);
  words[rowWords.rows] = BigInt(rows);
  for (const [i, place] of places.entries()) words[rowWords.places + i] = addressOf(place);
  nativeFunction(code, 1)(words);
}

for (const instructions of availableInstructionSets()) {
  test(`${instructions}: sums and their RMS norms, for narrow, odd and wide rows`, () => {
    for (const [rows, columns, size] of [
      [1, 16, 1],
      [3, 48, 1],
      [2, 64, 1e-4],
      [5, 576, 30],
      [1, 4096, 1],
    ] as const) {
      const epsilon = 1e-5;
      const [x, residual] = [spread(rows * columns, size, 1), spread(rows * columns, size, 2)];
      const weight = spread(columns, 2, 3);
      const [sum, normed] = [new Float32Array(rows * columns), new Float32Array(rows * columns)];
      run(addNormCode({ columns, epsilon }, instructions), rows, [x, residual, weight, normed, sum]);
      const sums = Float32Array.from(x, (value, i) => value + residual[i]!);
      assert.deepEqual(sum, sums);
      const expected = Array.from({ length: rows }, (_, row) => {
        const own = [...sums.subarray(row * columns, (row + 1) * columns)];
        const inverse = 1 / Math.sqrt(own.reduce((total, v) => total + v * v, 0) / columns + epsilon);
        return own.map((v, i) => v * inverse * weight[i]!);
      }).flat();
      near(normed, expected, 2e-6);
    }
  });

  test(`${instructions}: silu(gate) * up, also where exponentials end`, () => {
    const gate = Float32Array.of(0, 1, -1, 5, -5, 20, -20, 80, -80, 87, -87, 88, -88, 200, -200, 1e30);
    const up = spread(gate.length, 3, 4);
    const out = new Float32Array(gate.length);
    run(gatedSiluCode({ columns: gate.length }, instructions), 1, [gate, up, out]);
    for (const [i, g] of gate.entries()) {
      const expected = (g / (1 + Math.exp(-g))) * up[i]!;
      assert.ok(
        Math.abs(out[i]! - expected) <= 2e-6 * Math.abs(expected) + 1e-30,
        `silu(${g}) * ${up[i]} is ${out[i]}, expected ${expected}`,
      );
    }
  });
}
