/**
 * What the program finds in a container: real processes in a mount namespace of their own, in which the control group's
 * files are ours, and under a real affinity.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { root, tiny } from './program.ts';

/** Runs a program where the control group `/pod/app` has these files. */
function inGroup(files: Readonly<Record<string, string>>, argv: readonly string[]) {
  const script = `
set -e
group=/sys/fs/cgroup/pod/app
mount -t tmpfs none /sys/fs/cgroup
mkdir -p $group
echo cpu > $group/cgroup.controllers
while [ "$1" != -- ]; do echo "$2" > $group/$1; echo "$2" > /sys/fs/cgroup/$1; shift 2; done
shift
echo 0::/pod/app > /sys/fs/cgroup/of-process
mount --bind /sys/fs/cgroup/of-process /proc/$$/cgroup
exec "$@"`;
  const given = [...Object.entries(files).flat(), '--', process.execPath, ...argv];
  const args = ['--user', '--map-root-user', '--mount', 'bash', '-c', script, 'bash', ...given];
  return spawnSync('unshare', args, { encoding: 'utf8', cwd: root });
}

const skip =
  inGroup({}, ['--version']).status === 0 ? false : 'the system allows no user namespaces to this process';

const threads = `
const { loadConfig } = await import('./runtime/config.ts');
console.log(loadConfig({ argv: [], env: {} }).threads);`;
const printThreads = ['--input-type=module', '--eval', threads];

/** The cores that this process may use, without any quota. */
const cores = Number(spawnSync('nproc', { encoding: 'utf8' }).stdout);

describe('threads by default', () => {
  // One is left for HTTP where there are more than two.
  const expected = (allowed: number) => {
    const usable = Math.min(Math.max(allowed, 1), cores);
    return usable > 2 ? usable - 1 : usable;
  };
  const quotas: [string, number][] = [
    ['max 100000', Number.POSITIVE_INFINITY],
    ['50000 100000', 0.5],
    ['150000 100000', 1],
    ['200000 100000', 2],
    ['300000 100000', 3],
    ['1000000 100000', 10],
  ];
  for (const [quota, allowed] of quotas)
    test(`with a quota of ${quota} microseconds`, { skip }, () => {
      const { stdout, stderr } = inGroup({ 'cpu.max': quota }, printThreads);
      assert.equal(stdout, `${expected(allowed)}\n`, stderr);
    });

  test('of one core that the process is bound to', () => {
    const { stdout, stderr } = spawnSync('taskset', ['--cpu-list', '0', process.execPath, ...printThreads], {
      encoding: 'utf8',
      cwd: root,
    });
    assert.equal(stdout, '1\n', stderr);
  });
});

test('a container too small for the model is one line with the numbers, before anything is loaded', {
  skip,
}, () => {
  const files = { 'memory.max': `${100 << 20}`, 'memory.current': `${98 << 20}` };
  const serve = ['runtime/cli/sluice.ts', 'serve', '--host=127.0.0.1', '--port=0', `--model-path=${tiny}`];
  const { status, stderr } = inGroup(files, serve);
  assert.equal(status, 2);
  assert.match(
    stderr,
    /^sluice: .*tiny cannot be run: about \d+ MiB are needed \(weights \d+ MiB, .*, 2 MiB are there \(what this machine or container has left\)\n$/,
  );
});
