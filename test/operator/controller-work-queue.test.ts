import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { WorkQueue, type WorkQueueMetrics } from '../../operator/controller/work-queue.ts';
import { FakeClock, half, settle } from './controller-fake-clock.ts';

function make(metrics: WorkQueueMetrics = {}) {
  const clock = new FakeClock();
  const queue = new WorkQueue({ clock, random: half, backoff: { baseMs: 100, maxMs: 1000 }, metrics });
  return { clock, queue };
}

/** Everything that can be taken now. */
async function takeAll(queue: WorkQueue): Promise<string[]> {
  const taken: string[] = [];
  while (queue.depth > 0) taken.push((await queue.take())!);
  return taken;
}

test('keys come first in, first out, each once', async () => {
  const { queue } = make();
  for (const key of ['a', 'b', 'a', 'c', 'b']) queue.add(key);
  assert.deepEqual(await takeAll(queue), ['a', 'b', 'c']);
});

test('a key added while in work comes again when done, and only then', async () => {
  const { queue } = make();
  queue.add('a');
  await queue.take();
  queue.add('a');
  queue.add('a');
  assert.equal(queue.depth, 0);
  queue.done('a');
  assert.deepEqual(await takeAll(queue), ['a']);
  queue.done('a');
  assert.equal(queue.depth, 0);
});

test('a key that always comes again does not keep others from their turn', async () => {
  const { queue } = make();
  queue.add('busy');
  for (const key of ['a', 'b', 'c']) queue.add(key);
  const order: string[] = [];
  for (let turn = 0; turn < 5; turn += 1) {
    const key = (await queue.take())!;
    order.push(key);
    if (key === 'busy') queue.add(key);
    queue.done(key);
  }
  assert.deepEqual(order, ['busy', 'a', 'b', 'c', 'busy']);
});

test('a waiting worker gets a key as soon as it is added', async () => {
  const { queue } = make();
  const taken = [queue.take(), queue.take()];
  queue.add('a');
  queue.add('a');
  queue.add('b');
  assert.deepEqual(await Promise.all(taken), ['a', 'b']);
});

test('of two delays for a key the earlier one counts', async () => {
  const { clock, queue } = make();
  queue.addAfter('a', 1000);
  queue.addAfter('a', 300);
  queue.addAfter('a', 500);
  await clock.advance(299);
  assert.equal(queue.depth, 0);
  await clock.advance(1);
  assert.deepEqual(await takeAll(queue), ['a']);
  queue.done('a');
  await clock.advance(5000);
  assert.equal(queue.depth, 0);
});

test('work that begins cancels the delay: the work itself says when it wants to come back', async () => {
  const { clock, queue } = make();
  queue.addAfter('a', 1000);
  queue.add('a');
  await queue.take();
  queue.addAfter('a', 3000);
  queue.done('a');
  await clock.advance(2999);
  assert.equal(queue.depth, 0);
  await clock.advance(1);
  assert.equal(queue.depth, 1);
});

test('the delay of a failing key doubles up to the maximum, and forget() begins anew', async () => {
  const { clock, queue } = make();
  const delays: number[] = [];
  for (let attempt = 0; attempt < 6; attempt += 1) delays.push(queue.retry('a'));
  // Half of the jitter: three quarters of 100, 200, 400, ...
  assert.deepEqual(delays, [75, 150, 300, 600, 750, 750]);
  assert.equal(queue.failures('a'), 6);
  queue.forget('a');
  await clock.advance(75);
  assert.deepEqual(await takeAll(queue), ['a']);
  assert.equal(queue.retry('a'), 75);
});

test('retries of many keys are spread over time, additions are not', async () => {
  const clock = new FakeClock();
  const queue = new WorkQueue({ clock, random: half, retryRate: { perSecond: 10, burst: 20 } });
  for (let key = 0; key < 120; key += 1) queue.retry(String(key));
  await clock.advance(100);
  assert.equal(queue.depth, 21);
  await clock.advance(9_900);
  assert.equal(queue.depth, 120);
  for (let key = 0; key < 1000; key += 1) queue.add(`new ${key}`);
  assert.equal(queue.depth, 1120);
});

test('shutdown hands out nothing more, wakes the workers, and waits for the work in hand', async () => {
  const { clock, queue } = make();
  queue.add('a');
  queue.add('b');
  queue.addAfter('c', 10);
  await queue.take();
  let drained = false;
  const done = queue.shutdown().then(() => {
    drained = true;
  });
  assert.equal(await queue.take(), undefined);
  queue.add('d');
  queue.retry('e');
  await clock.advance(1000);
  assert.deepEqual([queue.depth, queue.delayed, drained, clock.timers], [0, 0, false, 0]);
  queue.add('a');
  queue.done('a');
  await done;
  assert.equal(queue.depth, 0);
});

test('shutdown ends a worker that waits', async () => {
  const { queue } = make();
  const waiting = queue.take();
  await queue.shutdown();
  assert.equal(await waiting, undefined);
});

test('metrics tell how long keys wait and work', async () => {
  const seen: string[] = [];
  const { clock, queue } = make({
    added: () => seen.push('added'),
    taken: (ms) => seen.push(`waited ${ms}`),
    done: (ms) => seen.push(`worked ${ms}`),
    retried: (ms) => seen.push(`retried ${ms}`),
  });
  queue.add('a');
  await clock.advance(30);
  await queue.take();
  await clock.advance(200);
  queue.retry('a');
  queue.done('a');
  assert.deepEqual(seen, ['added', 'waited 30', 'retried 75', 'worked 200']);
});

test('whatever is added, taken, failed and done: no key is in two hands, and none that was asked for is lost', async () => {
  const key = fc.constantFrom('a', 'b', 'c', 'd');
  const step = fc.oneof(
    fc.record({ do: fc.constant('add' as const), key }),
    fc.record({ do: fc.constant('after' as const), key, ms: fc.integer({ min: 0, max: 50 }) }),
    fc.record({ do: fc.constant('take' as const) }),
    fc.record({ do: fc.constant('done' as const), fail: fc.boolean() }),
    fc.record({ do: fc.constant('pass' as const), ms: fc.integer({ min: 0, max: 40 }) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const { clock, queue } = make();
      const hands: string[] = [];
      /** Keys asked for since they were last handed out. */
      const owed = new Set<string>();
      const take = async () => {
        const taken = (await queue.take())!;
        assert.ok(!hands.includes(taken), `${taken} is in two hands`);
        hands.push(taken);
        owed.delete(taken);
      };
      const done = (fail: boolean) => {
        const finished = hands.shift();
        if (finished === undefined) return;
        if (fail) {
          queue.retry(finished);
          owed.add(finished);
        }
        queue.done(finished);
      };
      for (const action of steps) {
        if (action.do === 'add') {
          queue.add(action.key);
          owed.add(action.key);
        } else if (action.do === 'after') {
          queue.addAfter(action.key, action.ms);
          owed.add(action.key);
        } else if (action.do === 'take' && queue.depth > 0) await take();
        else if (action.do === 'done') done(action.fail);
        else if (action.do === 'pass') await clock.advance(action.ms);
      }
      while (hands.length > 0) done(false);
      await clock.advance(2000);
      while (queue.depth > 0) {
        await take();
        done(false);
      }
      assert.deepEqual([...owed], []);
      assert.deepEqual([queue.inProgress, queue.delayed], [0, 0]);
    }),
    { numRuns: 60 },
  );
  await settle();
});
