/** `sluice generate` and `sluice version`, as a person uses them. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { root, run, tiny } from './program.ts';

const { cases } = JSON.parse(readFileSync(path.join(tiny, 'golden.json'), 'utf8')) as {
  cases: { messages?: { role: string; content: string }[]; text: string }[];
};
const answerTo = (prompt: string) =>
  cases.find(({ messages }) => messages?.length === 1 && messages[0]!.content === prompt)!.text;

test('the golden answer on stdout, everything else on stderr', async () => {
  const { code, stdout, stderr } = await run(['generate', '--prompt', 'Hello!', '--devices', 'cpu:0']);
  assert.equal(stdout, `${answerTo('Hello!')}\n`);
  assert.match(stderr, /small demo model/);
  assert.match(
    stderr,
    /prompt 13 tokens, answer 9 tokens \(stop\).*time to first token \d+ ms, then [\d.]+ tokens\/s/,
  );
  assert.equal(code, 0);
});

test('a prompt from standard input, to a model given by its path', async () => {
  const { stdout, stderr } = await run(
    ['generate', '--prompt=-', `--model-path=${tiny}`, '--devices=cpu:0'],
    {
      input: 'Who are you?',
    },
  );
  assert.equal(stdout, `${answerTo('Who are you?')}\n`);
  assert.doesNotMatch(stderr, /demo model/);
});

test('without the chat template the text goes on, up to the limit', async () => {
  const argv = [
    'generate',
    '--no-chat',
    '--prompt=Kubernetes is',
    '--max-new-tokens=5',
    '--ignore-eos',
    '--devices=cpu:0',
  ];
  const { code, stderr } = await run(argv);
  assert.match(stderr, /answer 5 tokens \(length\)/);
  assert.equal(code, 0);
});

test('a stop string that holds a comma', async () => {
  const { stdout } = await run([
    'generate',
    '--prompt=Hello!',
    '--stop',
    'x,y',
    '--stop= can',
    '--devices=cpu:0',
  ]);
  assert.equal(stdout, 'Hello! How\n');
});

test('version and help', async () => {
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    version: string;
  };
  assert.equal((await run(['version'])).stdout, `${version}\n`);
  assert.match((await run([])).stdout, /Commands\n {2}serve/);
  const help = (await run(['serve', '--help'])).stdout;
  for (const flag of ['--model-path', '--shutdown-grace', 'SLUICE_PORT', 'Default: 8000'])
    assert.ok(help.includes(flag), flag);
  assert.ok(help.split('\n').every((line) => line.length <= 100));
});
