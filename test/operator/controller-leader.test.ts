/** Leader election and the fence, with a clock that the test moves, on the in-memory API server. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { fencedClient } from '../../operator/controller/fenced-client.ts';
import {
  LeaderElector,
  type LeaderOptions,
  type Leadership,
  NotLeaderError,
} from '../../operator/controller/leader.ts';
import { type KubeClient, KubeError, type KubeObject, resources } from '../../operator/kube/client.ts';
import { MemoryKube, type MemoryKubeOptions } from '../support/memory-kube.ts';
import { FakeClock, half, type LogLine, memoryLog, settle } from './controller-fake-clock.ts';

const ref = { namespace: 'test', name: 'lease' };

interface Candidate {
  readonly elector: LeaderElector;
  readonly client: KubeClient;
  readonly stop: AbortController;
  readonly finished: Promise<void>;
  readonly terms: Leadership[];
  readonly lines: LogLine[];
  /** By default, work ends when its signal aborts. */
  work: (leadership: Leadership) => Promise<void>;
}

function candidate(
  t: TestContext,
  identity: string,
  clock: FakeClock,
  client: KubeClient,
  options: Partial<LeaderOptions> = {},
): Candidate {
  const { log, lines } = memoryLog();
  const elector = new LeaderElector({ client, ...ref, identity, clock, random: half, log, ...options });
  const stop = new AbortController();
  t.after(() => stop.abort());
  const terms: Leadership[] = [];
  const self: Candidate = {
    elector,
    client,
    stop,
    terms,
    lines,
    work: ({ signal }) =>
      new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true })),
    finished: elector.run(async (leadership) => {
      terms.push(leadership);
      await self.work(leadership);
    }, stop.signal),
  };
  return self;
}

function server(clock: FakeClock, options: MemoryKubeOptions = {}): MemoryKube {
  return new MemoryKube({ now: () => clock.now(), ...options });
}

/** A line to the server that can be cut: requests then fail, or wait for ever. */
function line(kube: MemoryKube): { client: KubeClient; state: 'up' | 'down' | 'silent' } {
  const pass = async (args: unknown[]) => {
    const options = args.at(-1) as { beforeSend?: () => void; signal?: AbortSignal } | undefined;
    if (self.state === 'down') throw new KubeError(0, 'Unreachable', 'connect ECONNREFUSED');
    if (self.state === 'silent') {
      await new Promise((_resolve, reject) => {
        options?.signal?.addEventListener('abort', () => reject(options.signal!.reason), { once: true });
      });
    }
  };
  const self: { client: KubeClient; state: 'up' | 'down' | 'silent' } = {
    state: 'up',
    client: new Proxy(kube, {
      get: (target, name) =>
        name === 'watch'
          ? target.watch.bind(target)
          : async (...args: unknown[]) => {
              await pass(args);
              return await (target[name as 'get'] as (...all: unknown[]) => Promise<unknown>).apply(
                target,
                args,
              );
            },
    }),
  };
  return self;
}

function lease(kube: MemoryKube): KubeObject['spec'] {
  return kube.objects(resources.leases)[0]?.spec;
}

test('the first one leads, renews, and the second one waits', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(100);
  const b = candidate(t, 'b', clock, kube);
  await clock.advance(60_000);
  assert.deepEqual([a.elector.isLeader, b.elector.isLeader, b.elector.holder], [true, false, 'a']);
  const spec = lease(kube);
  assert.deepEqual([spec.holderIdentity, spec.leaseDurationSeconds, spec.leaseTransitions], ['a', 15, 0]);
  // MicroTime: six digits.
  for (const time of [spec.acquireTime, spec.renewTime])
    assert.match(time, /^2026-01-01T00:0\d:\d\d\.\d{6}Z$/);
  assert.ok(Date.parse(spec.renewTime) >= clock.now().getTime() - 2_000);
  assert.ok(kube.writes.every(({ body }) => (body as KubeObject).spec.holderIdentity === 'a'));
});

test('asked to stop, it releases the lease: the other takes over at its next look', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(100);
  const b = candidate(t, 'b', clock, kube);
  await clock.advance(5_000);
  a.stop.abort();
  await a.finished;
  assert.equal(lease(kube).holderIdentity, '');
  await clock.advance(2_500);
  assert.equal(b.elector.isLeader, true);
  assert.deepEqual([b.terms[0]!.term, lease(kube).leaseTransitions], [1, 1]);
});

test('the lease is kept while the work ends, and released only then', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  const ending = Promise.withResolvers<void>();
  a.work = () => ending.promise;
  await clock.advance(100);
  const b = candidate(t, 'b', clock, kube);
  a.stop.abort();
  await clock.advance(40_000);
  const term = a.terms[0]!;
  assert.deepEqual([term.signal.aborted, term.isLeader(), b.elector.isLeader], [true, true, false]);
  ending.resolve();
  await a.finished;
  assert.equal(lease(kube).holderIdentity, '');
  assert.equal(term.isLeader(), false);
  await clock.advance(3_000);
  assert.equal(b.elector.isLeader, true);
});

test('a leader that is gone is followed after its lease has run out, not before', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const wire = line(kube);
  const a = candidate(t, 'a', clock, wire.client);
  await clock.advance(100);
  const b = candidate(t, 'b', clock, kube);
  await clock.advance(10_000);
  wire.state = 'down';
  await clock.advance(12_500);
  assert.deepEqual([a.elector.isLeader, b.elector.isLeader], [false, false]);
  await clock.advance(6_000);
  assert.equal(b.elector.isLeader, true);
  assert.equal(lease(kube).leaseTransitions, 1);
});

for (const state of ['down', 'silent'] as const) {
  test(`cut off (${state}), a leader stops 10 s after the last renewal, before another can take over`, async (t) => {
    const clock = new FakeClock();
    const kube = server(clock);
    const wire = line(kube);
    const a = candidate(t, 'a', clock, wire.client);
    await clock.advance(100);
    const b = candidate(t, 'b', clock, kube);
    await clock.advance(8_000);
    const renewed = Date.parse(lease(kube).renewTime);
    wire.state = state;
    const term = a.terms[0]!;
    let stoppedAt = 0;
    term.signal.addEventListener('abort', () => {
      stoppedAt = clock.now().getTime();
      assert.equal(b.elector.isLeader, false);
    });
    await clock.advance(30_000);
    assert.equal(stoppedAt - renewed, 10_000);
    assert.ok(term.lost.aborted && b.elector.isLeader);
    assert.ok(a.lines.some(({ level, message }) => level === 'error' && message === 'lost the lease'));
  });
}

test('a short interruption costs nothing', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const wire = line(kube);
  const a = candidate(t, 'a', clock, wire.client);
  await clock.advance(100);
  const b = candidate(t, 'b', clock, kube);
  await clock.advance(8_000);
  for (const state of ['down', 'silent'] as const) {
    wire.state = state;
    await clock.advance(4_000);
    wire.state = 'up';
    await clock.advance(8_000);
  }
  assert.deepEqual([a.terms.length, a.terms[0]!.isLeader(), b.terms.length], [1, true, 0]);
});

test('someone who takes the lease by force ends the term as soon as it is seen', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(5_000);
  await kube.mergePatch(resources.leases, ref, { spec: { holderIdentity: 'c' } });
  await clock.advance(2_500);
  assert.deepEqual([a.terms[0]!.isLeader(), a.terms[0]!.lost.aborted], [false, true]);
});

test('a foreign note on the lease ends nothing', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(5_000);
  await kube.mergePatch(resources.leases, ref, { metadata: { annotations: { note: 'x' } } });
  await clock.advance(30_000);
  assert.deepEqual([a.terms.length, a.elector.isLeader], [1, true]);
});

test('a deleted lease is lost, and taken again', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(5_000);
  await kube.remove(resources.leases, ref);
  await clock.advance(30_000);
  assert.deepEqual(
    a.terms.map((term) => term.isLeader()),
    [false, true],
  );
});

test('two that start together: one leads', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const all = ['a', 'b', 'c'].map((identity) => candidate(t, identity, clock, kube));
  for (let second = 0; second < 120; second += 1) {
    await clock.advance(1_000);
    assert.equal(all.filter(({ elector }) => elector.isLeader).length, 1);
  }
});

test('what the work throws ends the term, releases the lease and is thrown', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  const bug = new Error('a bug');
  a.work = async () => {
    throw bug;
  };
  await assert.rejects(a.finished, bug);
  assert.equal(lease(kube).holderIdentity, '');
});

function configMap(name: string): KubeObject {
  return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { namespace: 'test', name } };
}

test('the fenced client reads always, and writes while it leads', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const wire = line(kube);
  const a = candidate(t, 'a', clock, wire.client);
  await clock.advance(100);
  const fenced = fencedClient(kube, a.terms[0]!);
  const { configMaps } = resources;
  await fenced.create(configMaps, configMap('x'));
  wire.state = 'down';
  await clock.advance(11_000);
  const before = kube.writes.length;
  const x = { namespace: 'test', name: 'x' };
  const writes = [
    () => fenced.create(configMaps, configMap('y')),
    () => fenced.replace(configMaps, configMap('x')),
    () => fenced.apply(configMaps, configMap('x'), { fieldManager: 'm' }),
    () => fenced.mergePatch(configMaps, x, {}),
    () => fenced.remove(configMaps, x),
  ];
  for (const write of writes) await assert.rejects(write(), NotLeaderError);
  assert.equal(kube.writes.length, before);
  assert.ok(await fenced.get(configMaps, x));
  assert.equal((await fenced.list(configMaps)).items.length, 1);
  // Also when this process leads again: the old term's work stays fenced.
  wire.state = 'up';
  await clock.advance(30_000);
  assert.equal(a.elector.isLeader, true);
  await assert.rejects(fenced.create(configMaps, configMap('y')), NotLeaderError);
});

test('stopped for 20 s in the middle of everything: no timer has fired yet, and still nothing is written', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  // A write that waits for its connection while the process is stopped.
  const connected = Promise.withResolvers<void>();
  const slow: KubeClient = Object.assign(Object.create(kube) as KubeClient, {
    mergePatch: async (...args: Parameters<KubeClient['mergePatch']>) => {
      await connected.promise;
      args[3]?.beforeSend?.();
      return await kube.mergePatch(...args);
    },
  });
  const a = candidate(t, 'a', clock, kube);
  await clock.advance(3_000);
  const term = a.terms[0]!;
  const waiting = fencedClient(slow, term).mergePatch(
    resources.configMaps,
    { namespace: 'test', name: 'x' },
    {},
  );
  const outcome = assert.rejects(waiting, NotLeaderError);
  await settle();
  const before = kube.writes.length;
  clock.jump(20_000);
  assert.equal(term.signal.aborted, false);
  connected.resolve();
  await outcome;
  await assert.rejects(fencedClient(kube, term).create(resources.configMaps, configMap('y')), NotLeaderError);
  assert.equal(kube.writes.length, before);
  await clock.advance(0);
  assert.equal(term.lost.aborted, true);
  assert.equal(kube.writes.length, before);
});

test('a follower that was stopped for a minute reads before it believes that the lease has run out', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const b = candidate(t, 'b', clock, kube);
  await kube.create(resources.leases, {
    apiVersion: 'coordination.k8s.io/v1',
    kind: 'Lease',
    metadata: ref,
    spec: { holderIdentity: 'a', leaseDurationSeconds: 15, leaseTransitions: 3 },
  });
  await clock.advance(1_000);
  b.stop.abort();
  await b.finished;
  const c = candidate(t, 'c', clock, kube);
  await clock.advance(3_000);
  clock.jump(60_000);
  // Meanwhile the leader has renewed.
  await kube.mergePatch(resources.leases, ref, { spec: { renewTime: '2026-01-01T00:01:03.000000Z' } });
  await clock.advance(12_000);
  assert.equal(c.elector.isLeader, false);
  await clock.advance(6_000);
  assert.equal(c.elector.isLeader, true);
  assert.equal(lease(kube).leaseTransitions, 4);
});

test('work that does not end in time cannot write after the release', async (t) => {
  const clock = new FakeClock();
  const kube = server(clock);
  const a = candidate(t, 'a', clock, kube);
  const zombie = Promise.withResolvers<Leadership>();
  a.work = async (leadership) => {
    zombie.resolve(leadership);
    await new Promise<void>((resolve) => leadership.signal.addEventListener('abort', () => resolve()));
  };
  await clock.advance(100);
  a.stop.abort();
  await a.finished;
  const fenced = fencedClient(kube, a.terms[0]!);
  await assert.rejects(fenced.create(resources.configMaps, configMap('y')), NotLeaderError);
  assert.equal(lease(kube).holderIdentity, '');
});
