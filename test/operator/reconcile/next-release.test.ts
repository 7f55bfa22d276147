// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * What an upgrade may not do: the real operator followed by one that renders pods otherwise, with another default image
 * and a CRD with new fields and defaults, on the real API server. By the audit log nothing of a running service is written;
 * then one is edited, and only it moves.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import type { KubeObject } from '../../../operator/kube/client.ts';
import { type AuditEvent, controlPlane, writeVerbs } from '../../support/control-plane.ts';
import { installCrd, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { nextRelease } from '../../support/next-release.ts';
import { startOperator } from '../../support/operator-process.ts';
import { pretendKubelet, readyAndLookedUp } from '../../support/pretend-kubelet.ts';

const changes = {
  'operator/resources/pod-template.ts': [
    ['value: cacheMountPath }, ...hub', "value: cacheMountPath }, { name: 'NEXT', value: '1' }, ...hub"],
    ['periodSeconds: 1, failureThreshold: 2', 'periodSeconds: 2, failureThreshold: 5'],
  ],
  // On the pods, in selectors, on Deployments and records.
  'operator/resources/labels.ts': [
    ['[revisionLabel]: revision }', "[revisionLabel]: revision, 'example.com/next': 'yes' }"],
  ],
  'operator/api/inference-service.ts': [
    [
      'gpuResource: z\n',
      "colour: z.string().max(63).exactOptional().describe('New, and shapes pods.'),\n    gpuResource: z\n",
    ],
    [
      'revisionHistoryLimit: z\n      .int()\n      .min(0)\n      .max(100)\n      .exactOptional()',
      "warmupSeconds: z.int().min(0).max(600).default(30).describe('New, with a default.'),\n    revisionHistoryLimit: z\n      .int()\n      .min(0)\n      .max(100)\n      .default(7)",
    ],
  ],
  'operator/api/field-effects.ts': [
    ["suspend: 'in place',", "suspend: 'in place',\n  colour: 'new revision',\n  warmupSeconds: 'policy',"],
  ],
} as const;

const kinds = ['deployments', 'replicaSets', 'controllerRevisions', 'services', 'pods'] as const;

/** All that a service has, by the version of each object: whatever is written changes it. */
async function versions(services: readonly ServiceUnderTest[]): Promise<Record<string, unknown>> {
  const lists = await Promise.all(
    services.flatMap((service) => kinds.map(async (kind) => await service.children(kind))),
  );
  return Object.fromEntries(
    lists
      .flat()
      .map(({ kind, metadata }) => [`${kind}/${metadata.name}`, [metadata.uid, metadata.resourceVersion]]),
  );
}

const written = ({ verb, objectRef }: AuditEvent): string =>
  `${verb} ${objectRef?.resource}${objectRef?.subresource ? `/${objectRef.subresource}` : ''} ${objectRef?.name}`;

test('an operator that renders otherwise writes nothing of what runs; then one service is edited, and only it moves', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const { client } = plane;
  const namespace = await plane.namespace(t);
  await installCrd(client);
  pretendKubelet(t, client, namespace, readyAndLookedUp());
  const first = await startOperator(t, plane.kubeconfig, ['--runtime-image=sluice-runtime:1']);
  const specs: Record<string, object> = {
    plain: minimalSpec,
    // With a PodDisruptionBudget, a field below which the new default falls, and pods of the author's own shape.
    several: {
      ...minimalSpec,
      replicas: 2,
      rollout: { maxSurge: 2 },
      template: { metadata: { labels: { a: 'b' } } },
    },
    'looked-up': { model: { path: 'example/tiny', revision: 'main' } },
    edited: minimalSpec,
    off: { ...minimalSpec, suspend: true },
  };
  const services: ServiceUnderTest[] = [];
  for (const [name, spec] of Object.entries(specs))
    services.push(await ServiceUnderTest.create(client, namespace, name, spec));
  for (const service of services) await service.ready();
  await first.idle();
  const before = await versions(services);

  const tree = nextRelease(t, changes);
  const { inferenceServiceCrd } = await import(pathToFileURL(path.join(tree, 'operator/api/crd.ts')).href);
  const since = await plane.auditMark();
  // The definitions come first, while the old operator still works.
  await installCrd(client, inferenceServiceCrd());
  await first.idle();
  await first.end();
  const second = await startOperator(
    t,
    plane.kubeconfig,
    ['--runtime-image=sluice-runtime:2'],
    path.join(tree, 'operator/cli/sluice-operator.ts'),
  );
  await second.idle();
  for (const service of services) await service.ready();

  assert.deepEqual(await versions(services), before, 'nothing was written');
  const byOperator = async (from: number): Promise<AuditEvent[]> =>
    (await plane.auditEvents({ verbs: writeVerbs, since: from })).filter(
      ({ userAgent, objectRef }) => userAgent === 'sluice-operator' && objectRef?.resource !== 'leases',
    );
  assert.deepEqual((await byOperator(since)).map(written), []);
  const read = (await services[0]!.get()).spec;
  assert.deepEqual(
    [read.warmupSeconds, read.revisionHistoryLimit],
    [30, 7],
    'the defaults are there to be read',
  );

  const edit = await plane.auditMark();
  const edited = services.find(({ name }) => name === 'edited')!;
  await edited.edit({ model: { servedNames: ['other'] } });
  await edited.ready();
  // A pod more is no other pod.
  const scaled = services.find(({ name }) => name === 'plain')!;
  await scaled.edit({ replicas: 2 });
  await scaled.ready();
  await second.idle();

  const rest = services.filter((service) => service !== edited && service !== scaled);
  for (const [name, version] of Object.entries(await versions(rest)))
    assert.deepEqual(version, before[name], name);
  const touched = new Set((await byOperator(edit)).map(({ objectRef }) => serviceOf(objectRef?.name ?? '')));
  assert.deepEqual([...touched].sort(), ['edited', 'plain']);
  const { containers, labels } = templateOf(await edited.deployment());
  assert.equal(containers[0].image, 'sluice-runtime:2');
  assert.ok(containers[0].env.some((each: any) => each.name === 'NEXT'));
  assert.equal(containers[0].readinessProbe.failureThreshold, 5);
  assert.equal(labels['example.com/next'], 'yes');
  const old = templateOf(await scaled.deployment());
  assert.equal(old.containers[0].image, 'sluice-runtime:1', 'the pod that is added is like the first');
  const pods = (await scaled.children('pods')).map(({ metadata }) => `Pod/${metadata.name}`);
  assert.equal(pods.filter((name) => name in before).length, 1, 'and the first one stays');
});

/** Children's names begin with their service's. */
const serviceOf = (name: string): string => name.replace(/[-.][0-9a-z]+$/, '');

function templateOf(deployment: KubeObject): { containers: any[]; labels: Record<string, string> } {
  const { metadata, spec } = deployment.spec.template;
  return { containers: spec.containers, labels: metadata.labels };
}
