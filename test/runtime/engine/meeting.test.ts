import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { shareMemory } from '../../../runtime/engine/collective/thread-collective.ts';
import { leastSplitRows } from '../../../runtime/engine/kernels/x64/meeting.ts';
import { availableInstructionSets } from '../../../runtime/engine/kernels/x64/processor.ts';
import { announceOpDomain } from '../../../runtime/engine/op-domain.ts';
import { epsilon, input, type MeetingCase, weight } from './meeting-worker.ts';

type Answer = { readonly outputs: Float32Array[][] } | { readonly error: string };

announceOpDomain();

async function onThreads(
  ranks: number,
  spin: boolean,
  each: Omit<MeetingCase, 'shared' | 'rank'>,
): Promise<Answer[]> {
  const reduceFloats = Math.max(...each.rows) * each.columns;
  const shared = shareMemory({ ranks, reduceFloats, broadcastWords: 64, spin });
  return Promise.all(
    Array.from({ length: ranks }, async (_, rank) => {
      const workerData: MeetingCase = { ...each, shared, rank };
      const worker = new Worker(new URL('./meeting-worker.ts', import.meta.url), { workerData });
      const [answer] = (await once(worker, 'message')) as [Answer];
      await worker.terminate();
      return answer;
    }),
  );
}

/** In the order of float32 additions that all ranks use. */
function expected(
  { columns, contributors, keepsSums }: Omit<MeetingCase, 'shared' | 'rank'>,
  ranks: number,
  rows: number,
  run: number,
): {
  readonly exact: readonly (Float32Array | undefined)[];
  readonly near: readonly (number[] | undefined)[];
} {
  const size = rows * columns;
  const sum = (index: number, of: readonly number[]): Float32Array => {
    const total = new Float32Array(size);
    for (const rank of of) {
      const part = input(rank, run, index, size);
      for (let i = 0; i < size; i++) total[i]! += part[i]!;
    }
    return total;
  };
  const add = (left: Float32Array, right: Float32Array) => left.map((value, i) => value + right[i]!);
  const scale = weight(columns);
  const norm = (of: Float32Array): number[] =>
    Array.from({ length: rows }, (_, row) => {
      const own = [...of.subarray(row * columns, (row + 1) * columns)];
      const inverse = 1 / Math.sqrt(own.reduce((total, v) => total + v * v, 0) / columns + epsilon);
      return own.map((v, i) => v * inverse * scale[i]!);
    }).flat();
  const all = Array.from({ length: ranks }, (_, rank) => rank);
  const first = add(sum(0, contributors), input(0, run, 3, size));
  const second = add(sum(1, all), first);
  return {
    near: [norm(first), norm(second), undefined, undefined],
    exact: [undefined, undefined, sum(2, all), keepsSums ? first : undefined],
  };
}

const some = leastSplitRows;
for (const instructions of availableInstructionSets()) {
  for (const { ranks, spin, columns, contributors, keepsSums } of [
    { ranks: 2, spin: true, columns: 64, contributors: [0, 1], keepsSums: false },
    { ranks: 2, spin: false, columns: 48, contributors: [1], keepsSums: false },
    { ranks: 2, spin: true, columns: 16, contributors: [0, 1], keepsSums: true },
    { ranks: 3, spin: false, columns: 208, contributors: [0, 2], keepsSums: false },
    { ranks: 4, spin: true, columns: 32, contributors: [0, 1, 2, 3], keepsSums: false },
    { ranks: 6, spin: true, columns: 80, contributors: [1, 4], keepsSums: false },
  ]) {
    for (const chained of [false, true]) {
      const title = `${ranks} ranks, rows of ${columns}, ${spin ? 'spinning' : 'sleeping'}${keepsSums ? ', sums kept' : ''}${chained ? ', chained' : ''}`;
      test(`${instructions}: sums over ranks and their norms: ${title}`, async () => {
        const rows = [1, 2, some - 1, some, some + 1, 1, 3 * some + 2, 3 * some + 2, 7, some, 2 * some + 1];
        const each = { instructions, columns, rows, contributors, keepsSums, chained };
        const answers = await onThreads(ranks, spin, each);
        for (const [rank, answer] of answers.entries()) {
          assert.ok('outputs' in answer, `rank ${rank}: ${JSON.stringify(answer)}`);
          for (const [run, outputs] of answer.outputs.entries()) {
            const { near, exact } = expected(each, ranks, rows[run]!, run);
            for (const [index, output] of outputs.entries()) {
              if (exact[index] !== undefined) assert.deepEqual(output, exact[index]);
              for (const [i, value] of (near[index] ?? []).entries()) {
                const apart = Math.abs(output[i]! - value);
                assert.ok(
                  apart <= 2e-5,
                  `rank ${rank}, run ${run}, output ${index}, [${i}]: ${output[i]}, expected ${value}`,
                );
              }
            }
          }
        }
      });
    }
  }

  test(`${instructions}: a row's norm has the same bits among few and among many`, async () => {
    const each = { instructions, columns: 64, contributors: [0, 1], keepsSums: false, chained: true };
    const [few] = await onThreads(2, true, { ...each, rows: [some - 1] });
    const [many] = await onThreads(2, true, { ...each, rows: [4 * some] });
    assert.ok('outputs' in few! && 'outputs' in many!);
    for (const index of [0, 1]) {
      const start: Float32Array = few.outputs[0]![index]!;
      assert.deepEqual(many.outputs[0]![index]!.subarray(0, start.length), start);
    }
  });

  test(`${instructions}: when a rank fails, those who wait for it in machine code fail too`, async () => {
    for (const spin of [true, false]) {
      const each = {
        instructions,
        columns: 64,
        contributors: [0, 1, 2],
        keepsSums: false,
        chained: spin,
        failing: 1,
      };
      const answers = await onThreads(3, spin, { ...each, rows: [5, 50] });
      for (const rank of [0, 2]) {
        assert.match(JSON.stringify(answers[rank]), /rank 1: the disk is on fire/, `rank ${rank}`);
      }
    }
  });
}
