/** Nodes that end and come back, and nodes that lack rights: what is left behind, and what becomes of their pods. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { startProcessNode } from '../../local/node/process-node.ts';
import { resources } from '../../operator/kube/client.ts';
import { controlPlane } from '../support/control-plane.ts';
import { containerOf, get, isRunning, Pods, program, untilTrue } from '../support/process-pods.ts';

const run = promisify(execFile);
const cli = path.resolve(import.meta.dirname, '../../local/cli/node.ts');
const serve = (text: string) =>
  `http.createServer((request, response) => response.end('${text}')).listen(8000, host);
   process.on('SIGTERM', () => process.exit(0));`;
const ready = { readinessProbe: { httpGet: { port: 8000 }, periodSeconds: 1 } };

/** The node in a process of its own, so that it can be killed. */
async function startCli(t: TestContext, args: readonly string[]): Promise<ChildProcess> {
  const child = spawn(process.execPath, [cli, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  await new Promise<void>((resolve, reject) => {
    child.stdout!.on('data', (chunk) => {
      output += chunk;
      if (output.includes(' is ready')) resolve();
    });
    child.once('exit', () => reject(new Error(`the node ended: ${output}`)));
  });
  return child;
}

async function podAddresses(): Promise<string[]> {
  const { stdout } = await run('ip', ['-oneline', '-family', 'inet', 'address', 'show', 'dev', 'lo']);
  return stdout.match(/10\.244\.\d+\.\d+/g) ?? [];
}

test('after SIGKILL no process survives, and the next node of the name starts the pods again', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const nodeName = `restarts-${process.pid}`;
  const pods = new Pods(plane.client, await plane.namespace(t), nodeName);
  const folder = mkdtempSync(path.join(os.tmpdir(), 'node-restart-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const args = [
    `--kubeconfig=${plane.kubeconfig}`,
    `--name=${nodeName}`,
    `--root-dir=${folder}`,
    '--backoff-ms=200',
  ];
  const marker = `marker-${process.pid}`;

  const first = await startCli(t, args);
  await pods.create('service', { containers: [program('main', `/* ${marker} */ ${serve('up')}`, ready)] });
  await pods.create('job', {
    restartPolicy: 'Never',
    containers: [program('main', `/* ${marker} */ ${serve('job')}`, ready)],
  });
  const before = await pods.untilReady('service');
  await pods.untilReady('job');
  first.kill('SIGKILL');
  await untilTrue('the pods end with their node', async () => !(await isRunning(marker)));
  const old = before.status!.podIP!;
  await untilTrue('addresses go with their node', async () => !(await podAddresses()).includes(old));

  const second = await startCli(t, args);
  const after = await pods.until('service', 'ready again', ({ status }) => {
    const [main] = status?.containerStatuses ?? [];
    return main?.restartCount === 1 && main.ready;
  });
  assert.equal(await get(`http://${after.status?.podIP}:8000/`), 'up');
  const { lastState } = containerOf(after, 'main');
  assert('terminated' in lastState && lastState.terminated?.reason === 'ContainerStatusUnknown');
  assert.equal((await pods.untilPhase('job', 'Failed')).status?.phase, 'Failed');

  second.kill('SIGTERM');
  const [code] = await once(second, 'exit');
  assert.equal(code, 0);
  assert.equal(await isRunning(marker), false);
  assert(!(await podAddresses()).includes(after.status!.podIP!));
  assert.deepEqual(readdirSync(folder), []);
  const node = await plane.client.get(resources.nodes, { name: nodeName });
  const condition = node?.status.conditions.find(({ type }: { type: string }) => type === 'Ready');
  assert.equal(condition.status, 'False');
});

test('where pods share the address, the second for a port waits, is told why, and starts when it is free', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const nodeName = `shared-${process.pid}`;
  const pods = new Pods(plane.client, await plane.namespace(t), nodeName);
  const messages: string[] = [];
  const node = await startProcessNode({
    client: plane.client,
    name: nodeName,
    gpus: 0,
    authority: plane.authority,
    sharedAddress: true,
    onMessage: (line) => messages.push(line),
  });
  t.after(() => node.stop());
  assert.match(messages.join('\n'), /all pods have the address .*each port can have one pod/);
  const port = 20_000 + (process.pid % 10_000);
  const withPort = (text: string) => ({
    containers: [
      program('main', serve(text).replace('8000', String(port)), {
        ports: [{ containerPort: port }],
        readinessProbe: { httpGet: { port }, periodSeconds: 1 },
      }),
    ],
  });
  await pods.create('one', withPort('one'));
  const one = await pods.untilReady('one');
  assert.equal(one.status?.podIP, node.hostIP);
  await pods.create('two', withPort('two'));
  await pods.events('two', (events) =>
    events.some(({ reason, message }) => reason === 'PortInUse' && message.includes(`${pods.namespace}/one`)),
  );
  await pods.remove('one');
  const two = await pods.untilReady('two');
  assert.equal(await get(`http://${two.status?.podIP}:${port}/`), 'two');
  await pods.remove('two');
  await pods.untilGone('two');
});

test('the command line refuses what it does not know in one line, with exit code 2', async () => {
  const failure = await run(process.execPath, [cli, '--gpus', '9']).then(
    () => assert.fail('it was accepted'),
    (error: { code: number; stderr: string }) => error,
  );
  assert.equal(failure.code, 2);
  assert.equal(failure.stderr, '--gpus "9": the form is an integer from 0 to 8, for example --gpus 4\n');
});
