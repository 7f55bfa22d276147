/**
 * The cache of built programs, with a `go` that only pretends: the real one is at work in every other test of this
 * folder. It counts its builds, and can be slow, old, missing or broken.
 */
import assert from 'node:assert/strict';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { buildBinaries } from '../../local/binaries.ts';

const programs = ['etcd', 'kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubectl'];

describe('built programs', () => {
  const systemPath = process.env.PATH;
  let folder: string;
  let cache: string;

  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'sluice-go-'));
    cache = path.join(folder, 'cache');
  });
  afterEach(() => {
    process.env.PATH = systemPath;
    rmSync(folder, { recursive: true, force: true });
  });

  /** Only this go is found, and /bin. */
  function installGo(version: string, build: string): void {
    const file = path.join(folder, 'go');
    writeFileSync(
      file,
      `#!/bin/sh
if [ "$1" = env ]; then echo ${version}; exit 0; fi
echo build >>'${folder}/builds'
while [ "$1" != -o ]; do shift; done
${build}
`,
    );
    chmodSync(file, 0o755);
    process.env.PATH = `${folder}:/bin:/usr/bin`;
  }
  const goodBuild =
    'for name in server kube-apiserver kube-controller-manager kube-scheduler kubectl; do echo $name >"$2$name"; done';
  const builds = () => readFileSync(path.join(folder, 'builds'), 'utf8').trim().split('\n').length;

  test('are built once, and found later without Go', async () => {
    installGo('go1.26.8', goodBuild);
    const progress: string[] = [];
    const first = await buildBinaries({ cache, onProgress: (line) => progress.push(line) });
    assert.deepEqual(readdirSync(first.directory).sort(), programs);
    assert.equal(readFileSync(first.etcd, 'utf8'), 'server\n');
    assert.match(progress[0]!, /^building etcd and Kubernetes 1\.36\.3 with Go/);
    process.env.PATH = path.join(folder, 'nothing');
    assert.deepEqual(await buildBinaries({ cache }), first);
    assert.deepEqual(readdirSync(cache), [path.basename(first.directory)]);
  });

  test('are built once by two that start at the same time', async () => {
    installGo('go1.26.8', `sleep 1; ${goodBuild}`);
    const [one, other] = await Promise.all([buildBinaries({ cache }), buildBinaries({ cache })]);
    assert.deepEqual(one, other);
    assert.equal(builds(), 1);
  });

  test('are built although a killed builder left its lock and half its files', async () => {
    installGo('go1.26.8', goodBuild);
    const { directory } = await buildBinaries({ cache });
    rmSync(directory, { recursive: true });
    writeFileSync(`${directory}.lock`, '1\n');
    const longAgo = new Date(Date.now() - 60_000);
    utimesSync(`${directory}.lock`, longAgo, longAgo);
    writeFileSync(`${directory}.partial-1`, '');
    await buildBinaries({ cache });
    assert.deepEqual(readdirSync(cache), [path.basename(directory)]);
    assert.deepEqual(readdirSync(directory).sort(), programs);
  });

  test('without Go: what to install, and nothing is left', async () => {
    process.env.PATH = path.join(folder, 'nothing');
    await assert.rejects(
      buildBinaries({ cache }),
      /Go was not found.*Go 1\.26 or later\. Install it from https:\/\/go\.dev\/dl\//,
    );
    assert.equal(existsSync(cache), false);
  });

  for (const version of ['go1.21.13', 'go1.25.9', 'devel']) {
    test(`with Go ${version}: what it is and what to install`, async () => {
      installGo(version, goodBuild);
      await assert.rejects(
        buildBinaries({ cache }),
        new RegExp(`Go is too old: ${version}\\..*Go 1\\.26 or later`),
      );
    });
  }

  test('a build that fails gives Go’s own words, and leaves neither files nor a lock', async () => {
    installGo(
      'go1.26.8',
      'echo "runtime/internal"; echo "go: example.com/x@v1: dial tcp: no route to host" >&2; exit 1',
    );
    await assert.rejects(
      buildBinaries({ cache }),
      /exit code 1\): go: example\.com\/x@v1: dial tcp: no route to host\./,
    );
    assert.deepEqual(readdirSync(cache), []);
  });

  test('a build that is given up ends, and leaves neither files nor a lock', async () => {
    installGo('go1.26.8', 'sleep 600');
    const abort = new AbortController();
    const building = buildBinaries({ cache, signal: abort.signal, onProgress: () => abort.abort() });
    await assert.rejects(building, { name: 'AbortError' });
    assert.deepEqual(readdirSync(cache), []);
  });
});
