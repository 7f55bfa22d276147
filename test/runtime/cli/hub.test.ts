/** Models from the hub, by the program itself: broken off and resumed, two at once, gone hub, GGUF files. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type HubServer, startHub } from '../../support/hub-server.ts';
import { root, run, ServeProcess, startProgram, tiny } from './program.ts';

const { cases } = JSON.parse(readFileSync(path.join(tiny, 'golden.json'), 'utf8')) as {
  cases: { messages?: { role: string; content: string }[]; text: string }[];
};
const answer = cases.find(
  ({ messages }) => messages?.length === 1 && messages[0]!.content === 'Hello!',
)!.text;

function filesOf(folder: string): Record<string, Uint8Array> {
  const names = readdirSync(folder).filter((name) => /\.(json|safetensors|gguf|jinja)$/.test(name));
  return Object.fromEntries(names.map((name) => [name, readFileSync(path.join(folder, name))]));
}

const model = filesOf(tiny);
const gguf = filesOf(path.join(root, 'test/goldens/gguf-q8_0'));
const weightBytes = model['model.safetensors']!.length;

let hub: HubServer;
const home = mkdtempSync(path.join(tmpdir(), 'sluice-hub-'));
after(() => rmSync(home, { recursive: true, force: true }));
let cache: string;
let env: Record<string, string>;

beforeEach(async () => {
  hub = await startHub();
  hub.commit('org/tiny', model);
  cache = mkdtempSync(path.join(home, 'cache-'));
  env = {
    HF_ENDPOINT: hub.endpoint,
    HF_HUB_CACHE: cache,
    HF_HOME: cache,
    HF_HUB_OFFLINE: '',
    HF_TOKEN: '',
    NO_PROXY: '127.0.0.1',
    no_proxy: '127.0.0.1',
  };
});
afterEach(() => hub.close());

const generate = ['generate', '--prompt=Hello!', '--devices=cpu:0', '--model-path=org/tiny'];
const cdnRequests = () => hub.requests.filter(({ server }) => server === 'cdn');

const blobs = () => path.join(cache, 'models--org--tiny/blobs');
const weightBlob = createHash('sha256').update(model['model.safetensors']!).digest('hex');

/** Bytes of the weights, which are one part, that are recorded as written. */
function writtenBytes(): number {
  const record = path.join(blobs(), `${weightBlob}.sluice.parts`);
  if (!existsSync(record)) return 0;
  return Number(/ (\d+)\n$/.exec(readFileSync(record, 'utf8'))?.[1] ?? 0);
}

test('killed at half of a download, generate resumes, verifies and answers', async () => {
  hub.faults.bytesPerSecond = 1 << 20;
  const first = startProgram(generate, env);
  while (writtenBytes() < weightBytes / 2) await sleep(10);
  first.child.kill('SIGKILL');
  await first.ended;
  delete hub.faults.bytesPerSecond;
  hub.requests.length = 0;
  const { code, stdout, stderr } = await run(generate, { env });
  assert.equal(stdout, `${answer}\n`, stderr);
  assert.equal(code, 0);
  const starts = cdnRequests().map(({ range }) => Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1]));
  assert.ok(
    starts.length > 0 && Math.max(...starts) >= weightBytes / 2 - (64 << 10),
    `resumed from ${starts}`,
  );
  assert.ok(readFileSync(path.join(blobs(), weightBlob)).equals(model['model.safetensors']!));
});

test('a broken connection and a wrong byte do not reach the answer', async () => {
  hub.faults.breakAfterBytes = { bytes: Math.floor(weightBytes / 2), times: 1 };
  hub.faults.corrupt = 1;
  const { code, stdout, stderr } = await run(generate, { env });
  assert.equal(stdout, `${answer}\n`, stderr);
  assert.match(stderr, /loading download: .*MiB/);
  assert.equal(code, 0);
});

test('two at once download once, and both answer', async () => {
  hub.faults.bytesPerSecond = 8 << 20;
  const both = await Promise.all([run(generate, { env }), run(generate, { env })]);
  for (const { stdout, stderr } of both) assert.equal(stdout, `${answer}\n`, stderr);
  const starts = cdnRequests().filter(({ range }) => range?.startsWith('bytes=0-'));
  assert.equal(starts.length, Object.values(model).filter((bytes) => bytes.length > 64 << 10).length);
});

test('without the hub the cached copy answers, with a warning; offline without one', async () => {
  assert.equal((await run(['pull', 'org/tiny'], { env })).code, 0);
  await hub.close();
  const { stdout, stderr } = await run(generate, { env });
  assert.equal(stdout, `${answer}\n`, stderr);
  assert.match(stderr, /warning: .*no connection.*the cached commit [0-9a-f]{40} of org\/tiny@main is used/);
  const offline = await run(generate, { env: { ...env, HF_HUB_OFFLINE: '1' } });
  assert.equal(offline.stdout, `${answer}\n`);
  assert.doesNotMatch(offline.stderr, /warning/);
  hub = await startHub();
});

const refusals: [string, string[], RegExp][] = [
  ['a repository that is not there', ['--model-path=org/none'], /org\/none: no such repository/],
  [
    'a revision that is not there',
    ['--model-path=org/tiny', '--huggingface-revision=v9'],
    /no revision "v9"/,
  ],
  [
    'a revision of a local path',
    [`--model-path=${tiny}`, '--huggingface-revision=v9'],
    /only for a model of the hub/,
  ],
  ['a weight file that is not there', ['--weight-path=org/tiny/x.gguf'], /the repository has no x\.gguf/],
  ['safetensors without a configuration', ['--weight-path=a.safetensors'], /--model-path/],
];
for (const [name, argv, message] of refusals)
  test(`${name} is one clear line and exit 2`, async () => {
    const { code, stderr } = await run(['generate', '--prompt=x', ...argv], { env });
    assert.match(stderr, message);
    assert.equal(stderr.split('\n').filter((line) => line.startsWith('sluice: ')).length, 1, stderr);
    assert.equal(code, 2);
  });

test('a GGUF of the hub is a whole model, and weights for another configuration', async () => {
  hub.commit('org/quants', { ...gguf, 'other-Q4_0.gguf': gguf['model-Q8_0.gguf']! });
  const argv = [
    'generate',
    '--prompt=Hello',
    '--no-chat',
    '--max-new-tokens=8',
    '--ignore-eos',
    '--devices=cpu:0',
  ];
  const alone = await run([...argv, '--weight-path=org/quants/model-Q8_0.gguf'], { env });
  const local = await run([...argv, `--model-path=${path.join(root, 'test/goldens/gguf-q8_0')}`], { env });
  assert.equal(alone.code, 0, alone.stderr);
  assert.ok(alone.stdout.trim().length > 0);
  assert.equal(alone.stdout, local.stdout);
  const several = await run([...argv, '--model-path=org/quants'], { env });
  assert.match(several.stderr, /several GGUF files .*--weight-path/);
});

test('serve listens before it downloads, and says in /health how far it is', async () => {
  hub.faults.bytesPerSecond = 1 << 20;
  await using server = await ServeProcess.listen(['--devices=cpu:0', '--model-path=org/tiny'], env);
  let progress: Record<string, unknown> | undefined;
  while (progress?.phase !== 'download') {
    const health = await server.get('/health');
    assert.equal(health.status, 503);
    progress = ((await health.json()) as { progress?: Record<string, unknown> }).progress;
    await sleep(20);
  }
  assert.equal(
    progress.total,
    Object.values(model).reduce((sum, bytes) => sum + bytes.length, 0) - unwantedBytes(),
  );
  assert.equal(typeof progress.bytesPerSecond, 'number');
  delete hub.faults.bytesPerSecond;
  await server.until('/readyz', 200);
  const { data } = (await (await server.get('/v1/models')).json()) as { data: { id: string }[] };
  assert.deepEqual(
    data.map(({ id }) => id),
    ['org/tiny', 'tiny'],
  );
});

function unwantedBytes(): number {
  return model['golden.json']!.length;
}

test('inspect downloads headers only', async () => {
  const { code, stdout, stderr } = await run(['inspect', 'org/tiny'], { env });
  const local = await run(['inspect', tiny], { env });
  assert.equal(code, 0, stderr);
  assert.equal(stdout.replace('org/tiny', tiny), local.stdout);
  assert.match(stdout, /LlamaForCausalLM[\s\S]*KV cache +[\d,]+ bytes a token[\s\S]*GPUs/);
  const end = Math.max(...cdnRequests().map(({ range }) => Number(/-(\d+)$/.exec(range ?? '')?.[1])));
  assert.ok(end < weightBytes / 2, `byte ${end} of ${weightBytes} was asked for`);
  assert.deepEqual(readdirSync(cache), []);
});
