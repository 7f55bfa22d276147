// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * The contract with GitOps tools on a real API server: whatever the operator does, the object is as it was applied, so that
 * the next apply, by whichever way, has nothing to change; and the verdicts of both tools on the way of a real rollout.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { stringify } from 'yaml';
import { type KubeObject, resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { judge } from '../../support/gitops-judge.ts';
import { installCrd, manifest, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { crashing, pretendKubelet, ready } from '../../support/pretend-kubelet.ts';

const type = resources.inferenceServices;

test('after each step of a life, an apply by Argo CD, by Flux or by kubectl changes nothing', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  const kubelet = pretendKubelet(t, client, namespace);
  await startOperator(t, plane.kubeconfigFor({ name: 'sluice-operator', groups: ['system:masters'] }), [
    `--watch-namespaces=${namespace}`,
    `--namespace=${namespace}`,
    '--runtime-image=runtime:test',
  ]);
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const kubectl = (...args: string[]) =>
    spawnSync(plane.kubectl, [`--kubeconfig=${plane.kubeconfig}`, `--cache-dir=${folder}/cache`, ...args], {
      encoding: 'utf8',
    });
  const tools = ['argocd-controller', 'kustomize-controller', 'kubectl'] as const;
  const services = tools.map((tool) => new ServiceUnderTest(client, namespace, `by-${tool.split('-')[0]}`));
  const labelled = (name: string, spec: object): KubeObject => {
    const object = manifest(namespace, name, spec);
    return {
      ...object,
      metadata: { ...object.metadata, labels: { 'app.kubernetes.io/instance': 'models' } },
    };
  };
  const fileOf = (object: KubeObject): string => {
    const file = path.join(folder, `${object.metadata.name}.yaml`);
    writeFileSync(file, stringify(object));
    return file;
  };
  const apply = async (object: KubeObject, tool: (typeof tools)[number]): Promise<void> => {
    if (tool !== 'kubectl') await client.apply(type, object, { fieldManager: tool, force: true });
    else assert.equal(kubectl('apply', `--filename=${fileOf(object)}`).status, 0);
  };
  const unchanged = async (object: KubeObject, tool: (typeof tools)[number], when: string): Promise<void> => {
    const live = (await client.get(type, { namespace, name: object.metadata.name }))!;
    if (tool === 'kubectl') {
      const { status, stdout, stderr } = kubectl('diff', `--filename=${fileOf(object)}`);
      assert.equal(status, 0, `${when}: ${stdout}${stderr}`);
    } else {
      const again = await client.apply(type, object, { fieldManager: tool, force: true, dryRun: true });
      assert.equal(again.metadata.generation, live.metadata.generation, when);
      assert.deepEqual([again.spec, again.metadata.labels], [live.spec, live.metadata.labels], when);
    }
    const { replicas, ...spec } = live.spec;
    assert.deepEqual(
      { replicas: 1, ...object.spec },
      { replicas, ...spec },
      `${when}: the spec is what was applied`,
    );
  };

  // What a step is to end in, as Argo CD says it.
  const steps: [when: string, spec: object, look: typeof kubelet.look, argo: string][] = [
    ['the first start', minimalSpec, ready, 'Healthy'],
    ['a new model', { ...minimalSpec, model: { path: '/tiny2' } }, ready, 'Healthy'],
    [
      'a new model, paused',
      { ...minimalSpec, model: { path: '/tiny3' }, rollout: { paused: true } },
      ready,
      'Suspended',
    ],
    ['no longer paused', { ...minimalSpec, model: { path: '/tiny3' } }, ready, 'Healthy'],
    ['suspended', { ...minimalSpec, model: { path: '/tiny3' }, suspend: true }, ready, 'Healthy'],
    ['no longer suspended', { ...minimalSpec, model: { path: '/tiny3' } }, ready, 'Healthy'],
    [
      'a template that is refused',
      {
        ...minimalSpec,
        model: { path: '/tiny3' },
        template: { spec: { containers: [{ name: 'runtime', imagePullPolicy: 'Sometimes' }] } },
      },
      ready,
      'Degraded',
    ],
    ['the template without that', { ...minimalSpec, model: { path: '/tiny3' } }, ready, 'Healthy'],
    [
      'a model that crashes',
      { ...minimalSpec, model: { path: '/bad' } },
      (pod) =>
        pod.spec.containers[0].args.some((arg: string) => arg.endsWith('/bad'))
          ? crashing(1, 'no')(pod)
          : ready(pod),
      'Degraded',
    ],
  ];
  for (const [when, spec, look, argo] of steps) {
    kubelet.look = look;
    for (const [index, tool] of tools.entries()) await apply(labelled(services[index]!.name, spec), tool);
    for (const [index, tool] of tools.entries()) {
      const service = services[index]!;
      await until(`${when}: ${argo}`, async () => judge([await service.get()])[0]!.argo === argo);
      await unchanged(labelled(service.name, spec), tool, `${when}, by ${tool}`);
    }
  }
  // A tool prunes what carries its label and is not in Git.
  for (const service of services)
    for (const kind of ['deployments', 'services', 'controllerRevisions', 'pods'] as const)
      for (const child of await service.children(kind))
        assert.equal(child.metadata.labels?.['app.kubernetes.io/instance'], undefined, child.metadata.name);
});
