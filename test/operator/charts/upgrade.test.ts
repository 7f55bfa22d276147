// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * The charts in the hands of the real Helm: install the version before, upgrade to this one, uninstall. What the operator
 * made for a service is the same object with the same content all the way, and so are the definitions.
 */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { parse, stringify } from 'yaml';
import { type KubeClient, type KubeObject, resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { helm } from '../../support/helm.ts';
import { ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { pretendKubelet } from '../../support/pretend-kubelet.ts';

const charts = path.resolve(import.meta.dirname, '../../../charts');
const system = 'sluice-system';

/** What a release before could do without: its values lack it, and `--reuse-values` keeps them so. */
const newerValues = ['serviceAccount', 'metrics', 'networkPolicy', 'resources', 'affinity'];

/** The charts as an earlier release might have had them: an older version, fewer values, a definition with fewer fields. */
function earlierCharts(t: TestContext): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-charts-'));
  t.after(() => rmSync(folder, { recursive: true }));
  cpSync(charts, folder, { recursive: true });
  for (const chart of ['sluice', 'sluice-crds']) {
    const file = path.join(folder, chart, 'Chart.yaml');
    writeFileSync(
      file,
      stringify({ ...parse(readFileSync(file, 'utf8')), version: '0.0.9', appVersion: '0.0.9' }),
    );
  }
  const values = parse(readFileSync(path.join(folder, 'sluice/values.yaml'), 'utf8'));
  for (const name of newerValues) delete values[name];
  writeFileSync(path.join(folder, 'sluice/values.yaml'), stringify(values));
  rmSync(path.join(folder, 'sluice/values.schema.json'));
  const file = path.join(folder, 'sluice-crds/templates/sluice.dev_inferenceservices.yaml');
  const crd = parse(readFileSync(file, 'utf8'));
  const { spec } = crd.spec.versions[0].schema.openAPIV3Schema.properties;
  for (const field of ['rollout', 'suspend', 'revisionHistoryLimit']) delete spec.properties[field];
  writeFileSync(file, stringify(crd, { lineWidth: 0, aliasDuplicateObjects: false }));
  return folder;
}

/** What must not move: identity and content of everything of the service. */
async function snapshot(client: KubeClient, service: ServiceUnderTest): Promise<unknown> {
  const lists = await Promise.all(
    (['deployments', 'services', 'controllerRevisions', 'replicaSets', 'pods'] as const).map((kind) =>
      service.children(kind),
    ),
  );
  const crd = await client.get(resources.customResourceDefinitions, { name: 'inferenceservices.sluice.dev' });
  const essence = ({ metadata, spec, data }: KubeObject) => ({
    name: metadata.name,
    uid: metadata.uid,
    generation: metadata.generation,
    spec,
    data,
  });
  return {
    crd: crd?.metadata.uid,
    service: essence(await service.get()),
    children: lists.flat().map(essence),
  };
}

test('install the version before, upgrade, uninstall: services, definitions and pods are untouched', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const { client, kubeconfig } = plane;
  const namespace = await plane.namespace(t);
  await client.create(resources.namespaces, {
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: { name: system, labels: { 'pod-security.kubernetes.io/enforce': 'restricted' } },
  });
  const run = (...args: string[]): void => {
    const { code, stderr } = helm(t, [...args, `--namespace=${system}`], kubeconfig);
    assert.equal(code, 0, `helm ${args.join(' ')}: ${stderr}`);
  };
  const earlier = earlierCharts(t);
  run('install', 'sluice-crds', path.join(earlier, 'sluice-crds'));
  run('install', 'sluice', path.join(earlier, 'sluice'));
  await until('the kind is served', async () => {
    const crd = await client.get(resources.customResourceDefinitions, {
      name: 'inferenceservices.sluice.dev',
    });
    return crd?.status?.conditions?.some(
      (each: any) => each.type === 'Established' && each.status === 'True',
    );
  });

  // The operator with the rights that the chart gives it; each release brings another default image.
  const account = plane.kubeconfigFor({
    name: `system:serviceaccount:${system}:sluice`,
    groups: ['system:serviceaccounts', `system:serviceaccounts:${system}`],
  });
  const operate = (tag: string) =>
    startOperator(t, account, [`--namespace=${system}`, `--runtime-image=sluice-runtime:${tag}`]);
  pretendKubelet(t, client, namespace);
  const first = await operate('0.0.9');
  const service = await ServiceUnderTest.create(client, namespace, 'chat');
  await service.ready();
  await first.idle();
  const before = await snapshot(client, service);
  await first.end();

  run('upgrade', 'sluice-crds', path.join(charts, 'sluice-crds'));
  // With the values of the release before, which know nothing of what is new, and then with its own.
  run('upgrade', 'sluice', path.join(charts, 'sluice'), '--reuse-values');
  run('upgrade', 'sluice', path.join(charts, 'sluice'), '--reset-values');
  const second = await operate('0.1.0');
  await second.idle();
  assert.deepEqual(await snapshot(client, service), before, 'after the upgrade');
  await service.edit({ rollout: { maxSurge: 2 } });
  await service.ready();
  await second.idle();
  const edited: any = await snapshot(client, service);
  assert.deepEqual(
    edited.children,
    (before as any).children,
    'a field that the upgrade brought is no restart',
  );
  await second.end();

  run('uninstall', 'sluice');
  run('uninstall', 'sluice-crds');
  assert.deepEqual(await snapshot(client, service), edited, 'after the uninstall');
  const left = await client.list(resources.deployments, { namespace: system });
  assert.deepEqual(left.items, [], 'the operator itself is gone');
  // And back again: the same charts take what is there for theirs.
  run('install', 'sluice-crds', path.join(charts, 'sluice-crds'));
  assert.deepEqual(await snapshot(client, service), edited, 'after another install');
});
