/** Downloads from a hub on loopback that breaks in every way a real one does. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { checkpointFiles } from '../../../runtime/weights/hub/selection.ts';
import {
  pullSnapshot,
  repositoryFolder,
  type SnapshotOptions,
} from '../../../runtime/weights/hub/snapshot.ts';
import { type HubServer, startHub } from '../../support/hub-server.ts';

const weights = randomBytes(20 << 20);
const files = {
  'config.json': '{"architectures":["LlamaForCausalLM"]}',
  'tokenizer.json': '{}',
  'model.safetensors': weights,
  'README.md': 'not wanted',
};

const hubRoom = path.resolve(import.meta.dirname, '../../../runtime/weights/hub');

let hub: HubServer;
let cacheDir: string;
const options = (more: Partial<SnapshotOptions> = {}): SnapshotOptions => ({
  endpoint: hub.endpoint,
  cacheDir,
  sleep: async () => {},
  ...more,
});
const pull = (revision = 'main', more: Partial<SnapshotOptions> = {}) =>
  pullSnapshot('org/name', revision, checkpointFiles, options(more));
const leftovers = (): string[] =>
  readdirSync(path.join(repositoryFolder(cacheDir, 'org/name'), 'blobs')).filter((name) =>
    name.includes('sluice'),
  );

/** A process of its own that pulls org/name@main and prints the folder. */
function pullInProcess(): { child: ChildProcess; exit: Promise<number | null> } {
  const script = `
    import { pullSnapshot } from ${JSON.stringify(path.join(hubRoom, 'snapshot.ts'))};
    import { checkpointFiles } from ${JSON.stringify(path.join(hubRoom, 'selection.ts'))};
    await pullSnapshot('org/name', 'main', checkpointFiles, { endpoint: ${JSON.stringify(hub.endpoint)}, cacheDir: ${JSON.stringify(cacheDir)} });`;
  const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
    stdio: 'inherit',
  });
  return { child, exit: new Promise((resolve) => child.once('exit', resolve)) };
}

beforeEach(async () => {
  hub = await startHub();
  cacheDir = await mkdtemp(path.join(tmpdir(), 'sluice-hub-'));
});
afterEach(async () => {
  await hub.close();
  await rm(cacheDir, { recursive: true, force: true });
});

describe('a snapshot', () => {
  test('has the shared cache layout, only the wanted files, and the branch recorded as its commit', async () => {
    const commit = hub.commit('org/name', files);
    const snapshot = await pull();
    assert.equal(snapshot.commit, commit);
    assert.deepEqual(readdirSync(snapshot.folder).sort(), [
      'config.json',
      'model.safetensors',
      'tokenizer.json',
    ]);
    assert.ok(readFileSync(path.join(snapshot.folder, 'model.safetensors')).equals(weights));
    assert.match(
      readlinkSync(path.join(snapshot.folder, 'model.safetensors')),
      /^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/,
    );
    assert.equal(
      readFileSync(path.join(repositoryFolder(cacheDir, 'org/name'), 'refs/main'), 'utf8'),
      commit,
    );
    assert.deepEqual(leftovers(), []);
  });

  test('is taken from the cache the second time, offline too', async () => {
    hub.commit('org/name', files);
    const first = await pull();
    const before = hub.requests.filter((request) => request.method === 'GET' && request.range).length;
    assert.equal((await pull()).folder, first.folder);
    assert.equal(hub.requests.filter((request) => request.method === 'GET' && request.range).length, before);
    assert.equal(
      (await pull('main', { offline: true, endpoint: 'http://127.0.0.1:9' })).folder,
      first.folder,
    );
    await assert.rejects(pull('other', { offline: true }), /HF_HUB_OFFLINE/);
  });

  test('keeps the old commit when the branch moves, and shares the blobs that did not change', async () => {
    hub.commit('org/name', files);
    const first = await pull();
    hub.commit('org/name', { ...files, 'config.json': '{"changed":true}' });
    const before = hub.requests.filter((request) => request.server === 'cdn').length;
    const second = await pull();
    assert.notEqual(second.commit, first.commit);
    assert.equal(hub.requests.filter((request) => request.server === 'cdn').length, before);
    assert.ok(existsSync(path.join(first.folder, 'config.json')));
  });

  test('takes the shards that the index names and refuses names that leave the folder', async () => {
    hub.commit('org/name', {
      'config.json': '{}',
      'model.safetensors.index.json': JSON.stringify({
        weight_map: { a: 'model-1.safetensors', b: '../../evil' },
      }),
      'model-1.safetensors': 'a',
      'model-2.safetensors': 'unused',
    });
    const snapshot = await pull();
    assert.deepEqual(readdirSync(snapshot.folder).sort(), [
      'config.json',
      'model-1.safetensors',
      'model.safetensors.index.json',
    ]);
  });

  test('sends the token to the hub and never to the CDN', async () => {
    hub.commit('org/name', files);
    hub.repositories.get('org/name')!.token = 'secret';
    await assert.rejects(pull(), /no such repository, or it is private/);
    await pull('main', { token: 'secret' });
    assert.ok(hub.requests.some((request) => request.server === 'cdn'));
    assert.ok(
      hub.requests.every((request) => request.server === 'hub' || request.authorization === undefined),
    );
  });

  test('reports bytes, speed and time left while it downloads', async () => {
    hub.commit('org/name', files);
    const seen: number[] = [];
    await pull('main', { onProgress: (progress) => seen.push(progress.bytesDone / progress.bytesTotal) });
    assert.equal(seen.at(-1), 1);
  });
});

describe('a refusal has a message of its own', () => {
  const cases: readonly [string, () => Promise<unknown>, RegExp, string][] = [
    [
      'unknown repository (401)',
      () => pullSnapshot('no/such', 'main', checkpointFiles, options()),
      /no such repository/,
      'hub_refused',
    ],
    ['unknown revision (404)', () => pull('v9'), /no revision "v9"/, 'hub_refused'],
    [
      'malformed name',
      () => pullSnapshot('../x', 'main', checkpointFiles, options()),
      /the form is org\/name/,
      'hub_refused',
    ],
    [
      'no connection',
      () => pull('main', { endpoint: 'http://127.0.0.1:1025' }),
      /no connection to 127\.0\.0\.1:1025 \(ECONNREFUSED\)/,
      'hub_failed',
    ],
  ];
  for (const [name, run, message, code] of cases) {
    test(name, async () => {
      hub.commit('org/name', files);
      await assert.rejects(run(), (error) => {
        assert.ok(error instanceof SluiceError);
        assert.match(error.message, message);
        assert.equal(error.code, code);
        return true;
      });
    });
  }

  test('gated (403)', async () => {
    hub.commit('org/name', files);
    hub.repositories.get('org/name')!.gated = true;
    await assert.rejects(pull(), /gated \(403\)/);
  });

  test('rate limited (429) for too long', async () => {
    hub.commit('org/name', files);
    for (let i = 0; i < 9; i++) hub.faults.statuses.push({ status: 429, headers: { 'retry-after': '1' } });
    await assert.rejects(pull(), /limits the rate of requests \(429\)/);
  });

  test('bytes that stay wrong', async () => {
    hub.commit('org/name', files);
    hub.faults.corrupt = 99;
    await assert.rejects(pull(), /the checksum is/);
    assert.deepEqual(leftovers(), []);
  });
});

describe('a fault that passes is survived', () => {
  const check = async (): Promise<void> => {
    const snapshot = await pull();
    assert.ok(readFileSync(path.join(snapshot.folder, 'model.safetensors')).equals(weights));
    assert.deepEqual(leftovers(), []);
  };

  test('429 and 503 from the hub', async () => {
    hub.commit('org/name', files);
    hub.faults.statuses.push({ status: 429, headers: { 'retry-after': '1' } }, { status: 503 });
    await check();
  });

  test('connections that break in the middle of a range', async () => {
    hub.commit('org/name', files);
    hub.faults.breakAfterBytes = { bytes: 1 << 20, times: 9 };
    await check();
  });

  test('links of the CDN that expire after one use', async () => {
    hub.commit('org/name', files);
    hub.faults.linksExpireAfterUses = 1;
    await check();
  });

  test('a byte that was wrong once', async () => {
    hub.commit('org/name', files);
    hub.faults.corrupt = 1;
    await check();
  });

  test('a process killed in the middle: the next one resumes and fetches less than the whole', async () => {
    hub.commit('org/name', files);
    hub.faults.bytesPerSecond = 8 << 20;
    const { child, exit } = pullInProcess();
    const parts = path.join(repositoryFolder(cacheDir, 'org/name'), 'blobs');
    const someDone = (): boolean =>
      existsSync(parts) &&
      readdirSync(parts).some(
        // The weights' own: files in git have shorter names.
        (name) =>
          /^[0-9a-f]{64}\.sluice\.parts$/.test(name) && readFileSync(path.join(parts, name), 'utf8') !== '',
      );
    while (!someDone()) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill('SIGKILL');
    await exit;
    delete hub.faults.bytesPerSecond;
    hub.requests.length = 0;
    await check();
    const bytes = hub.requests
      .filter(({ server }) => server === 'cdn')
      .map(({ range }) => /^bytes=(\d+)-(\d+)$/.exec(range!)!)
      .reduce((sum, [, start, end]) => sum + Number(end) + 1 - Number(start), 0);
    assert.ok(bytes < weights.length, `${bytes} bytes were fetched again`);
  });
});

test('two processes at once download each blob once', async () => {
  hub.commit('org/name', files);
  hub.faults.bytesPerSecond = 32 << 20;
  const both = [pullInProcess(), pullInProcess()];
  assert.deepEqual(await Promise.all(both.map((run) => run.exit)), [0, 0]);
  assert.equal(
    hub.requests.filter((request) => request.server === 'cdn').length,
    Math.ceil(weights.length / (8 << 20)),
  );
});
