/** `npm start` end to end, as a user meets it: its output, the address that it prints, and what is left afterwards. */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);
const checkout = path.resolve(import.meta.dirname, '../..');
const program = path.join(checkout, 'local/cli/start.ts');
const nodeProgram = path.join(checkout, 'local/cli/node.ts');

interface Running {
  readonly output: () => string;
  readonly exited: Promise<number | null>;
  readonly pid: number;
  kill(signal: NodeJS.Signals): void;
  /** Resolves when the output holds the text; rejects when the program ends before. */
  shows(text: string): Promise<void>;
}

function start(args: readonly string[], file = program): Running {
  // From a folder that is not the checkout: nothing may depend on it.
  const child = spawn(process.execPath, [file, ...args], { cwd: '/', stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk));
  const exited = once(child, 'close').then(([code]) => code as number | null);
  return {
    output: () => text,
    exited,
    pid: child.pid!,
    kill: (signal) => child.kill(signal),
    async shows(wanted) {
      let ended = false;
      exited.then(() => {
        ended = true;
      });
      while (!text.includes(wanted)) {
        assert.equal(ended, false, `the program ended before it said ${JSON.stringify(wanted)}:\n${text}`);
        await Promise.race([once(child.stdout, 'data'), exited]);
      }
    },
  };
}

function printed(output: string, label: string): string {
  const value = new RegExp(`^${label} +(\\S+)`, 'm').exec(output)?.[1];
  assert.ok(value, `${label} in:\n${output}`);
  return value;
}

function childrenOf(parent: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        // After the name, which may hold anything: state, parent.
        const [, ppid] = readFileSync(`/proc/${pid}/stat`, 'utf8')
          .replace(/^.*\) /s, '')
          .split(' ');
        return Number(ppid) === parent;
      } catch {
        return false;
      }
    });
}

async function eventually(what: string, holds: () => Promise<boolean> | boolean): Promise<void> {
  for (let tries = 0; tries < 1200; tries++) {
    if (await holds()) return;
    await sleep(50);
  }
  assert.fail(`did not happen: ${what}`);
}

/** Command lines of programs that name the folder. */
function programsOf(directory: string): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      } catch {
        return '';
      }
    })
    .filter((line) => line.includes(directory));
}

async function loopbackAddresses(): Promise<string[]> {
  const { stdout } = await run('ip', ['-oneline', '-family', 'inet', 'address', 'show', 'dev', 'lo']).catch(
    () => ({
      stdout: '',
    }),
  );
  return [...stdout.matchAll(/ inet (\S+)\//g)].map(([, address]) => address!);
}

/** The text of a streamed chat completion. */
async function ask(url: string, body: string): Promise<string> {
  const answer = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  const stream = await answer.text();
  assert.equal(answer.status, 200, stream);
  const events = stream.split('\n\n').filter((event) => event.startsWith('data: '));
  assert.equal(events.pop(), 'data: [DONE]');
  return events
    .map((event) => JSON.parse(event.slice('data: '.length)).choices[0]?.delta?.content ?? '')
    .join('');
}

const golden: { messages: { content: string }[]; text: string }[] = JSON.parse(
  readFileSync(path.join(checkout, 'examples/models/tiny/golden.json'), 'utf8'),
).cases;

const modes = [
  { title: 'at the addresses that this machine allows, until SIGINT', args: ['--gpus', '1'], end: 'SIGINT' },
  { title: 'at ports of 127.0.0.1, until SIGINT', args: ['--host-ports', '--gpus', '0'], end: 'SIGINT' },
  { title: 'until it is killed by SIGKILL', args: [], end: 'SIGKILL' },
] as const;

describe('npm start', () => {
  for (const { title, args, end } of modes) {
    test(`serves the tiny model ${title}, and leaves nothing behind`, async () => {
      const running = start(args);
      try {
        await running.shows('Ctrl-C stops everything');
      } catch (error) {
        running.kill('SIGKILL');
        throw error;
      }
      const output = running.output();
      const kubeconfig = printed(output, 'Kubeconfig');
      const directory = path.dirname(kubeconfig);
      try {
        const [, url, body] = /^ {2}curl -N (\S+) .* -d '(.*)'$/m.exec(output) ?? [];
        const { messages } = JSON.parse(body!);
        const expected = golden.find((each) => each.messages.at(-1)!.content === messages[0].content)!.text;
        assert.equal(await ask(url!, body!), expected);
        assert.ok(url!.startsWith(printed(output, 'Service')));
        assert.equal(existsSync(printed(output, 'Audit log')), true);
        assert.equal(
          (args as readonly string[]).includes('--host-ports') ? new URL(url!).hostname : '127.0.0.1',
          '127.0.0.1',
        );

        const kubectl = programsKubectl(output);
        const { stdout } = await run(kubectl, [
          `--kubeconfig=${kubeconfig}`,
          'get',
          'inferenceservice',
          'tiny',
          '-o',
          'json',
        ]);
        const { status } = JSON.parse(stdout);
        assert.equal(status.conditions.find(({ type }: { type: string }) => type === 'Ready').status, 'True');
        const logs = await run(kubectl, [
          `--kubeconfig=${kubeconfig}`,
          'logs',
          '-l',
          'sluice.dev/service=tiny',
        ]);
        assert.notEqual(logs.stdout, '');
        assert.deepEqual(operatorRequests(printed(output, 'Audit log')), {
          users: ['system:serviceaccount:sluice-system:sluice'],
          refused: [],
        });
        if (end === 'SIGINT') assert.equal(await logsOfAnotherNode(kubectl, kubeconfig), 'hello\n');
      } finally {
        running.kill(end);
      }
      const code = await running.exited;
      if (end === 'SIGINT') {
        assert.equal(code, 0, running.output());
        assert.match(running.output(), /Nothing is left behind/);
        assert.deepEqual(programsOf(directory), []);
        assert.equal(existsSync(directory), false);
      } else {
        await eventually('all programs are gone', () => programsOf(directory).length === 0);
        await eventually('its folder is gone', () => !existsSync(directory));
      }
      const address = new URL(printed(output, 'Service')).hostname;
      await eventually('its addresses are gone', async () => {
        return address === '127.0.0.1' || !(await loopbackAddresses()).includes(address);
      });
    });
  }

  test('interrupted while it starts, it ends with exit code 0 and leaves nothing behind', async () => {
    const running = start([]);
    await running.shows('control plane (');
    const children = childrenOf(running.pid);
    const [directory] = children
      .map((pid) => readlinkSync(`/proc/${pid}/cwd`))
      .filter((cwd) => cwd.includes('sluice-'));
    assert.ok(directory);
    running.kill('SIGTERM');
    assert.equal(await running.exited, 0, running.output());
    assert.deepEqual(
      children.filter((pid) => existsSync(`/proc/${pid}`)),
      [],
    );
    assert.equal(existsSync(directory), false);
  });

  const refused = [
    {
      args: ['--gpus', 'all'],
      message: 'npm start: --gpus "all": a number from 0 to 8 is needed, for example --gpus 4\n',
    },
    { args: ['--port', '80'], message: /^npm start: --port: is not an option of npm start; / },
  ];
  for (const { args, message } of refused) {
    test(`"${args.join(' ')}" ends in one line and exit code 2`, async () => {
      const running = start(args);
      assert.equal(await running.exited, 2);
      if (message instanceof RegExp) assert.match(running.output(), message);
      else assert.equal(running.output(), message);
      assert.equal(running.output().trim().split('\n').length, 1);
    });
  }

  test('--help tells every option', async () => {
    const running = start(['--help']);
    assert.equal(await running.exited, 0);
    for (const option of ['--gpus N', '--host-ports', '--help', 'SLUICE_CACHE_DIR']) {
      assert.ok(running.output().includes(option), option);
    }
  });
});

/** What `kubectl logs` shows of a pod on a node that is added from another terminal. */
async function logsOfAnotherNode(kubectl: string, kubeconfig: string): Promise<string> {
  const pki = path.join(path.dirname(kubeconfig), 'pki');
  const node = start(['--kubeconfig', kubeconfig, '--pki', pki, '--name', 'another'], nodeProgram);
  try {
    await node.shows('node another is ready');
    const ask = async (...args: string[]) =>
      (await run(kubectl, [`--kubeconfig=${kubeconfig}`, ...args])).stdout;
    const overrides = JSON.stringify({ spec: { nodeName: 'another' } });
    const image = '--image=sluice.dev/shell';
    await ask('run', 'words', image, '--restart=Never', `--overrides=${overrides}`, '--', '-c', 'echo hello');
    await ask('wait', 'pod/words', '--for=jsonpath={.status.phase}=Succeeded', '--timeout=120s');
    return await ask('logs', 'words');
  } finally {
    node.kill('SIGINT');
    await node.exited;
  }
}

/** Who the operator was to the API server, and what it was not allowed to do. */
function operatorRequests(auditLog: string): { users: string[]; refused: string[] } {
  const events = readFileSync(auditLog, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line))
    .filter(({ userAgent }) => userAgent === 'sluice-operator');
  return {
    users: [...new Set(events.map(({ user }) => user.username))],
    refused: events
      .filter(({ responseStatus }) => responseStatus?.code === 403)
      .map(({ verb, requestURI }) => `${verb} ${requestURI}`),
  };
}

/** The kubectl that the output recommends. */
function programsKubectl(output: string): string {
  const [, kubectl] = /^ {2}(\S+) get inferenceservices/m.exec(output) ?? [];
  assert.ok(kubectl, output);
  return kubectl;
}
