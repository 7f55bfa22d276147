/** The program's options, its help, and how it ends. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { helpText } from '../../../operator/cli/help.ts';
import { loadOperatorConfig, operatorOptions } from '../../../operator/config.ts';

const program = path.resolve(import.meta.dirname, '../../../operator/cli/sluice-operator.ts');
const run = (args: string[], env: Record<string, string> = {}) =>
  spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH ?? '', HOME: '/nonexistent', ...env },
  });

const wrong: Record<string, { args?: string[]; env?: Record<string, string>; says: RegExp }> = {
  'an unknown flag': {
    args: ['--runtime-imgae=x'],
    says: /--runtime-imgae: unknown flag; did you mean --runtime-image\?/,
  },
  'a port that is none': {
    args: ['--health-port=70000'],
    says: /--health-port "70000": the form is an integer from 0 to 65535/,
  },
  'no workers': { args: ['--workers', '0'], says: /--workers "0": the form is an integer from 1 to 64/ },
  'a word': { args: ['start'], says: /"start": unexpected argument/ },
  'a variable that is wrong': {
    env: { SLUICE_OPERATOR_LOG_LEVEL: 'loud' },
    says: /SLUICE_OPERATOR_LOG_LEVEL "loud"/,
  },
  'an unknown variable': {
    env: { SLUICE_OPERATOR_WORKER: '3' },
    says: /SLUICE_OPERATOR_WORKER "3": unknown environment variable; did you mean SLUICE_OPERATOR_WORKERS\?/,
  },
  'a namespace that can be none': { args: ['--watch-namespaces=a,B_c'], says: /--watch-namespaces "a,B_c"/ },
  'a kubeconfig that is not there': {
    args: ['--kubeconfig=/nonexistent/config'],
    says: /\/nonexistent\/config/,
  },
};
for (const [name, { args = [], env = {}, says }] of Object.entries(wrong)) {
  test(`${name}: one line, exit code 2`, () => {
    const { status, stderr, stdout } = run(args, env);
    assert.equal(status, 2, stderr);
    assert.match(stderr, says);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
    assert.equal(stdout, '');
  });
}

test('--help tells every option', () => {
  const { status, stdout } = run(['--help']);
  assert.equal(status, 0);
  assert.equal(stdout, helpText());
  for (const { flag } of Object.values(operatorOptions)) assert.ok(stdout.includes(`--${flag}`), flag);
  assert.deepEqual(
    stdout.split('\n').filter((line) => line.length > 100),
    [],
  );
});

test('--version', () => {
  assert.match(run(['--version']).stdout, /^sluice-operator \d+\.\d+\.\d+\n$/);
});

test('flags win over variables, variables over the file, the file over defaults', (t) => {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'operator.yaml');
  writeFileSync(file, 'workers: 7\nlog-level: debug\nwatch-namespaces: [a, b]\nleader-elect: false\n');
  const config = loadOperatorConfig({
    argv: ['--config', file, '--workers=9'],
    env: {
      SLUICE_OPERATOR_LOG_LEVEL: 'warn',
      SLUICE_OPERATOR_WORKERS: '8',
      SLUICE_MODEL_PATH: '/none/of/ours',
    },
  });
  assert.equal(config.workers, 9);
  assert.equal(config.logLevel, 'warn');
  assert.deepEqual(config.watchNamespaces, ['a', 'b']);
  assert.equal(config.leaderElect, false);
  assert.equal(config.healthPort, 8081);
});
