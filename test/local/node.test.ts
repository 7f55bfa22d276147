/** The process node under a real control plane: what becomes of pods that are bound to it. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, describe, type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { type ProcessNode, startProcessNode } from '../../local/node/process-node.ts';
import { resources } from '../../operator/kube/client.ts';
import { controlPlane } from '../support/control-plane.ts';
import {
  conditionOf,
  containerOf,
  get,
  kubectl,
  Pods,
  program,
  shell,
  untilTrue,
} from '../support/process-pods.ts';

const run = promisify(execFile);
const nodeName = 'node-a';
const serve = `http.createServer((request, response) => response.end('ok')).listen(8000, host);
process.on('SIGTERM', () => process.exit(0));`;

let started: Promise<ProcessNode> | undefined;
after(async () => {
  await (await started)?.stop();
});

async function setup(t: TestContext) {
  const plane = await controlPlane(t, { controllerManager: true });
  started ??= startProcessNode({
    client: plane.client,
    name: nodeName,
    gpus: 4,
    labels: { pool: 'test' },
    authority: plane.authority,
    apiServer: plane.url,
    backoffBaseMs: 300,
  });
  const node = await started;
  return { plane, node, pods: new Pods(plane.client, await plane.namespace(t), nodeName) };
}

describe('process node', { concurrency: 3 }, () => {
  test('the Node object has capacity, labels, a Ready condition and a lease', async (t) => {
    const { plane, node } = await setup(t);
    const object = await plane.client.get(resources.nodes, { name: nodeName });
    assert(object);
    assert.equal(object.status.capacity['nvidia.com/gpu'], '4');
    assert.equal(object.status.allocatable['nvidia.com/gpu'], '4');
    assert.equal(object.metadata.labels?.['kubernetes.io/hostname'], nodeName);
    assert.equal(object.metadata.labels?.pool, 'test');
    assert(object.metadata.labels?.['nvidia.com/gpu.product']);
    assert.equal(
      object.status.conditions.find((condition: { type: string }) => condition.type === 'Ready').status,
      'True',
    );
    assert.deepEqual(object.status.addresses, [{ type: 'InternalIP', address: node.hostIP }]);
    const lease = await plane.client.get(resources.leases, { namespace: 'kube-node-lease', name: nodeName });
    assert.equal(lease?.spec.holderIdentity, nodeName);
  });

  test('a pod starts its init containers in order, becomes ready, answers, and is gone after deletion', async (t) => {
    const { pods } = await setup(t);
    const shared = { volumeMounts: [{ name: 'scratch', mountPath: '/scratch' }] };
    await pods.create('whole', {
      volumes: [{ name: 'scratch', emptyDir: {} }],
      initContainers: [
        shell('first', 'echo first >> /scratch/order', shared),
        shell('second', 'echo second >> /scratch/order', shared),
        program(
          'sidecar',
          `${serve.replace('8000', '8001')} fs.appendFileSync('/scratch/order', 'sidecar\\n');`,
          {
            ...shared,
            restartPolicy: 'Always',
            startupProbe: { tcpSocket: { port: 8001 }, periodSeconds: 1, failureThreshold: 30 },
          },
        ),
      ],
      containers: [
        program(
          'main',
          `http.createServer((request, response) => response.end(fs.readFileSync('/scratch/order'))).listen(8000, host);`,
          {
            ...shared,
            ports: [{ name: 'http', containerPort: 8000 }],
            readinessProbe: { httpGet: { port: 'http' }, periodSeconds: 1 },
          },
        ),
      ],
    });
    const pod = await pods.untilReady('whole');
    assert.equal(pod.status?.phase, 'Running');
    assert.equal(await get(`http://${pod.status?.podIP}:8000/`), 'first\nsecond\nsidecar\n');
    for (const type of ['PodReadyToStartContainers', 'Initialized', 'ContainersReady', 'PodScheduled']) {
      assert.equal(conditionOf(pod, type), 'True', type);
    }
    for (const name of ['first', 'second']) {
      const { state, ready } = containerOf(pod, name);
      assert('terminated' in state && state.terminated.exitCode === 0 && ready, name);
    }
    assert.equal(containerOf(pod, 'sidecar').started, true);
    await pods.events('whole', (events) =>
      ['Pulled', 'Created', 'Started'].every((reason) => events.some((event) => event.reason === reason)),
    );
    await pods.remove('whole');
    await pods.untilGone('whole');
    const { stdout } = await run('ip', ['address', 'show', 'dev', 'lo']);
    assert(!stdout.includes(`${pod.status?.podIP}/32`), 'the address is still there');
  });

  test('environments: expansion, ConfigMaps, Secrets, the downward API', async (t) => {
    const { pods, node } = await setup(t);
    await pods.put(resources.configMaps, 'settings', { data: { COLOUR: 'green', 'not-a-name': 'x' } });
    await pods.put(resources.secrets, 'keys', { stringData: { token: 'secret' } });
    await pods.create(
      'environment',
      {
        restartPolicy: 'Never',
        containers: [
          program(
            'main',
            `fs.writeFileSync('/dev/termination-log', JSON.stringify({...process.env, argument: process.argv[1]}));`,
            {
              resources: { limits: { memory: '100Mi' }, requests: { cpu: '10m', memory: '50Mi' } },
              envFrom: [
                { configMapRef: { name: 'settings' }, prefix: 'P_' },
                { secretRef: { name: 'absent', optional: true } },
              ],
              env: [
                { name: 'A', value: 'one' },
                { name: 'B', value: '$(A)-$(P_COLOUR)-$(MISSING)-$$(A)' },
                { name: 'TOKEN', valueFrom: { secretKeyRef: { name: 'keys', key: 'token' } } },
                {
                  name: 'NONE',
                  valueFrom: { configMapKeyRef: { name: 'settings', key: 'no', optional: true } },
                },
                { name: 'POD', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } },
                { name: 'IP', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } },
                { name: 'HOST_IP', valueFrom: { fieldRef: { fieldPath: 'status.hostIP' } } },
                { name: 'APP', valueFrom: { fieldRef: { fieldPath: "metadata.labels['app']" } } },
                {
                  name: 'LIMIT',
                  valueFrom: { resourceFieldRef: { resource: 'limits.memory', divisor: '1Mi' } },
                },
                { name: 'CPU', valueFrom: { resourceFieldRef: { resource: 'requests.cpu', divisor: '1m' } } },
              ],
            },
          ),
        ].map((container) => ({ ...container, args: [...container.args!, '$(B)'] })),
      },
      { labels: { app: 'demo' } },
    );
    const pod = await pods.untilPhase('environment', 'Succeeded');
    const { state } = containerOf(pod, 'main');
    assert('terminated' in state);
    const seen = JSON.parse(state.terminated.message!);
    const expected = {
      A: 'one',
      B: 'one-green-$(MISSING)-$(A)',
      'P_not-a-name': 'x',
      TOKEN: 'secret',
      POD: 'environment',
      IP: pod.status?.podIP,
      SLUICE_HOST: pod.status?.podIP,
      HOST_IP: node.hostIP,
      APP: 'demo',
      LIMIT: '100',
      CPU: '10',
      HOSTNAME: 'environment',
      argument: 'one-green-$(MISSING)-$(A)',
    };
    for (const [name, value] of Object.entries(expected)) assert.equal(seen[name], value, name);
    assert(!('NONE' in seen));
    assert(!('NVIDIA_VISIBLE_DEVICES' in seen));
    assert(!('SLUICE_DEVICES' in seen));
  });

  test('volumes show their sources at their mount paths, follow them, and leave nothing on the machine', async (t) => {
    const { pods } = await setup(t);
    const folder = mkdtempSync(path.join(os.tmpdir(), 'volumes-'));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    writeFileSync(path.join(folder, 'weights'), 'bytes');
    const volumeName = `tiny-${pods.namespace}`;
    await pods.put(resources.persistentVolumes, volumeName, {
      spec: {
        capacity: { storage: '1Gi' },
        accessModes: ['ReadOnlyMany'],
        storageClassName: '',
        hostPath: { path: folder },
      },
    });
    t.after(() => pods.client.remove(resources.persistentVolumes, { name: volumeName }));
    await pods.put(resources.persistentVolumeClaims, 'models', {
      spec: {
        accessModes: ['ReadOnlyMany'],
        storageClassName: '',
        volumeName,
        resources: { requests: { storage: '1Gi' } },
      },
    });
    await pods.put(resources.configMaps, 'config', { data: { 'a.txt': 'before', 'b.txt': 'b' } });
    await pods.put(resources.secrets, 'secret', { stringData: { key: 'k' } });
    const report = `http.createServer((request, response) => {
      const read = (file) => { try { return fs.readFileSync(file, 'utf8') } catch (error) { return error.code } };
      const write = (file) => { try { fs.writeFileSync(file, 'x'); return 'written' } catch (error) { return error.code } };
      response.end(JSON.stringify({
        config: read('/etc/sluice-test/a.txt'), single: read('/srv/sluice-test/one'),
        mode: (fs.statSync('/var/sluice-test/deep/k').mode & 0o777).toString(8), secret: read('/var/sluice-test/deep/k'),
        model: read('/models/weights'), modelWrite: write('/models/new'), configWrite: write('/etc/sluice-test/new'),
        host: read('/host/weights'), hostWrite: write('/host/new'),
        scratch: write('/scratch-sluice-test/x'), root: write('/sluice-test-root'), tmp: write('/tmp/sluice-test-tmp'),
        labels: read('/pod-info/labels'), token: read('/var/run/secrets/kubernetes.io/serviceaccount/token').split('.').length,
        ca: read('/var/run/secrets/kubernetes.io/serviceaccount/ca.crt').slice(0, 10),
        namespace: read('/var/run/secrets/kubernetes.io/serviceaccount/namespace'),
      }));
    }).listen(8000, host)`;
    await pods.create(
      'volumes',
      {
        volumes: [
          { name: 'config', configMap: { name: 'config', items: [{ key: 'a.txt', path: 'a.txt' }] } },
          { name: 'whole', configMap: { name: 'config' } },
          {
            name: 'secret',
            secret: { secretName: 'secret', defaultMode: 0o440, items: [{ key: 'key', path: 'deep/k' }] },
          },
          { name: 'models', persistentVolumeClaim: { claimName: 'models', readOnly: true } },
          { name: 'host', hostPath: { path: folder, type: 'Directory' } },
          { name: 'scratch', emptyDir: {} },
          { name: 'none', configMap: { name: 'absent', optional: true } },
          {
            name: 'info',
            downwardAPI: { items: [{ path: 'labels', fieldRef: { fieldPath: 'metadata.labels' } }] },
          },
        ],
        containers: [
          program('main', report, {
            volumeMounts: [
              { name: 'config', mountPath: '/etc/sluice-test' },
              { name: 'whole', mountPath: '/srv/sluice-test/one', subPath: 'b.txt' },
              { name: 'secret', mountPath: '/var/sluice-test' },
              { name: 'models', mountPath: '/models' },
              { name: 'host', mountPath: '/host', readOnly: true },
              { name: 'scratch', mountPath: '/scratch-sluice-test' },
              { name: 'none', mountPath: '/none' },
              { name: 'info', mountPath: '/pod-info' },
            ],
            readinessProbe: { httpGet: { port: 8000 }, periodSeconds: 1 },
          }),
        ],
      },
      { labels: { app: 'one' } },
    );
    const pod = await pods.untilReady('volumes');
    const look = async () => JSON.parse(await get(`http://${pod.status?.podIP}:8000/`));
    assert.deepEqual(await look(), {
      config: 'before',
      single: 'b',
      mode: '440',
      secret: 'k',
      model: 'bytes',
      modelWrite: 'EROFS',
      configWrite: 'EROFS',
      host: 'bytes',
      hostWrite: 'EROFS',
      scratch: 'written',
      root: 'written',
      tmp: 'written',
      labels: 'app="one"',
      token: 3,
      ca: '-----BEGIN',
      namespace: pods.namespace,
    });
    await pods.put(resources.configMaps, 'config', { data: { 'a.txt': 'after', 'b.txt': 'b' } });
    await pods.client.mergePatch(
      resources.pods,
      { namespace: pods.namespace, name: 'volumes' },
      { metadata: { labels: { app: 'two' } } },
    );
    await untilTrue('the volume follows its ConfigMap', async () => (await look()).config === 'after');
    await untilTrue('the volume follows the labels', async () => (await look()).labels === 'app="two"');
    await pods.remove('volumes', 1);
    await pods.untilGone('volumes');
    for (const file of [
      '/models',
      '/host',
      '/sluice-test-root',
      '/tmp/sluice-test-tmp',
      '/etc/sluice-test',
    ]) {
      assert(!existsSync(file), `${file} is on the machine`);
    }
    assert.deepEqual(readdirSync(folder), ['weights']);
  });

  test('a pod whose ConfigMaps are missing waits, and starts when they come', async (t) => {
    const { pods } = await setup(t);
    await pods.create('waits', {
      volumes: [{ name: 'v', configMap: { name: 'late-volume' } }],
      containers: [
        shell('main', 'test "$X" = 1 && test -f /v/f && exec sleep 1000', {
          volumeMounts: [{ name: 'v', mountPath: '/v' }],
          env: [{ name: 'X', valueFrom: { configMapKeyRef: { name: 'late-env', key: 'x' } } }],
        }),
      ],
    });
    await pods.events('waits', (events) =>
      events.some(({ reason, message }) => reason === 'FailedMount' && message?.includes('late-volume')),
    );
    await pods.put(resources.configMaps, 'late-volume', { data: { f: '' } });
    const pod = await pods.until('waits', 'waiting for its environment', ({ status }) =>
      status?.containerStatuses?.some(
        ({ state }) => 'waiting' in state && state.waiting.reason === 'CreateContainerConfigError',
      ),
    );
    const { state } = containerOf(pod, 'main');
    assert('waiting' in state);
    assert.equal(state.waiting.message, 'configmap "late-env" not found');
    await pods.put(resources.configMaps, 'late-env', { data: { x: '1' } });
    await pods.untilReady('waits');
    await pods.remove('waits', 1);
    await pods.untilGone('waits');
  });

  test('a failing liveness probe restarts a container; the others stay', async (t) => {
    const { pods } = await setup(t);
    await pods.create('liveness', {
      containers: [
        program(
          'sick',
          `let healthy = 2; http.createServer((request, response) => {
            response.statusCode = request.headers['x-who'] === 'probe' && healthy-- > 0 ? 200 : 500; response.end();
          }).listen(8000, host); process.on('SIGTERM', () => process.exit(7));`,
          {
            livenessProbe: {
              httpGet: { path: '/x', port: 8000, httpHeaders: [{ name: 'X-Who', value: 'probe' }] },
              periodSeconds: 1,
              failureThreshold: 2,
              initialDelaySeconds: 1,
            },
          },
        ),
        program('well', 'setInterval(() => {}, 1000)'),
      ],
    });
    const pod = await pods.until('liveness', 'restarted', (current) => {
      const [status] = current.status?.containerStatuses ?? [];
      return status && status.restartCount > 0 && 'running' in status.state;
    });
    const { lastState } = containerOf(pod, 'sick');
    assert('terminated' in lastState);
    assert.equal(lastState.terminated?.exitCode, 7);
    assert.equal(containerOf(pod, 'well').restartCount, 0);
    await pods.events('liveness', (events) =>
      events.some(
        ({ reason, message }) =>
          reason === 'Unhealthy' &&
          message === 'Liveness probe failed: HTTP probe failed with statuscode: 500',
      ),
    );
    await pods.remove('liveness', 1);
    await pods.untilGone('liveness');
  });

  test('readiness follows its probe, and waits for the startup probe', async (t) => {
    const { pods } = await setup(t);
    const scratch = { volumeMounts: [{ name: 's', mountPath: '/s' }] };
    await pods.create('readiness', {
      volumes: [{ name: 's', emptyDir: {} }],
      containers: [
        program(
          'main',
          `http.createServer((request, response) => {
            if (request.url === '/start') fs.writeFileSync('/s/started', '');
            if (request.url === '/off') fs.rmSync('/s/ready');
            if (request.url === '/on') fs.writeFileSync('/s/ready', '');
            response.end();
          }).listen(8000, host);`,
          {
            ...scratch,
            startupProbe: {
              exec: { command: ['test', '-f', '/s/started'] },
              periodSeconds: 1,
              failureThreshold: 100,
            },
            readinessProbe: {
              exec: { command: ['test', '-f', '/s/ready'] },
              periodSeconds: 1,
              failureThreshold: 1,
            },
          },
        ),
      ],
    });
    const pod = await pods.until('readiness', 'running', ({ status }) => status?.phase === 'Running');
    assert.equal(containerOf(pod, 'main').started, false);
    const ask = (what: string) => get(`http://${pod.status?.podIP}:8000/${what}`);
    await untilTrue('the server answers', () =>
      ask('on').then(
        () => true,
        () => false,
      ),
    );
    assert.equal(conditionOf((await pods.get('readiness'))!, 'Ready'), 'False');
    await ask('start');
    assert.equal(containerOf(await pods.untilReady('readiness'), 'main').started, true);
    await ask('off');
    await pods.until('readiness', 'not ready', (current) => conditionOf(current, 'Ready') === 'False');
    await ask('on');
    await pods.untilReady('readiness');
    await pods.remove('readiness', 1);
    await pods.untilGone('readiness');
  });

  test('a crashing container backs off, and says how it ended', async (t) => {
    const { pods } = await setup(t);
    await pods.create('crash', {
      containers: [
        shell('main', 'echo starting; echo "the last line" >&2; exit 3', {
          terminationMessagePolicy: 'FallbackToLogsOnError',
        }),
      ],
    });
    const pod = await pods.until('crash', 'in CrashLoopBackOff after two restarts', ({ status }) => {
      const [main] = status?.containerStatuses ?? [];
      return (
        main &&
        main.restartCount >= 2 &&
        'waiting' in main.state &&
        main.state.waiting.reason === 'CrashLoopBackOff'
      );
    });
    assert.equal(pod.status?.phase, 'Running');
    const { lastState, state, ready } = containerOf(pod, 'main');
    assert('waiting' in state);
    assert.match(state.waiting.message!, /^back-off \S+ restarting failed container=main pod=crash_/);
    assert('terminated' in lastState);
    assert.equal(lastState.terminated?.exitCode, 3);
    assert.equal(lastState.terminated?.reason, 'Error');
    assert.equal(lastState.terminated?.message?.split('\n').sort().join('|'), '|starting|the last line');
    assert.equal(ready, false);
    await pods.events('crash', (events) => events.some(({ reason }) => reason === 'BackOff'));
    await pods.remove('crash');
    await pods.untilGone('crash');
  });

  const endings = [
    { name: 'succeeds', policy: 'Never', script: 'exit 0', phase: 'Succeeded', exitCode: 0 },
    { name: 'fails', policy: 'Never', script: 'exit 4', phase: 'Failed', exitCode: 4 },
    {
      name: 'is retried until it succeeds',
      policy: 'OnFailure',
      script: 'test -f /s/again || { touch /s/again; exit 1; }',
      phase: 'Succeeded',
      exitCode: 0,
    },
    // The first process of a pid namespace, as in any container: abort's second try is an illegal instruction.
    { name: 'dies of a signal', policy: 'Never', script: undefined, phase: 'Failed', exitCode: 139 },
  ] as const;
  for (const [index, { name, policy, script, phase, exitCode }] of endings.entries()) {
    test(`a pod with restartPolicy ${policy} that ${name} is ${phase}`, async (t) => {
      const { pods } = await setup(t);
      await pods.create(`ending-${index}`, {
        restartPolicy: policy,
        volumes: [{ name: 's', emptyDir: {} }],
        containers: [
          script === undefined
            ? program('main', 'process.abort()', { volumeMounts: [{ name: 's', mountPath: '/s' }] })
            : shell('main', script, { volumeMounts: [{ name: 's', mountPath: '/s' }] }),
        ],
      });
      const pod = await pods.untilPhase(`ending-${index}`, phase);
      const { state } = containerOf(pod, 'main');
      assert('terminated' in state);
      assert.equal(state.terminated.exitCode, exitCode);
      assert.equal(conditionOf(pod, 'Ready'), 'False');
    });
  }

  test('deletion runs preStop, sends SIGTERM, and kills after the grace', async (t) => {
    const { pods, plane } = await setup(t);
    const mark = await plane.auditMark();
    const folder = mkdtempSync(path.join(os.tmpdir(), 'prestop-'));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const log = `const say = (text) => fs.appendFileSync('/out/' + process.env.ME, text + '\\n');`;
    const mount = { volumeMounts: [{ name: 'out', mountPath: '/out' }] };
    await pods.create('stops', {
      terminationGracePeriodSeconds: 4,
      volumes: [{ name: 'out', hostPath: { path: folder } }],
      containers: [
        program(
          'polite',
          `${log} process.on('SIGTERM', () => { say('term'); process.exit(0); }); say('up'); setInterval(() => {}, 1000);`,
          {
            ...mount,
            env: [{ name: 'ME', value: 'polite' }],
            lifecycle: {
              preStop: {
                exec: {
                  command: ['sh', '-c', 'echo hook >> /out/polite; sleep 1; echo after >> /out/polite'],
                },
              },
            },
            readinessProbe: { exec: { command: ['test', '-f', '/out/polite'] }, periodSeconds: 1 },
          },
        ),
        program(
          'deaf',
          `${log} process.on('SIGTERM', () => say('term')); say('up'); setInterval(() => {}, 1000);`,
          {
            ...mount,
            env: [{ name: 'ME', value: 'deaf' }],
            lifecycle: { preStop: { sleep: { seconds: 1 } } },
            readinessProbe: { exec: { command: ['test', '-f', '/out/deaf'] }, periodSeconds: 1 },
          },
        ),
      ],
    });
    await pods.untilReady('stops');
    await pods.remove('stops');
    await pods.untilGone('stops');
    const { stdout } = await run('sh', ['-c', 'cat polite; echo -; cat deaf'], { cwd: folder });
    assert.equal(stdout, 'up\nhook\nafter\nterm\n-\nup\nterm\n');
    // The last status before the final deletion, as the API server's log has it.
    const writes = await plane.auditEvents({ namespace: pods.namespace, name: 'stops', since: mark });
    const final = writes.filter(({ verb }) => verb === 'delete').at(-1);
    assert.equal(final?.responseStatus?.code, 200);
    assert(writes.some(({ objectRef, verb }) => verb === 'patch' && objectRef?.subresource === 'status'));
  });

  test('GPU ids are exclusive, and come back when their pod is gone', async (t) => {
    const { pods } = await setup(t);
    const gpuPod = (name: string, count: number) =>
      pods.create(name, {
        containers: [
          program(
            'main',
            `fs.writeFileSync('/dev/termination-log', ''); print([process.env.NVIDIA_VISIBLE_DEVICES, process.env.SLUICE_DEVICES]); ${serve}`,
            {
              resources: { limits: { 'nvidia.com/gpu': String(count) } },
              readinessProbe: { tcpSocket: { port: 8000 }, periodSeconds: 1 },
            },
          ),
          program(
            'without',
            'print([process.env.NVIDIA_VISIBLE_DEVICES ?? null]); setInterval(() => {}, 1000)',
          ),
        ],
      });
    const { plane } = await setup(t);
    const seen = async (name: string, container: string) =>
      JSON.parse(await kubectl(plane, '-n', pods.namespace, 'logs', name, '-c', container));
    await gpuPod('three', 3);
    await gpuPod('one', 1);
    await Promise.all([pods.untilReady('three'), pods.untilReady('one')]);
    const [three, one] = [await seen('three', 'main'), await seen('one', 'main')];
    assert.equal(three[1], 'cpu:0,1,2');
    assert.equal(one[1], 'cpu:0');
    const ids = [...three[0].split(','), ...one[0].split(',')];
    assert.equal(new Set(ids).size, 4);
    assert.deepEqual(await seen('one', 'without'), [null]);

    await gpuPod('too-many', 1);
    const refused = await pods.untilPhase('too-many', 'Failed');
    assert.equal(refused.status?.reason, 'UnexpectedAdmissionError');
    assert.match(refused.status?.message ?? '', /nvidia\.com\/gpu\. Requested: 1, Available: 0/);

    await pods.remove('three', 1);
    await pods.untilGone('three');
    await gpuPod('again', 2);
    await pods.untilReady('again');
    const again = (await seen('again', 'main'))[0].split(',');
    assert(again.every((id: string) => ids.includes(id) && id !== one[0]));
    await Promise.all(['one', 'again', 'too-many'].map((name) => pods.remove(name, 1)));
    await Promise.all(['one', 'again', 'too-many'].map((name) => pods.untilGone(name)));
  });

  test('kubectl logs shows output, follows it, cuts it, and knows the run before', async (t) => {
    const { pods, plane } = await setup(t);
    await pods.create('talks', {
      volumes: [{ name: 's', emptyDir: {} }],
      containers: [
        shell(
          'main',
          'if test -f /s/x; then for i in 1 2 3; do echo line $i; done; until test -f /s/go; do sleep 0.1; done; echo end; sleep 1000; ' +
            'else touch /s/x; echo earlier; exit 1; fi',
          { volumeMounts: [{ name: 's', mountPath: '/s' }] },
        ),
        shell('other', 'sleep 2; touch /s/go; sleep 1000', {
          volumeMounts: [{ name: 's', mountPath: '/s' }],
        }),
      ],
    });
    await pods.until('talks', 'running again', ({ status }) => {
      const [main] = status?.containerStatuses ?? [];
      return main && main.restartCount === 1 && 'running' in main.state;
    });
    const logs = (...args: string[]) =>
      kubectl(plane, '-n', pods.namespace, 'logs', 'talks', '-c', 'main', ...args);
    await untilTrue('all lines are there', async () => (await logs()).endsWith('end\n'));
    assert.equal(await logs(), 'line 1\nline 2\nline 3\nend\n');
    assert.equal(await logs('--tail=2'), 'line 3\nend\n');
    assert.equal(await logs('--previous'), 'earlier\n');
    assert.match(await logs('--timestamps', '--tail=1'), /^\d{4}-\d\d-\d\dT\S+Z end\n$/);
    const following = logs('-f');
    await pods.remove('talks', 1);
    assert.equal(await following, 'line 1\nline 2\nline 3\nend\n');
    await assert.rejects(kubectl(plane, '-n', pods.namespace, 'logs', 'absent'), /not found/);
    await pods.untilGone('talks');
  });

  test('a container whose image is edited is restarted with the new one', async (t) => {
    const { pods } = await setup(t);
    await pods.create('edited', { containers: [program('main', serve)] });
    const { spec } = await pods.untilReady('edited');
    const containers = spec.containers.map((container) => ({
      ...container,
      image: 'sluice.dev/node:latest',
    }));
    await pods.client.mergePatch(
      resources.pods,
      { namespace: pods.namespace, name: 'edited' },
      { spec: { containers } },
    );
    const pod = await pods.until('edited', 'restarted', ({ status }) => {
      const [main] = status?.containerStatuses ?? [];
      return main?.restartCount === 1 && main.ready;
    });
    assert.equal(containerOf(pod, 'main').image, 'sluice.dev/node:latest');
    await pods.remove('edited', 1);
    await pods.untilGone('edited');
  });

  test('kubectl exec is declined in words', async (t) => {
    const { pods, plane } = await setup(t);
    await pods.create('closed', { containers: [program('main', serve)] });
    await pods.untilReady('closed');
    await assert.rejects(
      kubectl(plane, '-n', pods.namespace, 'exec', 'closed', '--', 'true'),
      /a process node serves logs only/,
    );
    await pods.remove('closed', 1);
    await pods.untilGone('closed');
  });

  test('an image that is not in the table cannot be pulled', async (t) => {
    const { pods } = await setup(t);
    await pods.create('unknown', { containers: [{ name: 'main', image: 'registry.example/none:1' }] });
    const pod = await pods.until('unknown', 'backing off', ({ status }) =>
      status?.containerStatuses?.some(
        ({ state }) => 'waiting' in state && state.waiting.reason === 'ImagePullBackOff',
      ),
    );
    assert.equal(pod.status?.phase, 'Pending');
    await pods.events('unknown', (events) => events.some(({ message }) => message === 'Error: ErrImagePull'));
    await pods.remove('unknown');
    await pods.untilGone('unknown');
  });

  const unstartable = [
    {
      name: 'a program that does not exist',
      container: { name: 'main', image: 'sluice.dev/shell', command: ['/no/such/program'] },
      reason: 'StartError',
      message: /\/no\/such\/program/,
    },
    {
      name: 'a program that is not in PATH',
      container: { name: 'main', image: 'sluice.dev/shell', command: ['no-such-program'] },
      reason: 'StartError',
      message: /no-such-program.*PATH/,
    },
  ];
  for (const [index, { name, container, reason, message }] of unstartable.entries()) {
    test(`${name} is named in the container's state`, async (t) => {
      const { pods } = await setup(t);
      await pods.create(`cannot-${index}`, { restartPolicy: 'Never', containers: [container] });
      const pod = await pods.untilPhase(`cannot-${index}`, 'Failed');
      const { state } = containerOf(pod, 'main');
      assert('terminated' in state);
      assert.equal(state.terminated.reason, reason);
      assert.match(state.terminated.message ?? '', message);
    });
  }

  test('a field that is not supported fails the pod, and is named', async (t) => {
    const { pods } = await setup(t);
    await pods.create('unsupported', {
      hostAliases: [{ ip: '10.0.0.1', hostnames: ['x'] }],
      containers: [program('main', serve, { livenessProbe: { grpc: { port: 1 } } as never })],
    });
    const pod = await pods.untilPhase('unsupported', 'Failed');
    assert.equal(pod.status?.reason, 'UnsupportedField');
    assert.match(pod.status?.message ?? '', /spec\.hostAliases/);
    assert.match(pod.status?.message ?? '', /spec\.containers\[0\]\.livenessProbe\.grpc/);
  });

  test('isolation that a process cannot have is accepted with one warning', async (t) => {
    const { pods } = await setup(t);
    await pods.create('warned', {
      securityContext: { runAsUser: 4321, fsGroup: 5, seccompProfile: { type: 'RuntimeDefault' } } as never,
      containers: [
        program(
          'main',
          `print([process.getuid(), process.getgid()]); try { fs.writeFileSync('/etc/x', '') } catch (error) { print(error.code) } ${serve}`,
          {
            resources: { limits: { memory: '1Gi', cpu: '1' } },
            securityContext: {
              runAsGroup: 1234,
              readOnlyRootFilesystem: true,
              capabilities: { drop: ['ALL'] },
            } as never,
          },
        ),
      ],
    });
    await pods.untilReady('warned');
    const { plane } = await setup(t);
    await untilTrue('both lines are logged', async () => {
      const text = await kubectl(plane, '-n', pods.namespace, 'logs', 'warned');
      return text === '[4321,1234]\n"EROFS"\n';
    });
    const events = await pods.events('warned', (all) => all.some(({ reason }) => reason === 'NotEnforced'));
    const warnings = events.filter(({ type }) => type === 'Warning');
    assert.equal(warnings.length, 1);
    for (const field of ['limits.memory', 'limits.cpu', 'fsGroup', 'seccompProfile', 'capabilities']) {
      assert(warnings[0]?.message.includes(field), field);
    }
    await pods.remove('warned', 1);
    await pods.untilGone('warned');
  });

  test('a pod that outlives its active deadline is ended', async (t) => {
    const { pods } = await setup(t);
    await pods.create('late', {
      activeDeadlineSeconds: 1,
      containers: [program('main', 'setInterval(() => {}, 1000)')],
      terminationGracePeriodSeconds: 1,
    });
    const pod = await pods.untilPhase('late', 'Failed');
    assert.equal(pod.status?.reason, 'DeadlineExceeded');
  });
});
