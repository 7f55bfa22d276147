/**
 * The images: built without a registry, the same twice, unpacked layer by layer, and started from what is in them and from
 * nothing else, as the user that they name.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { freePort } from '../../../local/ports.ts';
import { ociArchive } from '../../../scripts/image/oci.ts';
import { tar } from '../../../scripts/image/tar.ts';
import { until } from '../../support/operator-process.ts';

const root = path.resolve(import.meta.dirname, '../../..');
// Only root may change its root; elsewhere a user namespace is asked for.
const isRoot = process.getuid?.() === 0;

before(() => {
  if (existsSync(path.join(root, 'dist/runtime/cli/sluice.js'))) return;
  execFileSync('npm', ['run', 'build'], { cwd: root, stdio: 'ignore' });
});

function folder(t: TestContext): string {
  const made = mkdtempSync(path.join(tmpdir(), 'sluice-image-'));
  t.after(() => rmSync(made, { recursive: true, force: true }));
  return made;
}

function build(args: readonly string[], env: Record<string, string> = {}) {
  return spawnSync(process.execPath, ['scripts/build-image.ts', ...args], {
    cwd: root,
    encoding: 'utf8',
    env: { PATH: process.env.PATH ?? '', ...env },
  });
}

interface Unpacked {
  readonly root: string;
  readonly entrypoint: readonly string[];
  readonly user: string;
  readonly environment: Readonly<Record<string, string>>;
}

/** Follows index, manifest, configuration and layers, and checks each digest on the way. */
function unpack(archive: string, into: string): Unpacked {
  const layout = path.join(into, 'layout');
  const files = path.join(into, 'root');
  for (const each of [layout, files]) mkdirSync(each);
  execFileSync('tar', ['-xf', archive, '-C', layout]);
  const blob = (digest: string): Buffer => {
    const content = readFileSync(path.join(layout, 'blobs', ...digest.split(':')));
    assert.equal(`sha256:${createHash('sha256').update(content).digest('hex')}`, digest);
    return content;
  };
  const read = (digest: string) => JSON.parse(blob(digest).toString('utf8'));
  assert.equal(JSON.parse(readFileSync(path.join(layout, 'oci-layout'), 'utf8')).imageLayoutVersion, '1.0.0');
  const index = JSON.parse(readFileSync(path.join(layout, 'index.json'), 'utf8'));
  const manifest = read(index.manifests[0].digest);
  const { config, rootfs } = read(manifest.config.digest);
  for (const [number, { digest }] of manifest.layers.entries()) {
    const plain = spawnSync('gzip', ['-dc'], { input: blob(digest), maxBuffer: 2 ** 31 }).stdout;
    assert.equal(`sha256:${createHash('sha256').update(plain).digest('hex')}`, rootfs.diff_ids[number]);
    execFileSync('tar', ['-xf', '-', '-C', files, '--no-same-owner', '--same-permissions'], { input: plain });
  }
  return {
    root: files,
    entrypoint: config.Entrypoint,
    user: config.User,
    environment: Object.fromEntries(config.Env.map((each: string) => each.split(/=(.*)/s).slice(0, 2))),
  };
}

/** As a container runtime would: in the image's root, with its own /proc, as its user, without any right. */
function start(t: TestContext, image: Unpacked, args: readonly string[]): ChildProcess {
  const inside = [
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the shell's own.
    '/bin/mount -t proc proc "$0/proc" && exec /usr/sbin/chroot --userspec="$1" "$0" "${@:2}"',
    image.root,
    image.user,
    ...image.entrypoint,
    ...args,
  ];
  const namespaces = ['--mount', '--pid', '--fork', '--kill-child'];
  const child = spawn('/usr/bin/unshare', [...namespaces, '/bin/bash', '-c', ...inside], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...image.environment },
    detached: true,
  });
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'close');
    // The whole group: a change of user clears the signal that --kill-child has the program get with its parent's death.
    process.kill(-child.pid!, 'SIGKILL');
    await ended;
  });
  return child;
}

async function outputOf(child: ChildProcess): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = '';
  let stderr = '';
  child.stdout!.on('data', (text) => {
    stdout += text;
  });
  child.stderr!.on('data', (text) => {
    stderr += text;
  });
  const [code] = await once(child, 'close');
  return { code, stdout, stderr };
}

const version = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')).version;
const mustBeRoot = isRoot ? false : 'a change of the root folder needs root';

test('the runtime image serves the demo model from its own files alone, as a user without rights', {
  skip: mustBeRoot,
}, async (t) => {
  const work = folder(t);
  const archive = path.join(work, 'runtime.tar');
  const built = build(['runtime', '--out', archive]);
  assert.equal(built.status, 0, built.stderr);
  const image = unpack(archive, work);
  assert.equal(image.user, '65532:65532');

  const told = await outputOf(start(t, image, ['--version']));
  assert.deepEqual([told.code, told.stdout], [0, `${version}\n`], told.stderr);

  const port = await freePort();
  const child = start(t, image, [
    'serve',
    '--model-path=/app/examples/models/tiny',
    '--host=127.0.0.1',
    `--port=${port}`,
    '--cache-dir=/tmp/cache',
    '--threads=1',
  ]);
  let log = '';
  for (const stream of [child.stdout!, child.stderr!])
    stream.on('data', (text) => {
      log += text;
    });
  await until('the server is ready', async () => {
    assert.equal(child.exitCode, null, log);
    return await fetch(`http://127.0.0.1:${port}/readyz`).then(
      (answer) => answer.ok,
      () => false,
    );
  });
  const answer = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'tiny', prompt: 'Hello', max_tokens: 4, temperature: 0 }),
  });
  const body = (await answer.json()) as { choices: { text: string }[] };
  assert.equal(answer.status, 200, JSON.stringify(body));
  assert.notEqual(body.choices[0]!.text, '');
});

test('the operator image says its version and its help from its own files alone', {
  skip: mustBeRoot,
}, async (t) => {
  const work = folder(t);
  const archive = path.join(work, 'operator.tar');
  assert.equal(build(['operator', '--out', archive]).status, 0);
  const image = unpack(archive, work);
  const told = await outputOf(start(t, image, ['--version']));
  assert.deepEqual([told.code, told.stdout], [0, `sluice-operator ${version}\n`], told.stderr);
  const packages = readdirSync(path.join(image.root, 'app/node_modules'));
  for (const absent of ['onnxruntime-node', 'koffi', 'typescript', 'assemblyscript', 'node'])
    assert.ok(!packages.includes(absent), absent);
});

test('two builds give the same bytes, and SOURCE_DATE_EPOCH is the time of everything', (t) => {
  const work = folder(t);
  const digests = ['a.tar', 'b.tar'].map((name) => {
    const { status, stdout, stderr } = build(['operator', '--out', path.join(work, name)], {
      SOURCE_DATE_EPOCH: '1767225600',
    });
    assert.equal(status, 0, stderr);
    return [/sha256:[0-9a-f]{64}/.exec(stdout)?.[0], readFileSync(path.join(work, name)).length];
  });
  assert.deepEqual(digests[0], digests[1]);
  const times = execFileSync('tar', ['--utc', '--full-time', '-tvf', path.join(work, 'a.tar')], {
    encoding: 'utf8',
  });
  for (const line of times.trim().split('\n')) assert.match(line, /2026-01-01 00:00:00/);
});

test('--root writes the same files without an archive', (t) => {
  const work = folder(t);
  const { status, stderr } = build(['operator', '--root', work]);
  assert.equal(status, 0, stderr);
  const program = spawnSync(
    path.join(work, 'usr/local/bin/node'),
    [path.join(work, 'app/dist/operator/cli/sluice-operator.js'), '--version'],
    { encoding: 'utf8' },
  );
  assert.equal(program.stdout, `sluice-operator ${version}\n`, program.stderr);
  assert.equal(statSync(path.join(work, 'tmp')).mode & 0o7777, 0o1777);
});

const wrong: Record<string, { args: string[]; env?: Record<string, string>; says: RegExp }> = {
  'no target': {
    args: ['--out', 'x.tar'],
    says: /the form is node scripts\/build-image\.ts operator\|runtime/,
  },
  'an unknown target': { args: ['both', '--out', 'x.tar'], says: /the form is/ },
  'neither archive nor folder': { args: ['operator'], says: /the form is/ },
  'a time that is none': {
    args: ['operator', '--out', 'x.tar'],
    env: { SOURCE_DATE_EPOCH: 'today' },
    says: /SOURCE_DATE_EPOCH "today": the form is seconds since 1970/,
  },
};
for (const [name, { args, env = {}, says }] of Object.entries(wrong)) {
  test(`build-image refuses ${name} in one line`, () => {
    const { status, stderr } = build(args, env);
    assert.equal(status, 2);
    assert.match(stderr, says);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
  });
}

test('long paths, links and odd sizes survive the archive', (t) => {
  const work = folder(t);
  const long = `${'folder-with-a-long-name/'.repeat(12)}größe.txt`;
  const entries = [
    { kind: 'file', path: long, source: Buffer.from('x'.repeat(513)), executable: true },
    { kind: 'link', path: 'link', target: long },
    { kind: 'file', path: 'empty', source: Buffer.alloc(0), executable: false },
  ] as const;
  spawnSync('tar', ['-xf', '-', '-C', work], { input: Buffer.concat([...tar(entries, 0)]) });
  assert.equal(readFileSync(path.join(work, 'link'), 'utf8'), 'x'.repeat(513));
  assert.equal(statSync(path.join(work, long)).mode & 0o777, 0o755);
  assert.equal(statSync(path.join(work, 'empty')).size, 0);
});

test('the order in which files are found does not change the digest', () => {
  const file = (name: string) =>
    ({ kind: 'file', path: name, source: Buffer.from(name), executable: false }) as const;
  const image = {
    name: 'a:1',
    entrypoint: ['/a'],
    user: '1:1',
    workingFolder: '/',
    environment: [],
    ports: [],
    labels: {},
    seconds: 0,
  };
  const [a, b] = [
    [file('a'), file('b')],
    [file('b'), file('a')],
  ].map((layer) => ociArchive({ ...image, layers: [layer] }));
  assert.equal(a!.digest, b!.digest);
  assert.ok(a!.bytes.equals(b!.bytes));
});
