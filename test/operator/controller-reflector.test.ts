/** The reflector against a client that follows a script, and against sockets that misbehave. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../operator/controller/clock.ts';
import { Reflector, type ReflectorOptions } from '../../operator/controller/reflector.ts';
import { type Change, keyOf } from '../../operator/controller/store.ts';
import {
  type KubeClient,
  KubeError,
  type KubeObject,
  type ListOptions,
  resources,
  type WatchEvent,
  type WatchOptions,
} from '../../operator/kube/client.ts';
import { FakeClock, half, type LogLine, memoryLog, settle } from './controller-fake-clock.ts';
import { answer, event, faultServer } from './kube-fault-server.ts';

function object(name: string, version: number, uid = name): KubeObject {
  const metadata = { namespace: 'test', name, uid, resourceVersion: String(version), managedFields: [{}] };
  return { apiVersion: 'v1', kind: 'ConfigMap', metadata };
}

type Item = WatchEvent | { readonly end: true } | { readonly error: unknown };

/** One watch as the script holds it. */
class Line {
  readonly options: WatchOptions;
  readonly #queue: Item[] = [];
  #wake = () => {};

  constructor(options: WatchOptions) {
    this.options = options;
  }

  get resourceVersion(): string {
    return this.options.resourceVersion;
  }

  #push(item: Item): void {
    this.#queue.push(item);
    this.#wake();
  }

  send(type: 'ADDED' | 'MODIFIED' | 'DELETED', sent: KubeObject): void {
    this.#push({ type, object: sent });
  }

  bookmark(version: number): void {
    this.#push({ type: 'BOOKMARK', resourceVersion: String(version) });
  }

  end(): void {
    this.#push({ end: true });
  }

  fail(error: unknown): void {
    this.#push({ error });
  }

  async *events(): AsyncGenerator<WatchEvent, void> {
    while (true) {
      const item = this.#queue.shift();
      if (item === undefined) {
        // Deaf to its signal: the reflector must not depend on the client's noticing.
        const { promise, resolve } = Promise.withResolvers<void>();
        this.#wake = resolve;
        await promise;
      } else if ('error' in item) throw item.error;
      else if ('end' in item) return;
      else yield item;
    }
  }
}

class Script implements Pick<KubeClient, 'list' | 'watch'> {
  readonly lists: ListOptions[] = [];
  readonly watches: Line[] = [];
  /** The answer to the next list. */
  answer: (options: ListOptions) => { items: KubeObject[]; resourceVersion: string; continue?: string };

  constructor(items: KubeObject[], version: number) {
    this.answer = () => ({ items, resourceVersion: String(version) });
  }

  async list(_type: unknown, options: ListOptions = {}) {
    this.lists.push(options);
    return this.answer(options);
  }

  watch(_type: unknown, options: WatchOptions) {
    const line = new Line(options);
    this.watches.push(line);
    return line.events();
  }

  get line(): Line {
    return this.watches.at(-1)!;
  }
}

interface Bench {
  readonly clock: FakeClock;
  readonly reflector: Reflector;
  readonly changes: string[];
  readonly lines: LogLine[];
  readonly stop: AbortController;
  readonly finished: Promise<void>;
}

function start(t: TestContext, client: Script, options: Partial<ReflectorOptions> = {}): Bench {
  const clock = new FakeClock();
  const { log, lines } = memoryLog();
  const reflector = new Reflector({
    client,
    type: resources.configMaps,
    clock,
    random: half,
    log,
    ...options,
  });
  const changes: string[] = [];
  reflector.subscribe((change) => changes.push(describe(change)));
  const stop = new AbortController();
  t.after(() => stop.abort());
  return { clock, reflector, changes, lines, stop, finished: reflector.run(stop.signal) };
}

function describe({ type, object: { metadata } }: Change): string {
  return `${type} ${metadata.name}@${metadata.resourceVersion}`;
}

function stored(reflector: Reflector): string[] {
  return reflector.store
    .list()
    .map(({ metadata }) => `${metadata.name}@${metadata.resourceVersion}`)
    .sort();
}

const refused = () => new KubeError(0, 'Unreachable', 'connect ECONNREFUSED');
const expired = () => new KubeError(410, 'Expired', 'too old resource version');

test('lists in pages, then watches from the version of the list', async (t) => {
  const script = new Script([], 0);
  script.answer = ({ continue: token }) =>
    token === undefined
      ? { items: [object('a', 1), object('b', 2)], resourceVersion: '9', continue: 'more' }
      : { items: [object('c', 3)], resourceVersion: '9' };
  const { reflector, changes } = start(t, script, { pageSize: 2, namespace: 'test', labelSelector: 'x=y' });
  await settle();
  assert.deepEqual(changes, ['added a@1', 'added b@2', 'added c@3']);
  assert.deepEqual(
    script.lists.map(({ signal: _signal, ...rest }) => rest),
    [
      { namespace: 'test', labelSelector: 'x=y', limit: 2 },
      { namespace: 'test', labelSelector: 'x=y', limit: 2, continue: 'more' },
    ],
  );
  const { signal: _signal, ...watch } = script.line.options;
  assert.deepEqual(watch, {
    namespace: 'test',
    labelSelector: 'x=y',
    resourceVersion: '9',
    timeoutSeconds: 450,
  });
  assert.equal(reflector.hasSynced, true);
});

test('has synced when the last page is in the store, not before', async (t) => {
  const gate = Promise.withResolvers<void>();
  const script = new Script([], 0);
  const list = script.list.bind(script);
  script.answer = ({ continue: token }) => ({
    items: [object(token ?? 'a', 1)],
    resourceVersion: '9',
    ...(token === undefined ? { continue: 'b' } : {}),
  });
  script.list = async (type, options) => {
    if (options?.continue !== undefined) await gate.promise;
    return await list(type, options);
  };
  const { reflector } = start(t, script);
  await settle();
  assert.deepEqual([reflector.hasSynced, reflector.store.size], [false, 0]);
  gate.resolve();
  await reflector.synced;
  assert.deepEqual([reflector.hasSynced, reflector.store.size], [true, 2]);
});

test('events change the store, and managedFields are not kept', async (t) => {
  const script = new Script([object('a', 1), object('b', 2)], 2);
  const { reflector, changes } = start(t, script);
  await settle();
  script.line.send('MODIFIED', object('a', 3));
  script.line.send('ADDED', object('c', 4));
  script.line.send('DELETED', object('b', 5));
  await settle();
  assert.deepEqual(changes.slice(2), ['updated a@3', 'added c@4', 'deleted b@5']);
  assert.deepEqual(stored(reflector), ['a@3', 'c@4']);
  assert.ok(reflector.store.list().every(({ metadata }) => metadata.managedFields === undefined));
});

test('a watch that the server ends is resumed at once from the last event, without a list', async (t) => {
  const script = new Script([], 1);
  start(t, script);
  await settle();
  script.line.send('ADDED', object('a', 7));
  await settle();
  script.line.end();
  await settle();
  assert.deepEqual(
    script.watches.map(({ resourceVersion }) => resourceVersion),
    ['1', '7'],
  );
  assert.equal(script.lists.length, 1);
});

test('a deletion and a bookmark move the place to resume from', async (t) => {
  const script = new Script([object('a', 1)], 1);
  start(t, script);
  await settle();
  script.line.send('DELETED', object('a', 5));
  await settle();
  script.line.end();
  await settle();
  script.line.bookmark(60);
  await settle();
  script.line.end();
  await settle();
  assert.deepEqual(
    script.watches.map(({ resourceVersion }) => resourceVersion),
    ['1', '5', '60'],
  );
});

test('after an error it resumes without a list, later each time, and soon again after an event', async (t) => {
  const script = new Script([], 3);
  const { clock } = start(t, script);
  await settle();
  const delays: number[] = [];
  const failAndMeasure = async () => {
    const before = script.watches.length;
    script.line.fail(refused());
    const from = clock.monotonicMs();
    while (script.watches.length === before) await clock.advance(25);
    delays.push(clock.monotonicMs() - from);
  };
  for (let attempt = 0; attempt < 8; attempt += 1) await failAndMeasure();
  script.line.bookmark(4);
  await settle();
  await failAndMeasure();
  assert.deepEqual(delays, [375, 750, 1500, 3000, 6000, 12_000, 22_500, 22_500, 375]);
  assert.equal(script.lists.length, 1);
});

test('a server that cannot be reached at first is asked again until it answers', async (t) => {
  const script = new Script([object('a', 1)], 1);
  const { answer: good } = script;
  let attempts = 0;
  script.answer = (options) => {
    attempts += 1;
    if (attempts < 4) throw refused();
    return good(options);
  };
  const { clock, reflector, changes, lines } = start(t, script);
  await clock.advance(10_000);
  assert.deepEqual([attempts, reflector.hasSynced, changes], [4, true, ['added a@1']]);
  assert.equal(lines.filter(({ level }) => level === 'warn').length, 3);
});

test('410 means a list, whose differences are told exactly', async (t) => {
  const script = new Script(
    [object('same', 1), object('changed', 2), object('gone', 3), object('new', 4, 'u1')],
    9,
  );
  const { changes, reflector } = start(t, script);
  await settle();
  changes.length = 0;
  script.answer = () => ({
    items: [object('same', 1), object('changed', 12), object('new', 14, 'u2'), object('added', 15)],
    resourceVersion: '20',
  });
  script.line.fail(expired());
  await settle();
  assert.deepEqual(changes, [
    'deleted gone@3',
    'updated changed@12',
    'deleted new@4',
    'added new@14',
    'added added@15',
  ]);
  assert.deepEqual(stored(reflector), ['added@15', 'changed@12', 'new@14', 'same@1']);
  assert.equal(script.line.resourceVersion, '20');
});

test('410 again and again backs off', async (t) => {
  const script = new Script([], 9);
  const { clock } = start(t, script);
  await settle();
  script.line.fail(expired());
  await settle();
  assert.equal(script.lists.length, 2);
  script.line.fail(expired());
  await settle();
  assert.equal(script.lists.length, 2);
  await clock.advance(750);
  assert.equal(script.lists.length, 3);
});

test('410 between two pages means one list in one piece', async (t) => {
  const script = new Script([], 0);
  script.answer = ({ continue: token, limit }) => {
    if (token !== undefined) throw expired();
    if (limit === 0) return { items: [object('a', 4), object('b', 5)], resourceVersion: '9' };
    return { items: [object('a', 1)], resourceVersion: '2', continue: 'more' };
  };
  const { changes } = start(t, script, { pageSize: 1 });
  await settle();
  assert.deepEqual(changes, ['added a@4', 'added b@5']);
  assert.deepEqual(
    script.lists.map(({ limit }) => limit),
    [1, 1, 0],
  );
});

test('Retry-After is kept, and not to the millisecond', async (t) => {
  const script = new Script([], 1);
  const { clock } = start(t, script);
  await settle();
  script.line.fail(new KubeError(429, 'TooManyRequests', 'slow down', { retryAfterSeconds: 20 }));
  await clock.advance(20_000);
  assert.equal(script.watches.length, 1);
  await clock.advance(1_000);
  assert.equal(script.watches.length, 2);
});

test('a watch on which nothing is heard is given up for a new one, even if its client does not notice', async (t) => {
  const script = new Script([], 1);
  const ended: string[] = [];
  const { clock } = start(t, script, {
    idleTimeoutMs: 90_000,
    metrics: { watchEnded: (why) => ended.push(why) },
  });
  await clock.advance(60_000);
  script.line.bookmark(5);
  await clock.advance(89_000);
  assert.equal(script.watches.length, 1);
  await clock.advance(1_000);
  assert.equal(script.watches[0]!.options.signal.aborted, true);
  assert.deepEqual([script.watches.length, script.line.resourceVersion, ended], [2, '5', ['idle']]);
  await clock.advance(90_000);
  await clock.advance(1_000);
  assert.equal(script.watches.length, 3);
  assert.equal(script.lists.length, 1);
});

test('a server that ends every watch at once is not asked again at once', async (t) => {
  const script = new Script([], 1);
  const { clock } = start(t, script);
  const watch = script.watch.bind(script);
  script.watch = (type, options) => {
    const events = watch(type, options);
    script.line.end();
    return events;
  };
  await clock.advance(10_000);
  assert.ok(script.watches.length < 8, `${script.watches.length} watches in 10 s`);
});

test('events told twice or too late change nothing', async (t) => {
  const script = new Script([object('a', 5)], 9);
  const { changes, reflector } = start(t, script);
  await settle();
  script.line.send('MODIFIED', object('a', 12));
  script.line.send('MODIFIED', object('a', 12));
  script.line.send('MODIFIED', object('a', 11));
  script.line.send('DELETED', object('a', 10));
  script.line.end();
  await settle();
  assert.deepEqual(changes.slice(1), ['updated a@12']);
  assert.deepEqual(stored(reflector), ['a@12']);
  assert.equal(script.line.resourceVersion, '12');
});

test('a server whose versions went back was restored from a backup: list again', async (t) => {
  const script = new Script([object('a', 500)], 900);
  const { changes } = start(t, script);
  await settle();
  script.answer = () => ({ items: [object('a', 40)], resourceVersion: '50' });
  script.line.bookmark(60);
  await settle();
  assert.deepEqual(changes, ['added a@500', 'updated a@40']);
  assert.equal(script.line.resourceVersion, '50');
});

test('a handler that throws is logged, and costs nobody else an event', async (t) => {
  const script = new Script([], 1);
  const failures: unknown[] = [];
  const { reflector, changes, lines } = start(t, script, {
    metrics: { handlerFailed: (error) => failures.push(error) },
  });
  const bug = new Error('a bug');
  reflector.subscribe(() => {
    throw bug;
  });
  const after: string[] = [];
  reflector.subscribe((change) => after.push(describe(change)));
  await settle();
  script.line.send('ADDED', object('a', 2));
  script.line.send('MODIFIED', object('a', 3));
  await settle();
  const seen = ['added a@2', 'updated a@3'];
  assert.deepEqual([changes, after, failures], [seen, seen, [bug, bug]]);
  const logged = lines.filter(({ level }) => level === 'error');
  assert.deepEqual(
    logged.map(({ message, fields }) => [message, fields.key, fields.err]),
    [
      ['a change handler threw', 'test/a', bug],
      ['a change handler threw', 'test/a', bug],
    ],
  );
  assert.equal(script.watches.length, 1);
});

test('a transform or an index that throws is logged, and the object is kept', async (t) => {
  const script = new Script([object('a', 1)], 1);
  const bug = () => {
    throw new Error('a bug');
  };
  const { lines, reflector } = start(t, script, { transform: bug, indexes: { broken: bug } });
  await settle();
  assert.equal(keyOf(reflector.store.get('test/a')!), 'test/a');
  assert.deepEqual(
    lines.filter(({ level }) => level === 'error').map(({ message }) => message),
    ['a transform threw', 'an index threw'],
  );
});

test('a late subscriber gets everything there is, and after leaving nothing more', async (t) => {
  const script = new Script([object('a', 1), object('b', 2)], 2);
  const { reflector } = start(t, script);
  await settle();
  const late: string[] = [];
  const leave = reflector.subscribe((change) => late.push(describe(change)));
  assert.deepEqual(late, ['added a@1', 'added b@2']);
  leave();
  script.line.send('MODIFIED', object('a', 3));
  await settle();
  assert.equal(late.length, 2);
});

test('stopping ends the watch, the waits and the timers', async (t) => {
  const script = new Script([], 1);
  const { clock, stop, finished } = start(t, script);
  await settle();
  stop.abort();
  await finished;
  assert.deepEqual([clock.timers, script.line.options.signal.aborted], [0, true]);
  const waiting = start(t, script);
  await settle();
  script.line.fail(refused());
  await settle();
  waiting.stop.abort();
  await waiting.finished;
  assert.equal(waiting.clock.timers, 0);
});

/** The real client and clock, and a server that gives each watch what the list of misfortunes says. */
async function againstMisfortunes(
  t: TestContext,
  misfortunes: ((write: (text: string) => void, reset: () => void) => void)[],
) {
  let watches = 0;
  const faults = await faultServer(t, (request, response) => {
    if (!request.url!.includes('watch=true')) {
      const metadata = { resourceVersion: '10' };
      answer(response, 200, { kind: 'ConfigMapList', apiVersion: 'v1', metadata, items: [] });
      return;
    }
    response.writeHead(200);
    response.flushHeaders();
    const misfortune = misfortunes[watches];
    watches += 1;
    if (misfortune !== undefined)
      misfortune(
        (text) => response.write(text),
        () => response.socket?.resetAndDestroy(),
      );
    else {
      const from = Number(new URL(request.url!, 'http://x').searchParams.get('resourceVersion'));
      for (const version of [11, 12, 13])
        if (version > from) response.write(event('ADDED', `v${version}`, version));
    }
  });
  const { log } = memoryLog();
  const reflector = new Reflector({
    client: faults.client,
    type: resources.configMaps,
    clock: systemClock,
    random: half,
    log,
    idleTimeoutMs: 400,
    backoff: { baseMs: 10, maxMs: 20 },
  });
  const complete = Promise.withResolvers<void>();
  const seen: string[] = [];
  reflector.subscribe(({ type, object: { metadata } }) => {
    seen.push(`${type} ${metadata.name}`);
    if (seen.length === 3) complete.resolve();
  });
  const stop = new AbortController();
  t.after(() => stop.abort());
  const finished = reflector.run(stop.signal);
  await complete.promise;
  stop.abort();
  await finished;
  return { seen, requests: faults.requests };
}

test('over sockets: silence, resets, half lines and garbage cost no event and tell none twice', async (t) => {
  const { seen, requests } = await againstMisfortunes(t, [
    () => {},
    (_write, reset) => reset(),
    (write, reset) => {
      write(event('ADDED', 'v11', 11) + event('ADDED', 'v12', 12).slice(0, 50));
      setTimeout(reset, 50);
    },
    (write) => write('{"type":"ADDED",\n'),
  ]);
  assert.deepEqual(seen, ['added v11', 'added v12', 'added v13']);
  const lists = requests.filter((request) => !request.includes('watch=true'));
  assert.equal(lists.length, 1, requests.join('\n'));
});
