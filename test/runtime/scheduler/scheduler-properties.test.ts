import assert from 'node:assert';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { mostPassed } from '../../../runtime/scheduler/scheduler.ts';
import { type Arrival, Drive } from './drive.ts';

/** Prompts are made of few pieces, so that prefixes are shared by blocks and by parts of blocks. */
const prompt = fc
  .tuple(
    fc.constantFrom([], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 9, 9, 9, 9]),
    fc.array(fc.nat(3), { minLength: 1, maxLength: 14 }),
  )
  .map(([head, tail]) => [...head, ...tail]);

const arrival: fc.Arbitrary<Arrival> = fc.record({
  prompt,
  tokens: fc.integer({ min: 1, max: 12 }),
  choices: fc.oneof(
    { weight: 4, arbitrary: fc.constant(1) },
    { weight: 1, arbitrary: fc.integer({ min: 2, max: 4 }) },
  ),
  priority: fc.integer({ min: 0, max: 1 }),
  salt: fc.constantFrom('', '', '', 'other'),
  needsAllRows: fc.oneof(
    { weight: 5, arbitrary: fc.constant(false) },
    { weight: 1, arbitrary: fc.constant(true) },
  ),
});

type Event = { readonly add: Arrival } | { readonly cancel: number } | { readonly steps: number };

const event: fc.Arbitrary<Event> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ add: arrival }) },
  { weight: 1, arbitrary: fc.record({ cancel: fc.nat(40) }) },
  { weight: 4, arbitrary: fc.record({ steps: fc.integer({ min: 1, max: 6 }) }) },
);

const policy = fc.record({
  maxBatchSize: fc.integer({ min: 1, max: 9 }),
  stepTokens: fc.integer({ min: 1, max: 24 }),
  maxLength: fc.constant(64),
  maxQueueSize: fc.constant(1000),
  inFlightBatching: fc.boolean(),
  chunkedPrefill: fc.boolean(),
  prefixAware: fc.boolean(),
  prefixCaching: fc.boolean(),
  maxNumSteps: fc.constantFrom(1, 1, 3, 8),
});

function play(drive: Drive, events: readonly Event[]): void {
  for (const each of events) {
    if ('add' in each) {
      // The longest prompt has 26 tokens; smaller pools refuse some, which is an outcome as good as any.
      try {
        drive.add(each.add);
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'context_exceeded');
      }
    } else if ('cancel' in each) {
      const sequence = drive.sequences[each.cancel];
      if (sequence !== undefined) drive.scheduler.finish(sequence);
      drive.check();
    } else {
      for (let i = 0; i < each.steps; i++) drive.step();
    }
  }
  drive.finish();
  drive.checkAnswers();
}

describe('whatever arrives, forks and is cancelled', () => {
  test('blocks are conserved, no row has two owners, answers are right, and everything ends', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 40 }),
        policy,
        fc.array(event, { maxLength: 40 }),
        (blocks, options, events) => {
          play(new Drive(blocks, options), events);
        },
      ),
      { numRuns: 400 },
    );
  });

  test('the same holds when the Nth allocation fails, for every N', () => {
    let failures = 0;
    let preemptions = 0;
    fc.assert(
      fc.property(
        fc.integer({ min: 8, max: 20 }),
        policy,
        fc.array(event, { minLength: 4, maxLength: 14 }),
        (blocks, options, events) => {
          const whole = new Drive(blocks, options);
          play(whole, events);
          const ended = whole.finished.toSorted();
          for (let failing = 1; failing <= whole.pool.calls; failing++) {
            const drive = new Drive(blocks, options);
            drive.pool.failing = new Set([failing]);
            play(drive, events);
            failures++;
            preemptions += drive.scheduler.preemptions;
            // Which sequences there are to be cancelled depends on when forks come; without cancellations all must end.
            if (events.every((each) => !('cancel' in each)))
              assert.deepEqual(drive.finished.toSorted(), ended, `allocation ${failing} failed`);
          }
        },
      ),
      { numRuns: 60 },
    );
    assert(failures > 500 && preemptions > 100, `${failures} failures, ${preemptions} preemptions`);
  });

  test('the same holds when any allocations fail', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 8, max: 40 }),
        policy,
        fc.array(event, { maxLength: 40 }),
        fc.uniqueArray(fc.integer({ min: 1, max: 100 }), { maxLength: 30 }),
        (blocks, options, events, failing) => {
          const drive = new Drive(blocks, options);
          drive.pool.failing = new Set(failing);
          play(drive, events);
        },
      ),
      { numRuns: 200 },
    );
  });

  test('the oldest of the highest priority is never preempted and never waits for a later one', () => {
    fc.assert(
      fc.property(
        fc.array(arrival, { minLength: 2, maxLength: 12 }),
        fc.integer({ min: 12, max: 24 }),
        (arrivals, blocks) => {
          const drive = new Drive(blocks, { maxBatchSize: 8 });
          for (const each of arrivals) drive.add({ ...each, priority: 0, choices: 1 });
          drive.step();
          while (!drive.scheduler.idle) {
            const [oldest] = drive.scheduler.running;
            const schedule = drive.step()!;
            const ran = schedule.slices.some((slice) => slice.sequence === oldest);
            assert(oldest === undefined || ran, `request ${oldest?.request} got no slice`);
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  test('however many cached ones arrive, no more than so many pass one that is not', () => {
    const hot = Array.from({ length: 16 }, (_, i) => i);
    let most = 0;
    fc.assert(
      fc.property(
        fc.array(fc.record({ cold: fc.boolean(), tokens: fc.integer({ min: 1, max: 6 }) }), {
          minLength: 2,
          maxLength: 300,
          size: 'max',
        }),
        fc.integer({ min: 12, max: 40 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 4, max: 40 }),
        (arrivals, blocks, maxBatchSize, stepTokens) => {
          const drive = new Drive(blocks, { maxBatchSize, stepTokens });
          drive.add({ prompt: [...hot, 0], tokens: 1 });
          drive.finish();
          // A cold prompt begins like no other: it neither finds nor awaits a prefix.
          const prompts = arrivals.map(({ cold }, i) =>
            cold ? [32 + (i % 32), 32 + (i >> 5), ...hot.toReversed()] : [...hot, 1 + (i % 31)],
          );
          const sequences = arrivals.map(({ tokens }, i) => drive.add({ prompt: prompts[i]!, tokens }));
          const begun = (): boolean[] => sequences.map(({ cachedTokens }) => cachedTokens !== undefined);
          let before = begun();
          const passed = sequences.map(() => 0);
          while (!drive.scheduler.idle) {
            drive.step();
            const now = begun();
            let later = 0;
            for (let i = sequences.length - 1; i >= 0; i--) {
              if (!now[i]) passed[i]! += later;
              else if (!before[i]) later++;
            }
            before = now;
          }
          for (const [i, { cold }] of arrivals.entries()) {
            if (!cold) continue;
            // The step in which the last of them goes may take others with it.
            assert(passed[i]! < mostPassed + maxBatchSize, `request ${i} was passed by ${passed[i]}`);
            most = Math.max(most, passed[i]!);
          }
        },
      ),
      { numRuns: 40 },
    );
    assert(most >= mostPassed, `nobody was passed more often than ${most} times`);
  });
});
