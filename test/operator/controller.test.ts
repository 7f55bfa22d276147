/** The controller: reflectors feed it, workers reconcile. On the in-memory API server, with a clock that the test moves. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import {
  Controller,
  type ControllerOptions,
  type Reconcile,
  TerminalError,
} from '../../operator/controller/controller.ts';
import { Reflector } from '../../operator/controller/reflector.ts';
import { keyOf } from '../../operator/controller/store.ts';
import { type KubeObject, resources } from '../../operator/kube/client.ts';
import { MemoryKube } from '../support/memory-kube.ts';
import { FakeClock, half, memoryLog, settle } from './controller-fake-clock.ts';

const { configMaps, pods } = resources;

function configMap(name: string, n = '1'): KubeObject {
  return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { namespace: 'test', name }, data: { n } };
}

function bench(t: TestContext, reconcile: Reconcile, options: Partial<ControllerOptions> = {}) {
  const clock = new FakeClock();
  const { log, lines } = memoryLog();
  const kube = new MemoryKube();
  const common = { clock, random: half, log };
  const reflector = new Reflector({ client: kube, type: configMaps, ...common });
  const outcomes: string[] = [];
  const controller = new Controller({
    name: 'test',
    reconcile,
    ...common,
    backoff: { baseMs: 100, maxMs: 1_000 },
    metrics: { reconciled: (outcome) => outcomes.push(outcome) },
    ...options,
  });
  controller.watch(reflector, ({ object }) => [keyOf(object)]);
  const stop = new AbortController();
  t.after(() => stop.abort());
  const start = () => {
    void reflector.run(stop.signal);
    return controller.run(stop.signal);
  };
  return { clock, kube, reflector, controller, stop, start, lines, outcomes, common };
}

/** A reconcile that writes down its keys and does as the test says. */
function recorder(act: (key: string, call: number) => { requeueAfterMs?: number } = () => ({})) {
  const calls: string[] = [];
  const reconcile: Reconcile = async (key) => {
    calls.push(key);
    return act(key, calls.length);
  };
  return { calls, reconcile };
}

test('every object is reconciled once at the start, and again when it changes', async (t) => {
  const { calls, reconcile } = recorder();
  const { kube, start } = bench(t, reconcile);
  for (const name of ['a', 'b']) await kube.create(configMaps, configMap(name));
  void start();
  await settle();
  assert.deepEqual(calls, ['test/a', 'test/b']);
  await kube.mergePatch(configMaps, { namespace: 'test', name: 'b' }, { data: { n: '2' } });
  await kube.remove(configMaps, { namespace: 'test', name: 'a' });
  await settle();
  assert.deepEqual(calls, ['test/a', 'test/b', 'test/b', 'test/a']);
});

test('nothing is reconciled before all caches are complete', async (t) => {
  const { calls, reconcile } = recorder();
  const { kube, start, controller, common, stop } = bench(t, reconcile);
  const gate = Promise.withResolvers<void>();
  const slow = Object.assign(Object.create(kube) as MemoryKube, {
    list: async (...args: Parameters<MemoryKube['list']>) => {
      await gate.promise;
      return await kube.list(...args);
    },
  });
  const second = new Reflector({ client: slow, type: pods, ...common });
  controller.watch(second, () => []);
  await kube.create(configMaps, configMap('a'));
  void start();
  void second.run(stop.signal);
  await settle();
  assert.deepEqual([calls, controller.depth], [[], 1]);
  gate.resolve();
  await settle();
  assert.deepEqual(calls, ['test/a']);
});

test('what fails is repeated with growing delays until it succeeds, and logged each time', async (t) => {
  const times: number[] = [];
  const { reconcile } = recorder((_key, call) => {
    times.push(clock.monotonicMs());
    if (call < 5) throw new Error(`failure ${call}`);
    return {};
  });
  const { kube, start, clock, lines, outcomes } = bench(t, reconcile);
  await kube.create(configMaps, configMap('a'));
  void start();
  await clock.advance(60_000);
  assert.deepEqual(times, [0, 75, 225, 525, 1125]);
  const errors = lines.filter(({ level }) => level === 'error');
  assert.deepEqual(
    errors.map(({ message, fields }) => [message, fields.key, fields.controller, fields.failures]),
    [1, 2, 3, 4].map((failures) => ['reconcile failed', 'test/a', 'test', failures]),
  );
  assert.deepEqual(outcomes, ['error', 'error', 'error', 'error', 'success']);
});

test('a reconcile that throws before it is asynchronous is repeated like any other', async (t) => {
  let calls = 0;
  const { kube, start, clock } = bench(t, () => {
    calls += 1;
    throw new TypeError('a bug');
  });
  await kube.create(configMaps, configMap('a'));
  void start();
  await clock.advance(300);
  assert.equal(calls, 3);
});

test('a terminal error is not repeated before something changes', async (t) => {
  const { calls, reconcile } = recorder(() => {
    throw new TerminalError('the manifest can never work');
  });
  const { kube, start, clock, lines, outcomes } = bench(t, reconcile);
  await kube.create(configMaps, configMap('a'));
  void start();
  await clock.advance(3_600_000);
  assert.deepEqual([calls.length, outcomes], [1, ['terminal']]);
  assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
  await kube.mergePatch(configMaps, { namespace: 'test', name: 'a' }, { data: { n: '2' } });
  await settle();
  assert.equal(calls.length, 2);
});

test('requeueAfterMs brings the key back then, or earlier when something changes', async (t) => {
  const times: number[] = [];
  const { reconcile } = recorder((_key, call) => {
    times.push(clock.monotonicMs());
    return call < 3 ? { requeueAfterMs: 10_000 } : {};
  });
  const { kube, start, clock } = bench(t, reconcile);
  await kube.create(configMaps, configMap('a'));
  void start();
  await clock.advance(4_000);
  await kube.mergePatch(configMaps, { namespace: 'test', name: 'a' }, { data: { n: '2' } });
  await clock.advance(100_000);
  assert.deepEqual(times, [0, 4_000, 14_000]);
});

test('many changes during one reconcile are one more reconcile, never two at once for a key', async (t) => {
  let running = 0;
  let most = 0;
  let calls = 0;
  const gate = Promise.withResolvers<void>();
  const { kube, start } = bench(t, async () => {
    calls += 1;
    running += 1;
    most = Math.max(most, running);
    await gate.promise;
    running -= 1;
    return {};
  });
  await kube.create(configMaps, configMap('a'));
  void start();
  await settle();
  for (let n = 2; n < 30; n += 1) {
    await kube.mergePatch(configMaps, { namespace: 'test', name: 'a' }, { data: { n: String(n) } });
  }
  await settle();
  assert.equal(calls, 1);
  gate.resolve();
  await settle();
  assert.deepEqual([calls, most], [2, 1]);
});

test('as many keys as there are workers are in work at once', async (t) => {
  let running = 0;
  let most = 0;
  const gate = Promise.withResolvers<void>();
  const { kube, start } = bench(
    t,
    async () => {
      running += 1;
      most = Math.max(most, running);
      await gate.promise;
      running -= 1;
      return {};
    },
    { workers: 3 },
  );
  for (let n = 0; n < 10; n += 1) await kube.create(configMaps, configMap(`c${n}`));
  void start();
  await settle();
  gate.resolve();
  await settle();
  assert.equal(most, 3);
});

test('stopping aborts the signal, waits for the reconcile in work, and starts no other', async (t) => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const calls: string[] = [];
  let aborted = false;
  const { kube, start, stop, controller, lines } = bench(
    t,
    async (key, { signal }) => {
      calls.push(key);
      signal.addEventListener('abort', () => {
        aborted = true;
      });
      await promise;
      throw signal.reason;
    },
    { workers: 1 },
  );
  for (const name of ['a', 'b']) await kube.create(configMaps, configMap(name));
  let stopped = false;
  const finished = start().then(() => {
    stopped = true;
  });
  await settle();
  stop.abort();
  await settle();
  assert.deepEqual([aborted, stopped], [true, false]);
  resolve();
  await finished;
  controller.enqueue('test/c');
  await settle();
  assert.deepEqual(calls, ['test/a']);
  assert.equal(lines.filter(({ level }) => level === 'error').length, 0);
});

test('a reconcile that does not end is left behind after the drain time, and said to be', async (t) => {
  const { kube, start, stop, clock, lines } = bench(t, () => new Promise(() => {}), {
    drainTimeoutMs: 5_000,
  });
  await kube.create(configMaps, configMap('a'));
  const finished = start();
  await settle();
  stop.abort();
  await clock.advance(5_000);
  await finished;
  const line = lines.find(({ level }) => level === 'error');
  assert.deepEqual([line?.message, line?.fields.running], ['reconciles did not end in time', 1]);
});

test('a storm: 1,000 objects that all change three times more end reconciled in their last state', async (t) => {
  const count = 1_000;
  const seen = new Map<string, string>();
  let calls = 0;
  const { kube, start, reflector, controller, clock } = bench(
    t,
    async (key) => {
      calls += 1;
      const object = reflector.store.get(key);
      await Promise.resolve();
      // One in seven fails the first time.
      if (calls % 7 === 0) throw new Error('a hiccup');
      seen.set(key, object?.data.n);
      return {};
    },
    { workers: 8 },
  );
  for (let n = 0; n < count; n += 1) await kube.create(configMaps, configMap(`c${n}`));
  void start();
  await settle();
  for (let round = 2; round <= 4; round += 1) {
    for (let n = 0; n < count; n += 1) {
      const ref = { namespace: 'test', name: `c${n}` };
      await kube.mergePatch(configMaps, ref, { data: { n: String(round) } });
    }
  }
  await clock.advance(120_000);
  assert.equal(seen.size, count);
  assert.deepEqual([...new Set(seen.values())], ['4']);
  assert.equal(controller.depth, 0);
});
