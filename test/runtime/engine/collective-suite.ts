/** What every Collective does; each rank of the implementation under test runs it in its own thread. */
import assert from 'node:assert/strict';
import type { Collective } from '../../../runtime/engine/collective/collective.ts';

/** Exact in float32, different for every rank, round and position. */
function part(rank: number, round: number, index: number): number {
  return ((rank * 7 + round * 13 + index * 31) % 1009) / 1024;
}

/** Throws when the collective breaks its contract. `reduceFloats`: the largest all-reduce. */
export function exerciseCollective(collective: Collective, reduceFloats: number): void {
  const { rank, ranks } = collective;
  const sizes = [1, 3, 64, 576, reduceFloats, 5, reduceFloats - 1, 2];
  for (let round = 0; round < 400; round++) {
    // Large sums are slow to check; they come up every few rounds.
    const count = round % 16 < sizes.length ? sizes[round % 16]! : 1 + ((round * 97) % 1000);
    const contribution = collective.contribution(count);
    assert.equal(contribution.length, count);
    for (let i = 0; i < count; i++) contribution[i] = part(rank, round, i);
    const sum = collective.allReduce(count);
    assert.equal(sum.length, count);
    for (let i = 0; i < count; i++) {
      let expected = 0;
      for (let other = 0; other < ranks; other++) expected += part(other, round, i);
      if (sum[i] !== expected)
        assert.fail(`rank ${rank}, round ${round}: [${i}] is ${sum[i]}, not ${expected}`);
    }
    if (round % 5 === 0) collective.barrier();
    if (round % 3 === 0) {
      const words = collective.broadcast(rank === 0 ? Int32Array.of(round, round + 1, 42) : undefined);
      assert.deepEqual([...words!], [round, round + 1, 42]);
      // A broadcast may be overwritten by the next one as soon as rank 0 goes on.
      collective.barrier();
    }
  }
  if (rank === 0) collective.close();
  else assert.equal(collective.broadcast(), undefined);
}
