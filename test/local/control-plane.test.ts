/** The control plane as a whole: it serves, it reports its own death, and it leaves nothing behind however it ends. */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { kubernetesVersion } from '../../local/binaries.ts';
import { startControlPlane } from '../../local/control-plane.ts';
import { KubeError, type KubeObject, resources } from '../../operator/kube/client.ts';
import { createKubeClient } from '../../operator/kube/rest-client.ts';
import { controlPlane, writeVerbs } from '../support/control-plane.ts';

const run = promisify(execFile);

async function eventually<T>(
  what: string,
  attempt: () => Promise<T | undefined> | T | undefined,
): Promise<T> {
  for (let tries = 0; tries < 1200; tries++) {
    const result = await attempt();
    if (result !== undefined) return result;
    await sleep(50);
  }
  return assert.fail(`did not happen: ${what}`);
}

/** Programs whose command line names the folder. */
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

const configMap = (namespace: string, name: string): KubeObject => ({
  apiVersion: 'v1',
  kind: 'ConfigMap',
  metadata: { namespace, name },
  data: { key: 'value' },
});

describe('a running control plane', () => {
  test('is the Kubernetes that go.mod pins, and kubectl is of the same version', async (t) => {
    const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
    assert.equal(JSON.parse(await plane.client.getText('/version')).gitVersion, `v${kubernetesVersion}`);
    const { stdout } = await run(plane.kubectl, [
      `--kubeconfig=${plane.kubeconfig}`,
      'version',
      '--output=json',
    ]);
    const versions = JSON.parse(stdout);
    assert.equal(versions.clientVersion.gitVersion, `v${kubernetesVersion}`);
    assert.equal(versions.serverVersion.gitVersion, `v${kubernetesVersion}`);
  });

  test('authenticates users by the certificates it issues and authorizes them by RBAC', async (t) => {
    const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
    const namespace = await plane.namespace(t);
    const user = createKubeClient({ kubeconfig: plane.kubeconfigFor({ name: 'system:someone:else' }) });
    t.after(() => user.close());
    await assert.rejects(user.list(resources.configMaps, { namespace }), (error) => {
      assert.ok(error instanceof KubeError);
      assert.equal(error.status, 403);
      assert.match(error.message, /"system:someone:else"/);
      return true;
    });
    const admin = createKubeClient({
      kubeconfig: plane.kubeconfigFor({ name: 'second', groups: ['other', 'system:masters'] }),
    });
    t.after(() => admin.close());
    await admin.create(resources.configMaps, configMap(namespace, 'allowed'));
    assert.ok(await plane.client.get(resources.configMaps, { namespace, name: 'allowed' }));
  });

  test('runs controllers: a Deployment becomes a pod, which the scheduler cannot place without a node', async (t) => {
    const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
    const namespace = await plane.namespace(t);
    const labels = { app: 'waiting' };
    await plane.client.create(resources.deployments, {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { namespace, name: 'waiting' },
      spec: {
        selector: { matchLabels: labels },
        template: {
          metadata: { labels },
          spec: { containers: [{ name: 'main', image: 'nothing.invalid/image' }] },
        },
      },
    });
    const message = await eventually('the pod is unschedulable', async () => {
      const { items } = await plane.client.list(resources.pods, { namespace });
      const conditions = items[0]?.status?.conditions ?? [];
      return conditions.find((condition: { reason?: string }) => condition.reason === 'Unschedulable')
        ?.message;
    });
    assert.match(message, /no nodes available/);
  });

  test('the audit log tells who wrote what, in order, with the bodies of writes to apps', async (t) => {
    const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
    const namespace = await plane.namespace(t);
    const client = createKubeClient({
      kubeconfig: plane.kubeconfigFor({ name: 'author', groups: ['system:masters'] }),
    });
    t.after(() => client.close());
    const before = await plane.auditMark();
    await client.create(resources.configMaps, configMap(namespace, 'one'));
    await client.mergePatch(resources.configMaps, { namespace, name: 'one' }, { data: { key: 'other' } });
    await client.create(resources.controllerRevisions, {
      apiVersion: 'apps/v1',
      kind: 'ControllerRevision',
      metadata: { namespace, name: 'record' },
      revision: 1,
      data: {},
    });
    await client.get(resources.configMaps, { namespace, name: 'one' });
    await client.remove(resources.configMaps, { namespace, name: 'one' });
    const events = await plane.auditEvents({ since: before, username: 'author', verbs: writeVerbs });
    assert.deepEqual(
      events.map((event) => `${event.verb} ${event.objectRef?.resource}/${event.objectRef?.name}`),
      [
        'create configmaps/one',
        'patch configmaps/one',
        'create controllerrevisions/record',
        'delete configmaps/one',
      ],
    );
    assert.equal(events[2]?.requestObject?.revision, 1);
    assert.equal(events[0]?.requestObject, undefined);
  });
});

describe('the end of a control plane', () => {
  test('stop() ends every program and removes the temporary folder, and may be called twice', async () => {
    const plane = await startControlPlane({ controllerManager: false, scheduler: false });
    assert.equal(programsOf(plane.directory).length > 0, true);
    await plane.stop();
    await plane.stop();
    assert.equal(existsSync(plane.directory), false);
    assert.deepEqual(programsOf(plane.directory), []);
  });

  test('a killed etcd is reported with the end of its log', async () => {
    const plane = await startControlPlane({ controllerManager: false, scheduler: false });
    try {
      plane.processes.etcd!.kill('SIGKILL');
      const error = await plane.failure;
      assert.match(error.message, /^etcd was killed by SIGKILL\. The end of .*etcd\.log:\n/);
    } finally {
      await plane.stop();
    }
    assert.equal(existsSync(plane.directory), false);
  });

  test('a program that ends while starting is reported, the others are ended, a given folder is kept', async () => {
    const directory = mkdtempSync(path.join(os.tmpdir(), 'sluice-broken-'));
    try {
      // etcd wants a folder of this name.
      writeFileSync(path.join(directory, 'etcd'), '');
      await assert.rejects(
        startControlPlane({ directory, controllerManager: false, scheduler: false }),
        /^SluiceError: etcd exited with code 1\. The end of .*etcd\.log:\n.*not a directory/s,
      );
      assert.deepEqual(programsOf(directory), []);
      assert.equal(existsSync(path.join(directory, 'logs', 'etcd.log')), true);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });

  test('nothing is left when the program that started it is killed', async () => {
    const module = path.resolve(import.meta.dirname, '../../local/control-plane.ts');
    const program = `
      const { startControlPlane } = await import(${JSON.stringify(module)});
      const plane = await startControlPlane({ controllerManager: false, scheduler: false });
      console.log(plane.directory);
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [directory] = await once(createInterface({ input: child.stdout }), 'line');
    assert.equal(programsOf(directory).length > 0, true);
    child.kill('SIGKILL');
    await eventually('its programs are gone', () => (programsOf(directory).length === 0 ? true : undefined));
    await eventually('its folder is gone', () => (existsSync(directory) ? undefined : true));
  });
});
