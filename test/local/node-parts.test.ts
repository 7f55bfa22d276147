/** The parts of the process node that need no API server. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { help, parseNodeOptions } from '../../local/cli/node-options.ts';
import { startGuard } from '../../local/guard.ts';
import { writeAtomically } from '../../local/node/atomic-files.ts';
import { goDuration, RestartBackoff } from '../../local/node/backoff.ts';
import { ContainerLog } from '../../local/node/container-log.ts';
import { expand } from '../../local/node/environment.ts';
import { GpuPool, gpuEnvironment } from '../../local/node/gpus.ts';
import { commandLine, findImage, toolImages } from '../../local/node/images.ts';
import { computePodStatus } from '../../local/node/pod-status.ts';
import type { ContainerState, ContainerStatus, Pod } from '../../local/node/pod-types.ts';
import { runProber } from '../../local/node/prober.ts';
import { divideQuantity, parseQuantity } from '../../local/node/quantity.ts';
import { rewritePaths } from '../../local/node/rewrite-paths.ts';
import { LaunchError, Sandbox, type SandboxKind } from '../../local/node/sandbox.ts';
import { honouredFields, inspectFields, warnedFields } from '../../local/node/supported-fields.ts';

const run = promisify(execFile);

function folderFor(t: TestContext): string {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'node-parts-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

describe('supported fields', () => {
  test('README.md has the lists of the code', () => {
    const readme = readFileSync(path.resolve(import.meta.dirname, '../../local/node/README.md'), 'utf8');
    const [, honoured = '', warned = ''] = readme.split(/^## Fields that are .*$|^## Anything else$/m);
    const rows = (text: string) => text.split('\n').filter((line) => line.startsWith('- `'));
    const expected = (fields: typeof honouredFields) =>
      fields.map((field) => `- \`${field.path}\`${field.note ? `: ${field.note}` : ''}`);
    assert.deepEqual(rows(honoured), expected(honouredFields));
    assert.deepEqual(rows(warned), expected(warnedFields));
  });

  const container = { name: 'main', image: 'x' };
  const cases: { name: string; spec: object; warned?: string[]; unsupported?: string[] }[] = [
    {
      name: 'what defaulting and admission add is honoured',
      spec: {
        containers: [
          {
            ...container,
            imagePullPolicy: 'IfNotPresent',
            terminationMessagePath: '/dev/termination-log',
            terminationMessagePolicy: 'File',
            resources: {},
            volumeMounts: [
              {
                name: 'kube-api-access-x',
                mountPath: '/var/run/secrets',
                readOnly: true,
                recursiveReadOnly: null,
              },
            ],
          },
        ],
        volumes: [
          {
            name: 'kube-api-access-x',
            projected: {
              defaultMode: 420,
              sources: [
                { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
                { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
                {
                  downwardAPI: {
                    items: [
                      { path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } },
                    ],
                  },
                },
              ],
            },
          },
        ],
        restartPolicy: 'Always',
        terminationGracePeriodSeconds: 30,
        dnsPolicy: 'ClusterFirst',
        serviceAccountName: 'default',
        serviceAccount: 'default',
        nodeName: 'n',
        securityContext: {},
        schedulerName: 'default-scheduler',
        tolerations: [{ key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute' }],
        priority: 0,
        enableServiceLinks: true,
        preemptionPolicy: 'PreemptLowerPriority',
      },
    },
    {
      name: 'isolation is warned about, field by field',
      spec: {
        containers: [
          {
            ...container,
            resources: { limits: { cpu: '1', memory: '1Gi', 'nvidia.com/gpu': '1' } },
            securityContext: {
              runAsUser: 1,
              allowPrivilegeEscalation: false,
              capabilities: { drop: ['ALL'] },
            },
          },
        ],
        securityContext: { runAsNonRoot: true, runAsUser: 5 },
        volumes: [{ name: 'v', emptyDir: { sizeLimit: '1Gi', medium: 'Memory' } }],
        hostPID: true,
      },
      warned: [
        'containers[0].resources.limits.cpu',
        'containers[0].resources.limits.memory',
        'containers[0].securityContext.capabilities',
        'hostPID',
        'securityContext.runAsNonRoot',
        'volumes[0].emptyDir.sizeLimit',
      ],
    },
    {
      name: 'anything else is unsupported, in init containers too',
      spec: {
        containers: [{ ...container, livenessProbe: { grpc: { port: 1 }, periodSeconds: 1 }, stdin: true }],
        initContainers: [{ ...container, tty: true, resources: { limits: { 'amd.com/gpu': '1' } } }],
        volumes: [{ name: 'v', csi: { driver: 'x' } }],
        resourceClaims: [{ name: 'gpu' }],
        ephemeralContainers: [container],
      },
      unsupported: [
        'containers[0].livenessProbe.grpc',
        'containers[0].stdin',
        'ephemeralContainers',
        'initContainers[0].resources.limits.amd.com/gpu',
        'initContainers[0].tty',
        'resourceClaims',
        'volumes[0].csi',
      ],
    },
  ];
  for (const { name, spec, warned = [], unsupported = [] } of cases) {
    test(name, () => {
      const report = inspectFields(spec);
      assert.deepEqual(report.warned.toSorted(), warned);
      assert.deepEqual(report.unsupported.toSorted(), unsupported);
    });
  }
});

describe('environment', () => {
  const values = { A: '1', B_2: 'two' };
  for (const [text, expected] of [
    ['$(A)$(B_2)', '1two'],
    ['$$(A)', '$(A)'],
    ['$$$(A)', '$1'],
    ['$(NONE) $A $(', '$(NONE) $A $('],
    ['$(toString)', '$(toString)'],
  ] as const) {
    test(`${text} becomes ${expected}`, () => assert.equal(expand(text, values), expected));
  }

  for (const [quantity, divisor, expected] of [
    ['1', undefined, '1'],
    ['250m', undefined, '1'],
    ['250m', '1m', '250'],
    ['0.1', '1m', '100'],
    ['1Gi', '1Mi', '1024'],
    ['1G', '1Mi', '954'],
    ['1e3', '0', '1000'],
  ] as const) {
    test(`${quantity} in units of ${divisor} is ${expected}`, () =>
      assert.equal(divideQuantity(quantity, divisor), expected));
  }
  test('what is no quantity is none', () => assert.equal(parseQuantity('1GiB'), undefined));
});

describe('images', () => {
  const image = { entrypoint: ['node', 'main.js'], arguments: ['serve'] };
  for (const { name, command, args, expected } of [
    { name: 'neither', command: undefined, args: undefined, expected: ['node', 'main.js', 'serve'] },
    { name: 'args', command: undefined, args: ['x'], expected: ['node', 'main.js', 'x'] },
    { name: 'command', command: ['sh'], args: undefined, expected: ['sh'] },
    { name: 'both', command: ['sh'], args: ['-c', 'x'], expected: ['sh', '-c', 'x'] },
  ]) {
    test(`with ${name} given, ${expected.join(' ')} runs`, () =>
      assert.deepEqual(commandLine(image, command, args), expected));
  }
  test('a name without a tag means latest, and no other tag', () => {
    assert(findImage(toolImages, 'sluice.dev/node'));
    assert(findImage(toolImages, 'sluice.dev/node:latest'));
    assert.equal(findImage(toolImages, 'sluice.dev/node:1'), undefined);
    assert.equal(findImage({ 'host:5000/x:1': image }, 'host:5000/x'), undefined);
  });
});

test('GPU ids are exclusive, all or none are taken, and they are the same after a restart', () => {
  const pool = new GpuPool('n', 4);
  const first = pool.take('a', 3)!;
  assert.equal(pool.take('b', 2), undefined);
  const second = pool.take('b', 1)!;
  assert.deepEqual([...first, ...second], pool.ids);
  pool.release('a');
  assert.deepEqual(pool.take('c', 3), first);
  assert.deepEqual(new GpuPool('n', 4).ids, pool.ids);
  assert.notDeepEqual(new GpuPool('m', 4).ids, pool.ids);
  assert.deepEqual(gpuEnvironment([]), {});
  assert.equal(gpuEnvironment(['x', 'y']).SLUICE_DEVICES, 'cpu:0,1');
});

test('restarts back off from nothing to thirty times the base, and begin anew after a long run', () => {
  const backoff = new RestartBackoff(10_000);
  const delays = Array.from({ length: 8 }, () => backoff.next(1_000) / 1000);
  assert.deepEqual(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
  assert.equal(backoff.next(600_001), 0);
  assert.deepEqual([10_000, 160_000, 300_000, 500].map(goDuration), ['10s', '2m40s', '5m0s', '500ms']);
});

describe('pod status', () => {
  const running: ContainerState = { running: { startedAt: 't' } };
  const waiting: ContainerState = { waiting: { reason: 'x' } };
  const exited = (exitCode: number): ContainerState => ({
    terminated: { exitCode, reason: '', startedAt: null, finishedAt: null },
  });
  const status = (state: ContainerState, more: Partial<ContainerStatus> = {}): ContainerStatus => ({
    name: 'main',
    image: '',
    imageID: '',
    state,
    lastState: {},
    ready: 'running' in state,
    started: 'running' in state,
    restartCount: 0,
    ...more,
  });
  const cases: {
    name: string;
    policy?: 'Never' | 'OnFailure';
    states: ContainerStatus[];
    ended?: boolean;
    uninitialized?: boolean;
    phase: string;
    ready: 'True' | 'False';
  }[] = [
    { name: 'all run', states: [status(running), status(running)], phase: 'Running', ready: 'True' },
    {
      name: 'one runs, one has not started',
      states: [status(running), status(waiting)],
      phase: 'Pending',
      ready: 'False',
    },
    {
      name: 'it runs but is not ready',
      states: [status(running, { ready: false })],
      phase: 'Running',
      ready: 'False',
    },
    {
      name: 'it waits to be restarted',
      states: [status(waiting, { lastState: exited(1) })],
      phase: 'Running',
      ready: 'False',
    },
    {
      name: 'init containers are not done',
      states: [status(waiting)],
      uninitialized: true,
      phase: 'Pending',
      ready: 'False',
    },
    {
      name: 'it succeeded and is not restarted',
      policy: 'Never',
      states: [status(exited(0))],
      phase: 'Succeeded',
      ready: 'False',
    },
    {
      name: 'one of two failed and is not restarted',
      policy: 'Never',
      states: [status(exited(0)), status(exited(2))],
      phase: 'Failed',
      ready: 'False',
    },
    {
      name: 'one of two is still on',
      policy: 'Never',
      states: [status(exited(2)), status(running)],
      phase: 'Running',
      ready: 'False',
    },
    {
      name: 'it failed and will be retried',
      policy: 'OnFailure',
      states: [status(exited(2))],
      phase: 'Running',
      ready: 'False',
    },
    {
      name: 'a deleted pod ended well',
      states: [status(exited(0))],
      ended: true,
      phase: 'Succeeded',
      ready: 'False',
    },
    {
      name: 'a deleted pod was killed',
      states: [status(exited(137))],
      ended: true,
      phase: 'Failed',
      ready: 'False',
    },
  ];
  for (const { name, policy, states, ended = false, uninitialized = false, phase, ready } of cases) {
    test(`${phase}, ready ${ready}: ${name}`, () => {
      const pod = {
        metadata: { name: 'p' },
        spec: { containers: [], restartPolicy: policy ?? 'Always' },
        status: {
          conditions: [
            { type: 'PodScheduled', status: 'True', lastTransitionTime: 'before' },
            { type: 'example.com/gate', status: 'False', lastTransitionTime: 'before' },
            { type: 'Ready', status: 'False', lastTransitionTime: 'before' },
          ],
        },
      } as unknown as Pod;
      const computed = computePodStatus({
        pod,
        hostIP: '1.2.3.4',
        podIP: undefined,
        startTime: 't',
        initStatuses: [],
        statuses: states,
        sandboxReady: true,
        initialized: !uninitialized,
        failure: undefined,
        ended,
        now: 'now',
      });
      assert.equal(computed.phase, phase);
      const condition = (type: string) => computed.conditions?.find((candidate) => candidate.type === type);
      assert.equal(condition('Ready')?.status, ready);
      assert.equal(condition('Ready')?.lastTransitionTime, ready === 'True' ? 'now' : 'before');
      // Others' conditions are left as they are.
      assert.equal(condition('example.com/gate')?.lastTransitionTime, 'before');
      assert.equal(condition('PodScheduled')?.lastTransitionTime, 'before');
    });
  }
});

test('a prober counts successes and failures in a row, and reports changes only', async () => {
  const answers = [false, true, false, false, true, true, true, false, false, false];
  const controller = new AbortController();
  const seen: string[] = [];
  await runProber({
    probe: { periodSeconds: 0.001, failureThreshold: 2, successThreshold: 2 },
    startedAt: 0,
    signal: controller.signal,
    execute: async () => {
      const ok = answers.shift()!;
      if (answers.length === 0) setImmediate(() => controller.abort());
      return { ok, message: ok ? 'fine' : 'bad' };
    },
    onFailure: () => seen.push('failure'),
    onChange: (ok) => seen.push(`is ${ok}`),
  });
  assert.deepEqual(seen.slice(0, 8), [
    'failure',
    'failure',
    'failure',
    'is false',
    'is true',
    'failure',
    'failure',
    'is false',
  ]);
});

test('a folder of files changes all at once, and only when there is a change', async (t) => {
  const folder = folderFor(t);
  const files = (entries: Record<string, string>) =>
    new Map(
      Object.entries(entries).map(([name, text]) => [name, { content: Buffer.from(text), mode: 0o640 }]),
    );
  await writeAtomically(folder, files({ a: '1', 'deep/b': '2' }));
  const [first] = readdirSync(folder).filter((name) => name.startsWith('..2'));
  assert.equal(readFileSync(path.join(folder, 'deep/b'), 'utf8'), '2');
  await writeAtomically(folder, files({ a: '1', 'deep/b': '2' }));
  assert(existsSync(path.join(folder, first!)), 'equal files are not written again');
  await writeAtomically(folder, files({ a: '3', c: '4' }));
  assert.equal(readFileSync(path.join(folder, 'a'), 'utf8'), '3');
  const visible = readdirSync(folder).filter((name) => !name.startsWith('..'));
  assert.deepEqual(visible, ['a', 'c']);
  assert.equal(readdirSync(folder).filter((name) => name.startsWith('..2')).length, 1);
});

test('a log keeps lines, completes them across chunks, is followed, and stays within two files', (t) => {
  const folder = folderFor(t);
  const log = new ContainerLog(path.join(folder, 'log'));
  const followed: (string | undefined)[] = [];
  log.follow((line) => followed.push(line?.text));
  const snowman = Buffer.from('☃ one\n');
  log.append('stdout', snowman.subarray(0, 2));
  log.append('stderr', Buffer.from('other\n'));
  log.append('stdout', snowman.subarray(2));
  log.append('stdout', Buffer.from('two  words\nunfinished'));
  log.end();
  const texts = log.read().map(({ text }) => text);
  assert.deepEqual(texts, ['other', '☃ one', 'two  words', 'unfinished']);
  assert.deepEqual(followed, [...texts, undefined]);
  assert.equal(log.tail(2, 100), 'two  words\nunfinished\n');
  assert.equal(log.tail(2, 5), 'shed\n');

  const large = new ContainerLog(path.join(folder, 'large'));
  const line = Buffer.from(`${'x'.repeat(1023)}\n`.repeat(1024));
  for (let written = 0; written < 25; written++) large.append('stdout', line);
  large.end();
  const kept = large.read().length;
  assert(kept >= 9 * 1024 && kept <= 20 * 1024, `${kept} lines`);
  assert.deepEqual(readdirSync(folder).sort(), ['large', 'large.old', 'log']);
});

describe('paths where there are no mount namespaces', () => {
  const mounts = [
    { source: '/data/v', target: '/models', readOnly: true },
    { source: '/data/w', target: '/models/extra', readOnly: false },
  ];
  for (const [word, expected] of [
    ['/models/tiny', '/data/v/tiny'],
    ['--model-path=/models/tiny', '--model-path=/data/v/tiny'],
    ['/models/extra/x', '/data/w/x'],
    ['/usr/bin:/models', '/usr/bin:/data/v'],
    ['cat "/models/a" /models;ls /models/extra', 'cat "/data/v/a" /data/v;ls /data/w'],
    ['/models2/x', '/models2/x'],
    ['my/models/x', 'my/models/x'],
    ['http://host/models', 'http://host/models'],
  ] as const) {
    test(`${word} becomes ${expected}`, () => assert.equal(rewritePaths(word, mounts), expected));
  }
});

for (const kind of ['namespaces', 'user-namespaces', 'plain'] satisfies SandboxKind[]) {
  describe(`a sandbox of kind ${kind}`, () => {
    // What a shell might take for its own.
    const greeting = 'it\'s $HOME `x`  "there"\n&';
    const start = async (t: TestContext, commandLine: string[], more = {}) => {
      const folder = folderFor(t);
      const volume = path.join(folder, 'volume');
      mkdirSync(volume);
      chmodSync(volume, 0o777);
      writeFileSync(path.join(volume, 'file'), 'content');
      const guard = startGuard();
      t.after(() => guard.close());
      const child = await new Sandbox(kind, guard)
        .launch({
          folder: path.join(folder, 'container'),
          hostname: 'pod-name',
          commandLine,
          environment: { PATH: '/usr/bin:/bin', GREETING: greeting },
          workingDirectory: '/',
          mounts: [{ source: volume, target: '/sluice-volume/v', readOnly: true }],
          readOnlyRoot: false,
          user: undefined,
          ...more,
        })
        .catch((error) => {
          // Namespaces are a right that not every machine gives.
          if (kind !== 'plain' && /unshare|permitted|mount:/.test(error.message)) return undefined;
          throw error;
        });
      if (!child) {
        t.skip('this machine does not allow it');
        return undefined;
      }
      let output = '';
      child.stdout.on('data', (chunk) => {
        output += chunk;
      });
      child.stderr.resume();
      return { child, volume, output: () => output };
    };

    test('the program has its environment, its mounts and its exit code', async (t) => {
      const started = await start(t, [
        'sh',
        '-c',
        'printf "%s|" "$GREETING"; cat "$0"; exit 7',
        '/sluice-volume/v/file',
      ]);
      if (!started) return;
      assert.equal(await started.child.exited, 7);
      assert.equal(started.output(), `${greeting}|content`);
      assert(!existsSync('/sluice-volume'), 'a mount point on the machine');
    });

    test('another program runs beside it, and is ended by a timeout', async (t) => {
      const started = await start(t, ['sleep', '100']);
      if (!started) return;
      const { child } = started;
      const listed = await child.exec(
        ['sh', '-c', 'printf "%s|" "$GREETING"; ls "$0"; exit 3', '/sluice-volume/v'],
        30_000,
      );
      assert.deepEqual(listed, { code: 3, output: `${greeting}|file\n` });
      assert.equal((await child.exec(['sleep', '100'], 200)).code, undefined);
      child.signal('SIGKILL');
      assert.equal(await child.exited, 137);
    });

    test('SIGTERM reaches the program, and what it leaves behind ends with it', async (t) => {
      const started = await start(t, [
        'sh',
        '-c',
        'trap "echo bye; exit 5" TERM; sleep 1000 & echo up; wait',
      ]);
      if (!started) return;
      const { child, output } = started;
      while (!output().includes('up')) await new Promise((resolve) => child.stdout.once('data', resolve));
      child.signal('SIGTERM');
      assert.equal(await child.exited, 5);
      assert.equal(output(), 'up\nbye\n');
    });

    test('a program that is killed from outside ends with 137', async (t) => {
      const marker = `98${process.pid}`;
      const started = await start(t, ['sleep', marker]);
      if (!started) return;
      // What starts the program has its words too, until it has become the program.
      const program = async (): Promise<number> => {
        for (;;) {
          const { stdout } = await run('ps', ['-eo', 'pid,args']);
          const found = stdout
            .split('\n')
            .find((text) => /^\d+ sleep (\d+)$/.exec(text.trim())?.[1] === marker);
          if (found !== undefined) return Number.parseInt(found, 10);
        }
      };
      process.kill(await program(), 'SIGKILL');
      assert.equal(await started.child.exited, 137);
    });

    test('a program that does not exist is an error that names it', async (t) => {
      await assert.rejects(
        start(t, ['no-such-program']).then((started) => {
          if (!started) throw new LaunchError('no-such-program: skipped');
        }),
        (error: Error) => error instanceof LaunchError && error.message.includes('no-such-program'),
      );
    });

    if (kind !== 'plain') {
      test('its mounts are read-only where they should be, and its writes are its own', async (t) => {
        const script =
          'touch /sluice-volume/v/new 2>/dev/null || echo refused; echo x > /etc/sluice-test && cat /etc/sluice-test; hostname';
        const started = await start(t, ['sh', '-c', script]);
        if (!started) return;
        assert.equal(await started.child.exited, 0);
        assert.equal(started.output(), 'refused\nx\npod-name\n');
        assert(!existsSync('/etc/sluice-test'));
        assert.deepEqual(readdirSync(started.volume), ['file']);
      });
    }
  });
}

describe('the command line of a node', () => {
  test('has defaults', () => {
    const options = parseNodeOptions([])!;
    assert.equal(options.gpus, 0);
    assert.equal(options.name, os.hostname().toLowerCase());
    assert.deepEqual(Object.keys(options.images), ['sluice-runtime:local']);
  });
  test('takes every flag', () => {
    const { images, ...options } = parseNodeOptions(
      '--kubeconfig k --name n --gpus 8 --label a=b --label c= --runtime-image x:1 --root-dir r --backoff-ms 5'.split(
        ' ',
      ),
    )!;
    assert.deepEqual(options, {
      kubeconfig: 'k',
      name: 'n',
      gpus: 8,
      labels: { a: 'b', c: '' },
      rootDir: 'r',
      backoffBaseMs: 5,
    });
    assert.deepEqual(Object.keys(images), ['x:1']);
  });
  test('asks for help', () => {
    assert.equal(parseNodeOptions(['--help']), undefined);
    for (const flag of [
      '--kubeconfig',
      '--name',
      '--gpus',
      '--label',
      '--runtime-image',
      '--root-dir',
      '--backoff-ms',
    ]) {
      assert(help.includes(`  ${flag} `), flag);
    }
  });
  for (const [args, message] of [
    [['--gpus', '-1'], /--gpus/],
    [['--gpus', '1.5'], /--gpus "1.5": the form is an integer/],
    [['--label', 'x'], /--label "x": the form is KEY=VALUE/],
    [['--gpu', '1'], /--gpu/],
    [['extra'], /extra/],
  ] as const) {
    test(`refuses ${args.join(' ')}`, () => assert.throws(() => parseNodeOptions(args), message));
  }
});
