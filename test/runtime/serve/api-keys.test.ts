/** Who gets in with --api-key-file, and when a changed file is seen. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { ApiKeys } from '../../../runtime/serve/api-keys.ts';
import { ScriptedBackend, startServer } from './scripted-backend.ts';

const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-keys-'));
after(() => rmSync(scratch, { recursive: true }));

function keyFile(text: string): string {
  const file = path.join(mkdtempSync(path.join(scratch, 'k-')), 'keys');
  writeFileSync(file, text);
  return file;
}

const allows = (keys: ApiKeys, header: string | undefined): boolean => {
  try {
    keys.check(header);
    return true;
  } catch (error) {
    assert.ok(error instanceof SluiceError && error.httpStatus === 401);
    return false;
  }
};

test('any of several keys, whole, as a bearer token', () => {
  const keys = new ApiKeys(keyFile('# people\nalpha\n\n  beta  \r\n'));
  const cases: [string | undefined, boolean][] = [
    ['Bearer alpha', true],
    ['bearer beta', true],
    ['Bearer alph', false],
    ['Bearer alphaa', false],
    ['Bearer # people', false],
    ['Bearer ', false],
    ['alpha', false],
    ['Basic alpha', false],
    [undefined, false],
  ];
  for (const [header, expected] of cases) assert.equal(allows(keys, header), expected, String(header));
});

test('a changed file counts, a broken one lets nobody in', () => {
  let now = 0;
  const file = keyFile('old-key\n');
  const keys = new ApiKeys(file, () => now);
  assert.equal(allows(keys, 'Bearer old-key'), true);
  writeFileSync(file, 'newer-key\n');
  now += 10_000;
  assert.equal(allows(keys, 'Bearer old-key'), false);
  assert.equal(allows(keys, 'Bearer newer-key'), true);
  rmSync(file);
  now += 10_000;
  assert.equal(allows(keys, 'Bearer newer-key'), false);
  writeFileSync(file, 'newest\n');
  now += 10_000;
  assert.equal(allows(keys, 'Bearer newest'), true);
});

test('a file without keys is refused at the start', () => {
  assert.throws(() => new ApiKeys(keyFile('# none\n')), /holds no key; the form is one key a line/);
});

test('the API needs a key, probes and metrics do not, however the path is written', async () => {
  const running = await startServer(`--api-key-file=${keyFile('alpha\n')}`);
  running.server.ready(new ScriptedBackend());
  const key = { authorization: 'Bearer alpha' };
  const body = { model: 'tiny', prompt: 'Hi' };
  for (const route of [
    '/v1/completions',
    '/%761/completions',
    '/v1/chat/completions',
    '/tokenize',
    '/detokenize',
  ]) {
    const response = await running.post(route, body);
    assert.equal(response.status, 401, route);
    const { error } = (await response.json()) as { error: { code: string } };
    assert.equal(error.code, 'invalid_api_key');
  }
  assert.equal((await running.get('/v1/models')).status, 401);
  assert.equal((await running.get('/v1/models', key)).status, 200);
  assert.equal((await running.post('/v1/completions', body, key)).status, 200);
  for (const route of ['/health', '/livez', '/readyz', '/version', '/metrics'])
    assert.equal((await running.get(route)).status, 200, route);
  await running.server.shutdown(0, 0);
});
