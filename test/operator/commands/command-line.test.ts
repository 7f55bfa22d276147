/** The command line of commands: words and flags, what is refused, and what plan says without a cluster. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { test } from 'node:test';
import { readCommandLine } from '../../../operator/cli/command-line.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const program = (name: string) => path.join(root, `operator/cli/${name}.ts`);
const run = (args: string[], input = '', name = 'sluice-operator') =>
  spawnSync(process.execPath, [program(name), ...args], {
    encoding: 'utf8',
    input,
    cwd: root,
    env: { PATH: process.env.PATH ?? '', HOME: '/nonexistent' },
  });

test('short and long flags, before and after the name, say the same', () => {
  const expected = readCommandLine(['explain', 'chat', '--namespace', 'prod', '--output=json']);
  for (const argv of [
    ['explain', '-n', 'prod', '-o', 'json', 'chat'],
    ['explain', '-nprod', 'chat', '-ojson'],
    ['explain', '-n=prod', '-o=json', 'chat'],
  ])
    assert.deepEqual(readCommandLine(argv), expected, argv.join(' '));
  assert.equal(expected?.name, 'chat');
});

test('without a command it is the operator', () => {
  assert.equal(readCommandLine([]), undefined);
  assert.equal(readCommandLine(['--workers=3']), undefined);
});

const refused: Record<string, [argv: string[], says: RegExp]> = {
  'a command that there is not': [['plna', '-f', 'x'], /"plna": unexpected argument; did you mean plan\?/],
  'no name': [['explain'], /explain: the name is missing; the form is explain NAME/],
  'two names': [['explain', 'a', 'b'], /"b": unexpected argument; the form is explain NAME/],
  'a flag of another command': [['explain', 'a', '--to=b'], /--to: unknown flag/],
  'no manifest': [['plan'], /plan: no manifest; the form is plan -f FILE, for example plan -f chat\.yaml/],
  'an output that there is not': [
    ['plan', '-f', 'x', '-o', 'yaml'],
    /--output "yaml": the form is text or json/,
  ],
};
for (const [name, [argv, says]] of Object.entries(refused)) {
  test(`refused: ${name}`, () => {
    assert.throws(() => readCommandLine(argv), says);
  });
}

const service = (spec: string, more = '') =>
  `apiVersion: sluice.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: chat}\n${more}spec: ${spec}\n`;
const whole = '{model: {path: /tiny}, storage: {persistentVolumeClaim: {claimName: models}}';
const manifests: Record<string, [text: string, says: RegExp]> = {
  'an unknown field': [service(`${whole}, gpu: 2}`), /spec\.gpu: unknown field; did you mean gpus\?/],
  'an unknown field below': [
    service(`${whole}, runtime: {maxLenght: 8}}`),
    /spec\.runtime\.maxLenght: unknown field; did you mean maxLength\?/,
  ],
  'an unknown field at the top': [
    service(`${whole}}`, 'sepc: {}\n'),
    /sepc: unknown field; did you mean spec\?/,
  ],
  'a value of another form': [service(`${whole}, gpus: two}`), /spec\.gpus: Invalid input: expected number/],
  'no InferenceService': [
    'apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n',
    /holds no InferenceService .*only Pod "a"/,
  ],
  'no YAML': ['a: [', /standard input: /],
};
for (const [name, [text, says]] of Object.entries(manifests)) {
  test(`plan refuses ${name} in one line, exit code 2`, () => {
    const { status, stderr, stdout } = run(['plan', '--offline', '-f', '-'], text);
    assert.equal(status, 2, stderr);
    assert.match(stderr, says);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
    assert.equal(stdout, '');
  });
}

test('kubectl sluice plan --offline says in words and in JSON what an empty cluster would get', () => {
  const words = run(['plan', '--offline', '-f', 'examples/tiny.yaml'], '', 'kubectl-sluice');
  assert.equal(words.status, 0, words.stderr);
  assert.match(
    words.stdout,
    /^InferenceService default\/tiny: 3 objects change\n {2}create {2}Service tiny\n/,
  );
  assert.match(words.stdout, /In the end: Ready \(Settled\)/);
  const { stdout } = run(['plan', '--offline', '-f', 'examples/tiny.yaml', '-o', 'json']);
  const [planned] = JSON.parse(stdout).services;
  assert.deepEqual(
    planned.writes.map((each: { verb: string; kind: string }) => `${each.verb} ${each.kind}`),
    ['patch Service', 'patch ControllerRevision', 'patch Deployment'],
  );
  assert.equal(planned.pods.started, 1);
});

test('kubectl sluice without a command is no operator', () => {
  const { status, stdout } = run([], '', 'kubectl-sluice');
  assert.equal(status, 0);
  assert.match(stdout, /Commands for people/);
});
