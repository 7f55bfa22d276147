import assert from 'node:assert';
import { describe, test } from 'node:test';
import { blockTokens, Drive } from './drive.ts';

const range = (length: number, from = 0) => Array.from({ length }, (_, i) => (from + i * 7) % 64);

/** The slices of the next step, as "request:tokens". */
function next(drive: Drive): string {
  return (drive.step()?.slices ?? [])
    .map(({ sequence, tokens }) => `${sequence.request}:${tokens}`)
    .join(' ');
}

describe('what runs in a step', () => {
  test('decoding comes first, prefill fills the rest of the budget', () => {
    const drive = new Drive(64);
    drive.add({ prompt: range(6), tokens: 20 });
    assert.equal(next(drive), '0:6');
    drive.add({ prompt: range(40, 3), tokens: 20 });
    assert.deepEqual(
      [next(drive), next(drive), next(drive), next(drive)],
      ['0:1 1:15', '0:1 1:15', '0:1 1:10', '0:1 1:1'],
    );
  });

  test('without in-flight batching, prefill and decoding alternate', () => {
    const drive = new Drive(64, { inFlightBatching: false });
    drive.add({ prompt: range(6), tokens: 20 });
    assert.equal(next(drive), '0:6');
    drive.add({ prompt: range(40, 3), tokens: 20 });
    assert.deepEqual(
      [next(drive), next(drive), next(drive), next(drive), next(drive), next(drive)],
      ['0:1', '1:16', '0:1', '1:16', '0:1', '1:8'],
    );
    assert.equal(next(drive), '0:1 1:1');
  });

  test('without chunked prefill, a prompt that does not fit beside the others holds them up', () => {
    const drive = new Drive(64, { chunkedPrefill: false });
    drive.add({ prompt: range(6), tokens: 20 });
    assert.equal(next(drive), '0:6');
    drive.add({ prompt: range(40, 3), tokens: 20 });
    assert.deepEqual(
      [next(drive), next(drive), next(drive), next(drive)],
      ['1:16', '1:16', '1:8', '0:1 1:1'],
    );
    drive.add({ prompt: range(9, 5), tokens: 20 });
    assert.equal(next(drive), '0:1 1:1 2:9');
  });

  test('no more sequences than the batch takes, forks to come included', () => {
    const drive = new Drive(64, { maxBatchSize: 3 });
    drive.add({ prompt: range(3), tokens: 4 });
    drive.add({ prompt: range(3, 1), tokens: 4, choices: 3 });
    drive.add({ prompt: range(3, 2), tokens: 4 });
    assert.equal(next(drive), '0:3');
    drive.finish();
    assert.deepEqual(drive.finished, ['0.0', '1.0', '1.1', '1.2', '2.0']);
    drive.checkAnswers();
  });

  test('no more sequences than tokens in a step, so that each of them moves', () => {
    const drive = new Drive(64, { maxBatchSize: 8, stepTokens: 2 });
    for (let i = 0; i < 4; i++) drive.add({ prompt: range(1, i), tokens: 3 });
    assert.deepEqual(
      [next(drive), next(drive), next(drive), next(drive)],
      ['0:1 1:1', '0:1 1:1', '0:1 1:1', '2:1 3:1'],
    );
  });

  test('more choices than the batch takes run after one another', () => {
    const drive = new Drive(64, { maxBatchSize: 2 });
    drive.add({ prompt: range(6), tokens: 4, choices: 5 });
    drive.finish();
    assert.equal(drive.finished.length, 5);
    assert.equal(drive.engine.largestBatch, 2);
    drive.checkAnswers();
  });

  test('a lower priority number goes first, equals by arrival', () => {
    const drive = new Drive(64, { maxBatchSize: 1 });
    drive.add({ prompt: range(3), tokens: 1 });
    drive.add({ prompt: range(3, 1), tokens: 1, priority: 5 });
    drive.add({ prompt: range(3, 2), tokens: 1, priority: -1 });
    drive.add({ prompt: range(3, 3), tokens: 1 });
    drive.finish();
    assert.deepEqual(drive.finished, ['2.0', '0.0', '3.0', '1.0']);
  });

  test('several decode steps run on one visit when nothing prefills', () => {
    const drive = new Drive(64, { maxNumSteps: 8 });
    drive.add({ prompt: range(6), tokens: 12 });
    assert.equal(drive.step()!.steps, 1);
    assert.equal(drive.step()!.steps, 8);
    drive.add({ prompt: range(20, 5), tokens: 3 });
    assert.equal(drive.step()!.steps, 1);
    drive.finish();
    drive.checkAnswers();
  });

  test('the number of steps on one visit is what the blocks allow', () => {
    const drive = new Drive(4, { maxNumSteps: 8 });
    drive.add({ prompt: range(5), tokens: 11 });
    drive.add({ prompt: range(1, 5), tokens: 11 });
    drive.step();
    assert.equal(drive.step()!.steps, 3);
    drive.finish();
    drive.checkAnswers();
  });
});

describe('prefix-aware scheduling', () => {
  test('requests that share a prefix wait for the first to run it, then go together', () => {
    const drive = new Drive(64, { stepTokens: 32 });
    for (let i = 0; i < 4; i++) drive.add({ prompt: [...range(16), i, i], tokens: 4 });
    assert.equal(next(drive), '0:18');
    assert.equal(next(drive), '0:1 1:2 2:2 3:2');
    drive.finish();
    assert.equal(drive.scheduler.prefixHitTokens, 3 * 16);
    drive.checkAnswers();
  });

  test('switched off, all of them run the prefix', () => {
    const drive = new Drive(64, { stepTokens: 80, prefixAware: false });
    for (let i = 0; i < 4; i++) drive.add({ prompt: [...range(16), i, i], tokens: 4 });
    assert.equal(next(drive), '0:18 1:18 2:18 3:18');
  });

  test('nobody waits for a prefix of another salt', () => {
    const drive = new Drive(64, { stepTokens: 80 });
    for (const salt of ['a', 'b']) drive.add({ prompt: range(16), tokens: 4, salt });
    assert.equal(next(drive), '0:16 1:16');
  });

  test('those that are largely cached pass those that are not', () => {
    const drive = new Drive(64);
    drive.add({ prompt: range(12), tokens: 1 });
    drive.finish();
    drive.add({ prompt: range(8, 20), tokens: 1 });
    drive.add({ prompt: range(12, 30), tokens: 1 });
    drive.add({ prompt: [...range(12), 1], tokens: 1 });
    drive.add({ prompt: [...range(12), 2], tokens: 1, priority: 1 });
    assert.equal(next(drive), '3:1 1:8 2:7');
  });

  test('of more prefixes than the cache holds, each runs once', () => {
    const [prefixes, shared, each] = [12, 40, 4];
    const hits = (prefixAware: boolean): number => {
      const drive = new Drive(4 * (shared / blockTokens) + 8, { prefixAware });
      for (let i = 0; i < prefixes * each; i++)
        drive.add({ prompt: [...range(shared, i % prefixes), i], tokens: 4 });
      drive.finish();
      drive.checkAnswers();
      return drive.scheduler.prefixHitTokens;
    };
    assert(hits(true) >= prefixes * (each - 1) * shared, `${hits(true)} of the prompts' tokens were cached`);
    assert.equal(hits(false), 0);
  });

  test('a request that needs all rows reads nothing from the cache, but fills it', () => {
    const drive = new Drive(64);
    drive.add({ prompt: range(12), tokens: 1, needsAllRows: true });
    drive.finish();
    drive.add({ prompt: range(12), tokens: 1, needsAllRows: true });
    assert.equal(next(drive), '1:12');
    drive.add({ prompt: range(12), tokens: 1 });
    assert.equal(next(drive), '2:1');
  });
});

describe('when blocks run out', () => {
  test('the newest is preempted, recomputed, and answers as if nothing had happened', () => {
    const drive = new Drive(8);
    for (let i = 0; i < 3; i++) drive.add({ prompt: range(6, i), tokens: 20 });
    drive.finish();
    assert(drive.scheduler.preemptions > 0);
    assert.equal(drive.finished[0], '0.0');
    drive.checkAnswers();
  });

  test('nobody is admitted into the blocks that those who run need next', () => {
    const drive = new Drive(5);
    drive.add({ prompt: range(8), tokens: 8 });
    assert.equal(next(drive), '0:8');
    drive.add({ prompt: range(8, 1), tokens: 8 });
    drive.finish();
    assert.equal(drive.scheduler.preemptions, 0);
    assert.deepEqual(drive.finished, ['0.0', '1.0']);
  });

  test('a sequence ends when it has filled the whole pool', () => {
    const drive = new Drive(4);
    const sequence = drive.add({ prompt: range(6), tokens: 100 });
    drive.finish();
    assert.equal(sequence.chain.length, 16);
    drive.checkAnswers();
  });

  test('a prompt that can never fit is refused with the numbers', () => {
    const drive = new Drive(4);
    assert.throws(() => drive.add({ prompt: range(16), tokens: 1 }), {
      code: 'context_exceeded',
      message:
        'the prompt has 16 tokens, and with at least one new token it must fit 16: the longest sequence is 256 tokens, ' +
        'the KV cache holds 16 (4 blocks of 4)',
    });
    drive.add({ prompt: range(16), tokens: 0 });
  });

  test('a full queue refuses', () => {
    const drive = new Drive(16, { maxQueueSize: 2 });
    drive.add({ prompt: range(4), tokens: 1 });
    drive.add({ prompt: range(4), tokens: 1 });
    assert.throws(() => drive.add({ prompt: range(4), tokens: 1 }), { code: 'overloaded', httpStatus: 429 });
    drive.step();
    drive.add({ prompt: range(4), tokens: 1 });
  });

  test('a cancelled sequence gives its blocks back at once, waiting or running', () => {
    const drive = new Drive(16);
    const running = drive.add({ prompt: range(6), tokens: 20 });
    drive.step();
    const waiting = drive.add({ prompt: range(9), tokens: 20 });
    drive.scheduler.finish(waiting);
    drive.scheduler.finish(running);
    drive.scheduler.finish(running);
    assert.equal(drive.kv.used, 0);
    assert(drive.scheduler.idle);
    drive.check();
  });
});
