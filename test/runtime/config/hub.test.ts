/** The hub's settings from the variables that all of its tools share. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { hubSettings } from '../../../runtime/config/hub.ts';
import { SluiceError } from '../../../runtime/errors.ts';

const home = mkdtempSync(path.join(tmpdir(), 'sluice-hub-settings-'));
after(() => rmSync(home, { recursive: true }));
mkdirSync(path.join(home, 'with-token'));
writeFileSync(path.join(home, 'with-token/token'), 'hf_of_file\n');
const tokenFile = path.join(home, 'with-token/token');
const plain = path.join(home, '.cache/huggingface/hub');

const cases: [name: string, env: Record<string, string>, expected: object][] = [
  [
    'nothing set',
    {},
    { endpoint: 'https://huggingface.co', cacheDir: plain, offline: false, network: { proxies: {} } },
  ],
  [
    'empty variables',
    { HF_HOME: '', HF_TOKEN: '', HF_ENDPOINT: '', HF_HUB_OFFLINE: '' },
    { cacheDir: plain, offline: false },
  ],
  ['XDG_CACHE_HOME', { XDG_CACHE_HOME: '/x' }, { cacheDir: '/x/huggingface/hub' }],
  ['HF_HOME', { HF_HOME: '/h', XDG_CACHE_HOME: '/x' }, { cacheDir: '/h/hub' }],
  ['HF_HUB_CACHE over HF_HOME', { HF_HUB_CACHE: '/c', HF_HOME: '/h' }, { cacheDir: '/c' }],
  [
    'HF_ENDPOINT with a slash',
    { HF_ENDPOINT: 'http://mirror:8080/hf/' },
    { endpoint: 'http://mirror:8080/hf' },
  ],
  ['HF_HUB_OFFLINE=1', { HF_HUB_OFFLINE: '1' }, { offline: true }],
  ['HF_HUB_OFFLINE=0', { HF_HUB_OFFLINE: '0' }, { offline: false }],
  ['HF_TOKEN', { HF_TOKEN: ' hf_abc\n' }, { token: 'hf_abc' }],
  ['the token that a login left', { HF_HOME: path.join(home, 'with-token') }, { token: 'hf_of_file' }],
  ['HF_TOKEN_PATH', { HF_TOKEN_PATH: tokenFile }, { token: 'hf_of_file' }],
  ['HF_TOKEN over its file', { HF_TOKEN: 'hf_abc', HF_TOKEN_PATH: tokenFile }, { token: 'hf_abc' }],
  [
    'proxies and authorities',
    { https_proxy: 'http://p:3128', NO_PROXY: 'localhost', SSL_CERT_FILE: '/ca.pem' },
    {
      network: {
        proxies: { https_proxy: 'http://p:3128', NO_PROXY: 'localhost' },
        certificatesFile: { variable: 'SSL_CERT_FILE', path: '/ca.pem' },
      },
    },
  ],
];
for (const [name, env, expected] of cases)
  test(name, () => assert.partialDeepStrictEqual(hubSettings(env, home), expected));

describe('refused in one line, which does not show a token', () => {
  const wrong: [string, Record<string, string>, RegExp][] = [
    ['an endpoint without a scheme', { HF_ENDPOINT: 'mirror' }, /^HF_ENDPOINT "mirror": .*for example https/],
    ['an endpoint of another scheme', { HF_ENDPOINT: 'ftp://mirror' }, /^HF_ENDPOINT /],
    ['a token of two words', { HF_TOKEN: 'secret words' }, /^HF_TOKEN: holds what cannot be sent/],
  ];
  for (const [name, env, message] of wrong)
    test(name, () =>
      assert.throws(
        () => hubSettings(env, home),
        (error) =>
          error instanceof SluiceError &&
          error.code === 'config_invalid' &&
          message.test(error.message) &&
          !/secret/.test(error.message),
      ),
    );
});
