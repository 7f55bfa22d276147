import assert from 'node:assert';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { ReferenceRow } from '../../../runtime/engine/kernels/logits-reference.ts';
import { floatWeight } from '../../../runtime/logits.ts';
import { ChoiceState } from '../../../runtime/sampling/choice-state.ts';
import { defaultSampling, type SamplingParameters } from '../../../runtime/sampling/parameters.ts';
import { philox, uniform } from '../../../runtime/sampling/random.ts';
import { Sampler } from '../../../runtime/sampling/sampler.ts';
import { TopList } from '../../../runtime/sampling/top-list.ts';

const greedy: Partial<SamplingParameters> = { temperature: 0 };

function stateOf(
  parameters: Partial<SamplingParameters>,
  options: { seed?: number; prompt?: number[] } = {},
): ChoiceState {
  const { seed = 1, prompt = [] } = options;
  return new ChoiceState({
    parameters: { ...defaultSampling, ...parameters },
    seed,
    eosTokenIds: [0],
    prompt,
  });
}

const rowOf = (logits: readonly number[]) => new ReferenceRow(Float32Array.from(logits));

/** Each id with the share that it has of many draws, over seeds. */
function shares(logits: number[], parameters: Partial<SamplingParameters>, draws = 4000): number[] {
  const sampler = new Sampler(logits.length);
  const counts = logits.map(() => 0);
  for (let seed = 0; seed < draws; seed++) {
    counts[sampler.sample(rowOf(logits), stateOf(parameters, { seed })).id]!++;
  }
  return counts.map((count) => count / draws);
}

/** Probabilities after temperature, min-p, top-k and top-p, by full sorts. */
function expectedShares(logits: readonly number[], parameters: Partial<SamplingParameters>): number[] {
  const { temperature, topK, topP, minP } = { ...defaultSampling, ...parameters };
  const max = Math.max(...logits);
  let kept = logits
    .map((logit, id) => ({ id, weight: Math.exp((logit - max) / temperature) }))
    .sort((a, b) => logits[b.id]! - logits[a.id]! || a.id - b.id)
    .filter(({ weight }) => weight >= minP);
  if (topK > 0) kept = kept.slice(0, topK);
  const total = kept.reduce((sum, { weight }) => sum + weight, 0);
  let before = 0;
  kept = kept.filter(({ weight }) => {
    const needed = before < topP * total * (1 - 1e-12);
    before += weight;
    return needed;
  });
  const mass = kept.reduce((sum, { weight }) => sum + weight, 0);
  return logits.map((_, id) => (kept.find((each) => each.id === id)?.weight ?? 0) / mass);
}

describe('random numbers', () => {
  test('are those of the published Philox4x32-10', () => {
    const hex = (words: readonly number[]) => words.map((word) => word.toString(16)).join(' ');
    assert.equal(hex(philox([0, 0, 0, 0], [0, 0])), '6627e8d5 e169c58d bc57ac4c 9b00dbd8');
    assert.equal(
      hex(philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])),
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    );
  });

  test('differ by seed, choice and position, and are uniform', () => {
    const draws = new Set<number>();
    let sum = 0;
    for (const seed of [0, 1, -1, 2 ** 40 + 1, Number.MAX_SAFE_INTEGER]) {
      for (let choice = 0; choice < 10; choice++) {
        for (let position = 0; position < 100; position++) {
          const draw = uniform(seed, choice, position);
          assert(draw >= 0 && draw < 1);
          draws.add(draw);
          sum += draw;
        }
      }
    }
    assert.equal(draws.size, 5000);
    assert(Math.abs(sum / 5000 - 0.5) < 0.02);
  });
});

describe('weights', () => {
  test('are powers of e by the temperature', () => {
    for (const temperature of [0.1, 0.7, 1, 2]) {
      const scale = Math.fround(Math.LOG2E / temperature);
      for (let x = 0; x > -24 * temperature; x -= 0.00713 * temperature) {
        const difference = Math.fround(x);
        const ratio = floatWeight(difference, scale) / Math.exp(difference / temperature);
        assert(Math.abs(ratio - 1) < 4e-6, `e^(${x} / ${temperature})`);
      }
    }
    assert.equal(floatWeight(0, 3e38), 1);
    assert(floatWeight(Number.NEGATIVE_INFINITY, 1) < 2 ** -100);
  });
});

describe('TopList', () => {
  test('finds what a sort would, ties by id', () => {
    const values = fc.array(fc.constantFrom(-2, -1, 0, 0.5, 1, 3, Number.NEGATIVE_INFINITY), {
      maxLength: 40,
    });
    fc.assert(
      fc.property(values, fc.integer({ min: 0, max: 20 }), (logits, count) => {
        const list = new TopList(20);
        list.fill(rowOf(logits), count);
        const expected = logits
          .map((logit, id) => ({ id, logit }))
          .filter(({ logit }) => logit > Number.NEGATIVE_INFINITY)
          .sort((a, b) => b.logit - a.logit || a.id - b.id)
          .slice(0, count);
        assert.deepEqual(list.sorted(), expected);
      }),
    );
  });
});

describe('choosing a token', () => {
  test('greedy takes the first of the greatest', () => {
    assert.equal(new Sampler(4).sample(rowOf([1, 3, 3, 2]), stateOf(greedy)).id, 1);
  });

  test('a tiny temperature is as good as greedy', () => {
    assert.deepEqual(shares([1, 3, 2.999, 2], { temperature: 1e-300 }, 50), [0, 1, 0, 0]);
  });

  const logits = [0.3, 2, -1, 2, 1.5, -4, 0.9, 1.1];
  const cases: Record<string, Partial<SamplingParameters>> = {
    'as the model has it': {},
    'flatter at temperature 2': { temperature: 2 },
    'sharper at temperature 0.5': { temperature: 0.5 },
    'only the first three by top-k': { topK: 3 },
    'top-k 1 decides a tie by id': { topK: 1 },
    'top-k beyond the vocabulary is off': { topK: 100 },
    'the smallest set of 60% by top-p': { topP: 0.6 },
    'a tiny top-p leaves the first': { topP: 1e-9 },
    'those of a third of the best by min-p': { minP: 1 / 3 },
    'all of them together': { temperature: 1.5, topK: 5, topP: 0.8, minP: 0.2 },
  };
  for (const [name, parameters] of Object.entries(cases)) {
    test(name, () => {
      const expected = expectedShares(logits, parameters);
      shares(logits, parameters).forEach((share, id) => {
        assert(Math.abs(share - expected[id]!) < 0.03, `id ${id}: ${share}, expected ${expected[id]}`);
        if (expected[id] === 0) assert.equal(share, 0, `id ${id} is left out`);
      });
    });
  }

  test('top-k and top-p leave what full sorts would, for any row', () => {
    const row = fc.array(fc.integer({ min: -24, max: 24 }), { minLength: 1, maxLength: 60 });
    const topP = fc.constantFrom(0.1, 0.37, 0.5, 0.9, 0.99, 1);
    fc.assert(
      fc.property(row, fc.nat(12), topP, (steps, topK, share) => {
        const values = steps.map((step) => step / 8);
        const expected = expectedShares(values, { topK, topP: share });
        const drawn = shares(values, { topK, topP: share }, 60);
        drawn.forEach((each, id) => {
          assert(each === 0 || expected[id]! > 0, `id ${id} should be left out`);
        });
      }),
    );
  });

  test('a nucleus of a large flat row has the size that its share asks for', () => {
    const sampler = new Sampler(4000);
    const row = rowOf(Array.from({ length: 4000 }, (_, id) => ((id * 7919) % 4000 < 2000 ? 1 : 1 - 1e-3)));
    const ids = new Set<number>();
    for (let seed = 0; seed < 300; seed++) ids.add(sampler.sample(row, stateOf({ topP: 0.25 }, { seed })).id);
    for (const id of ids) assert(row.at(id) === 1 && (id * 7919) % 4000 < 2000, `id ${id}`);
    assert(ids.size > 200);
  });

  test('a draw depends on seed, choice and position, and on nothing else', () => {
    const sampler = new Sampler(64);
    const row = () => rowOf(Array.from({ length: 64 }, (_, id) => Math.sin(id)));
    const draw = (seed: number, choice: number, prompt: number[]) =>
      sampler.sample(row(), stateOf({}, { seed, prompt }).fork(choice)).id;
    const first = draw(5, 0, [1, 2]);
    sampler.sample(row(), stateOf({ topK: 3 }, { seed: 9 }));
    assert.equal(draw(5, 0, [7, 7]), first);
    const others = [draw(6, 0, [1, 2]), draw(5, 1, [1, 2]), draw(5, 0, [1, 2, 3]), draw(7, 0, [1, 2])];
    assert(others.some((other) => other !== first));
  });

  test('logits that are no numbers are an error, not a token', () => {
    const row = () => rowOf([Number.NaN, Number.NaN]);
    assert.throws(() => new Sampler(2).sample(row(), stateOf(greedy)), { code: 'engine_failed' });
    assert.throws(() => new Sampler(2).sample(row(), stateOf({})), { code: 'engine_failed' });
  });
});

describe('log-probabilities', () => {
  const row = [0.5, 2, -1, 2, 1.5];
  const total = Math.log(row.reduce((sum, logit) => sum + Math.exp(logit), 0));

  test('are the model’s own, whatever temperature, bias and truncation do', () => {
    const parameters = { temperature: 3, topK: 1, logprobs: 2, logitBias: [[2, 50]] as const };
    const { id, logprob } = new Sampler(5).sample(rowOf(row), stateOf(parameters));
    assert.equal(id, 2);
    assert(Math.abs(logprob!.logprob - (-1 - total)) < 1e-6);
    assert.deepEqual(
      logprob!.top.map((entry) => entry.id),
      [1, 3],
    );
    assert(Math.abs(logprob!.top[0]!.logprob - (2 - total)) < 1e-6);
  });

  test('none are computed unless asked for, and with 0 alternatives only the token’s own', () => {
    const sampler = new Sampler(5);
    assert.deepEqual(sampler.sample(rowOf(row), stateOf(greedy)), { id: 1 });
    const { logprob } = sampler.sample(rowOf(row), stateOf({ ...greedy, logprobs: 0 }));
    assert.deepEqual(logprob!.top, []);
  });
});

describe('what changes logits first', () => {
  function adjusted(parameters: Partial<SamplingParameters>, prompt: number[], answer: number[]): number[] {
    const state = stateOf(parameters, { prompt });
    for (const id of answer) state.accept(id);
    const logits = Float32Array.of(2, -2, 4, 1);
    state.adjust(logits);
    return [...logits];
  }

  test('presence counts once, frequency as often as it occurred, the prompt not', () => {
    assert.deepEqual(adjusted({ presencePenalty: 0.5, maxTokens: 9 }, [3], [0, 0]), [1.5, -2, 4, 1]);
    assert.deepEqual(adjusted({ frequencyPenalty: 0.5, maxTokens: 9 }, [3], [0, 0]), [1, -2, 4, 1]);
  });

  test('repetition divides what is positive and multiplies what is negative, the prompt’s too, each once', () => {
    assert.deepEqual(adjusted({ repetitionPenalty: 2, maxTokens: 9 }, [0, 1, 1], [0, 3]), [1, -4, 4, 0.5]);
  });

  test('a bias is added', () => {
    assert.deepEqual(adjusted({ logitBias: [[1, 10]] }, [], []), [2, 8, 4, 1]);
  });

  test('end-of-sequence and stop tokens are masked until there are enough new tokens', () => {
    const state = stateOf({ minTokens: 2, stopTokenIds: [2], maxTokens: 9 });
    const row = () => rowOf([2, -2, 4, 1]);
    const sampler = new Sampler(4);
    const greedyState = stateOf({ ...state.parameters, temperature: 0 });
    const answer = [0, 1, 2].map(() => {
      const { id } = sampler.sample(row(), greedyState);
      greedyState.accept(id);
      return id;
    });
    assert.deepEqual(answer, [3, 3, 2]);
  });
});

describe('why a choice ends', () => {
  const cases: [string, Partial<SamplingParameters>, number, unknown][] = [
    ['end of sequence', { maxTokens: 9 }, 0, { reason: 'stop', stopReason: null }],
    ['end of sequence, ignored', { maxTokens: 9, ignoreEos: true }, 0, undefined],
    ['a stop token', { maxTokens: 9, stopTokenIds: [3] }, 3, { reason: 'stop', stopReason: 3 }],
    [
      'a stop token at the very limit',
      { maxTokens: 1, stopTokenIds: [3] },
      3,
      { reason: 'stop', stopReason: 3 },
    ],
    ['the limit', { maxTokens: 1 }, 5, { reason: 'length', stopReason: null }],
    ['nothing yet', { maxTokens: 2 }, 5, undefined],
  ];
  for (const [name, parameters, token, ending] of cases) {
    test(name, () => {
      assert.deepEqual(stateOf(parameters).accept(token), ending);
    });
  }
});
