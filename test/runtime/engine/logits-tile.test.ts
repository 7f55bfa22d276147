/** Rows in pieces against rows in one piece: what the kernel and the ranks find must be what plain loops find. */
import assert from 'node:assert';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { ReferenceRow } from '../../../runtime/engine/kernels/logits-reference.ts';
import { LogitsTile, shareTile } from '../../../runtime/engine/kernels/logits-tile.ts';
import type { Candidates, LogitsRow, Weighing } from '../../../runtime/logits.ts';
import { ChoiceState } from '../../../runtime/sampling/choice-state.ts';
import { defaultSampling, type SamplingParameters } from '../../../runtime/sampling/parameters.ts';
import { Sampler } from '../../../runtime/sampling/sampler.ts';

interface Foretold {
  readonly logSumExp: boolean;
  readonly weighing: Weighing | undefined;
}

const nothing: Foretold = { logSumExp: false, weighing: undefined };

/** The rows as rank 0 gets them once ranks that hold `shares` ids have written and reduced their parts. */
function inPieces(
  rows: readonly Float32Array[],
  shares: readonly number[],
  foretold: Foretold = nothing,
): LogitsRow[] {
  const shared = shareTile(rows.length, shares);
  const tiles = shares.map((_, rank) => new LogitsTile(shared, rank));
  let first = 0;
  for (const [rank, tile] of tiles.entries()) {
    for (const [index, row] of rows.entries())
      tile.output.set(row.subarray(first, first + shares[rank]!), index * shares[rank]!);
    first += shares[rank]!;
  }
  for (const tile of tiles) for (const index of rows.keys()) tile.reduce(index, foretold.logSumExp);
  const { weighing } = foretold;
  if (weighing) for (const tile of tiles) for (const index of rows.keys()) tile.weigh(index, weighing);
  return rows.map((_, index) => tiles[0]!.row(index, foretold.logSumExp, weighing));
}

const candidatesFor = (size: number): Candidates => ({
  ids: new Int32Array(size),
  weights: new Float32Array(size),
  count: 0,
  bound: 0,
  heavier: 0,
});

const contents = ({ ids, weights, count, bound, heavier }: Candidates): unknown => [
  [...ids.subarray(0, count)],
  [...weights.subarray(0, count)],
  bound,
  heavier,
];

/** Logits as models give them, ties, infinities and what is no number among them. */
const logit = fc.oneof(
  { weight: 12, arbitrary: fc.integer({ min: -400, max: 300 }).map((n) => n / 16) },
  { weight: 4, arbitrary: fc.float({ min: -50, max: 50, noNaN: true }) },
  { weight: 1, arbitrary: fc.constantFrom(Number.NEGATIVE_INFINITY, Number.NaN, 3, 3) },
);
const row = fc
  .array(logit, { minLength: 1, maxLength: 900 })
  .map((logits) => Float32Array.from(logits))
  .filter((logits) => logits.some((each) => each > Number.NEGATIVE_INFINITY));
const cuts = fc.array(fc.nat(900), { maxLength: 3 });

function sharesOf(size: number, at: readonly number[]): number[] {
  const ends = [...at.map((cut) => cut % (size + 1)), size].sort((a, b) => a - b);
  return ends.map((end, i) => end - (ends[i - 1] ?? 0));
}

const parameters: fc.Arbitrary<SamplingParameters> = fc
  .record({
    temperature: fc.constantFrom(0, 1e-300, 0.05, 0.7, 1, 1.3, 5),
    topP: fc.constantFrom(1, 1, 0.999, 0.95, 0.5, 1e-6),
    topK: fc.constantFrom(0, 0, 1, 5, 50, 5000),
    minP: fc.constantFrom(0, 0, 0.01, 0.3, 1),
    logprobs: fc.constantFrom(0, 5, 20),
    presencePenalty: fc.constantFrom(0, 0, 1.5),
    repetitionPenalty: fc.constantFrom(1, 1, 1.3),
  })
  .map((some) => ({ ...defaultSampling, maxTokens: 9, ...some }));

describe('a row of logits in pieces', () => {
  test('has the greatest, and the next above, that it has in one piece', () => {
    fc.assert(
      fc.property(row, cuts, fc.nat(), fc.integer({ min: -20, max: 20 }), (logits, at, start, least) => {
        const whole = new ReferenceRow(logits);
        const [cut] = inPieces([logits], sharesOf(logits.length, at));
        assert.equal(cut!.greatest(), whole.greatest());
        assert.equal(cut!.size, logits.length);
        const from = start % (logits.length + 1);
        assert.equal(cut!.nextAbove(from, least), whole.nextAbove(from, least));
        for (const [id, value] of logits.entries()) assert.equal(cut!.at(id), value);
      }),
    );
  });

  test('weighs, picks and gives the heaviest to the bit as in one piece', () => {
    fc.assert(
      fc.property(
        row,
        cuts,
        parameters,
        fc.double({ min: 0, max: 1, noNaN: true }),
        (logits, at, each, u) => {
          const { weighing } = new ChoiceState({
            parameters: { ...each, temperature: each.temperature || 1 },
            seed: 1,
            eosTokenIds: [],
            prompt: [],
          });
          const whole = new ReferenceRow(logits);
          const shares = sharesOf(logits.length, at);
          const [foretold] = inPieces([logits], shares, { logSumExp: false, weighing });
          const [asked] = inPieces([logits], shares);
          const total = whole.weigh(weighing);
          assert.equal(foretold!.weigh(weighing), total);
          assert.equal(asked!.weigh(weighing), total);
          if (!weighing.nucleus) {
            assert.equal(foretold!.pick(u * total), whole.pick(u * total));
            assert.equal(asked!.pick(total), whole.pick(total), 'beyond the sum');
            return;
          }
          const [expected, found] = [candidatesFor(logits.length), candidatesFor(logits.length)];
          whole.heaviest(each.topP * total, expected);
          foretold!.heaviest(each.topP * total, found);
          assert.deepEqual(contents(found), contents(expected));
        },
      ),
    );
  });

  test('gives the token and the log-probabilities that it gives in one piece', () => {
    fc.assert(
      fc.property(row, cuts, parameters, fc.nat(), (logits, at, each, seed) => {
        const prompt = [0, logits.length - 1];
        const state = new ChoiceState({ parameters: each, seed, eosTokenIds: [0], prompt });
        state.accept(logits.length >> 1);
        const sampler = new Sampler(logits.length);
        const expected = sampler.sample(new ReferenceRow(logits), state);
        for (const foretold of [nothing, { logSumExp: true, weighing: sampler.weighing(state) }]) {
          const [cut] = inPieces([logits], sharesOf(logits.length, at), foretold);
          const sampled = sampler.sample(cut!, state);
          assert.equal(sampled.id, expected.id);
          assert.deepEqual(
            sampled.logprob!.top.map(({ id }) => id),
            expected.logprob!.top.map(({ id }) => id),
          );
          const near = (a: number, b: number): boolean => a === b || Math.abs(a - b) < 1e-5;
          if (!logits.some(Number.isNaN)) assert(near(sampled.logprob!.logprob, expected.logprob!.logprob));
          assert.deepEqual(sampler.sample(cut!, state), sampled, 'the row is as it was');
        }
      }),
    );
  });

  test('stays apart from the other rows of its tile', () => {
    const rows = [0, 1, 2].map((seed) =>
      Float32Array.from({ length: 700 }, (_, id) => Math.sin(id * (seed + 1))),
    );
    const weighing = { scale: 2, below: Number.NEGATIVE_INFINITY, nucleus: false };
    const cut = inPieces(rows, [300, 0, 400], { logSumExp: true, weighing });
    for (const [index, logits] of rows.entries()) {
      const whole = new ReferenceRow(logits);
      assert.equal(cut[index]!.greatest(), whole.greatest());
      assert.equal(cut[index]!.weigh(weighing), whole.weigh(weighing));
      assert(Math.abs(cut[index]!.logSumExp() - whole.logSumExp()) < 1e-5);
    }
  });

  test('of a whole vocabulary has weights whose sums are exact, however flat it is', () => {
    const size = 150_000;
    const logits = Float32Array.from({ length: size }, (_, id) => Math.sin(id * id) * 0.01);
    const weighing = { scale: Math.fround(Math.LOG2E), below: Number.NEGATIVE_INFINITY, nucleus: true };
    const totals = [[size], [1, size - 1], [70_001, 9, 79_990]].map((shares) =>
      inPieces([logits], shares)[0]!.weigh(weighing),
    );
    assert.equal(new Set(totals).size, 1);
    const sampler = new Sampler(size);
    const state = (seed: number): ChoiceState =>
      new ChoiceState({
        parameters: { ...defaultSampling, topP: 0.4 },
        seed,
        eosTokenIds: [],
        prompt: [],
      });
    const cut = inPieces([logits], [80_000, 70_000])[0]!;
    const [one] = inPieces([logits], [size]);
    for (let seed = 0; seed < 20; seed++)
      assert.equal(sampler.sample(cut, state(seed)).id, sampler.sample(one!, state(seed)).id);
  });
});
