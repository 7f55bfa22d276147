// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * The charts: Helm's own checks, what they render on the real API server, and that the rights they give are those that
 * the operator uses, no fewer and no more.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { inferenceServiceCrd } from '../../../operator/api/crd.ts';
import { OperatorMetrics } from '../../../operator/cli/metrics.ts';
import { leaseName } from '../../../operator/cli/run-operator.ts';
import { loadOperatorConfig } from '../../../operator/config.ts';
import { type KubeObject, type ResourceType, resources } from '../../../operator/kube/client.ts';
import { controlPlane } from '../../support/control-plane.ts';
import { helm, renderChart } from '../../support/helm.ts';
import { installCrd, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { pretendKubelet, readyAndLookedUp } from '../../support/pretend-kubelet.ts';

const rbac = (kind: string, plural: string, namespaced: boolean): ResourceType => ({
  group: 'rbac.authorization.k8s.io',
  version: 'v1',
  kind,
  plural,
  namespaced,
});
const types: Readonly<Record<string, ResourceType>> = {
  ServiceAccount: {
    group: '',
    version: 'v1',
    kind: 'ServiceAccount',
    plural: 'serviceaccounts',
    namespaced: true,
  },
  ClusterRole: rbac('ClusterRole', 'clusterroles', false),
  ClusterRoleBinding: rbac('ClusterRoleBinding', 'clusterrolebindings', false),
  Role: rbac('Role', 'roles', true),
  RoleBinding: rbac('RoleBinding', 'rolebindings', true),
  Service: resources.services,
  Deployment: resources.deployments,
  PodDisruptionBudget: resources.podDisruptionBudgets,
  NetworkPolicy: {
    group: 'networking.k8s.io',
    version: 'v1',
    kind: 'NetworkPolicy',
    plural: 'networkpolicies',
    namespaced: true,
  },
  CustomResourceDefinition: resources.customResourceDefinitions,
};

for (const chart of ['sluice', 'sluice-crds']) {
  test(`helm lint finds nothing in ${chart}`, (t) => {
    const { code, stdout } = helm(t, ['lint', '--strict', chart]);
    assert.equal(code, 0, stdout);
  });
}

const wrongValues: Record<string, [set: string, says: RegExp]> = {
  'negative replicas': ['replicas=-1', /replicas/],
  'an unknown value': ['replica=1', /replica/],
  'an unknown log level': ['logLevel=loud', /logLevel/],
  'no workers': ['workers=0', /workers/],
  'a namespace that can be none': ['watchNamespaces={A_B}', /watchNamespaces/],
  'a port that is none': ['networkPolicy.operator.apiServerPorts={0}', /apiServerPorts/],
};
for (const [name, [set, says]] of Object.entries(wrongValues)) {
  test(`values are refused: ${name}`, (t) => {
    const { code, stderr } = helm(t, ['template', 'sluice', 'sluice', '--set', set]);
    assert.notEqual(code, 0);
    assert.match(stderr, says);
  });
}

test('a Kubernetes that is too old is refused with the version that is needed', (t) => {
  const { code, stderr } = helm(t, ['template', 'sluice', 'sluice', '--kube-version=1.29.4']);
  assert.notEqual(code, 0);
  assert.match(stderr, /Kubernetes v1\.29\.4 is too old: Sluice needs 1\.30 or later/);
});

test('there is a PodDisruptionBudget where there is more than one operator, and PodMonitors where asked for', (t) => {
  const kinds = (...args: string[]) => renderChart(t, 'sluice', args).map((object) => object.kind);
  assert.ok(kinds().includes('PodDisruptionBudget'));
  assert.ok(!kinds('--set=replicas=1').includes('PodDisruptionBudget'));
  const monitors = renderChart(t, 'sluice', ['--set=metrics.podMonitor.enabled=true']).filter(
    (object) => object.kind === 'PodMonitor',
  );
  const ports = monitors.map((object) => object.spec.podMetricsEndpoints[0].port);
  assert.deepEqual(ports, ['metrics', 'http']);
});

test('the dashboards ask for metrics that there are', async (t) => {
  const found = renderChart(t, 'sluice', ['--set=metrics.dashboard.enabled=true']).find(
    (object) => object.kind === 'ConfigMap',
  );
  assert.deepEqual(Object.keys(found!.data).sort(), ['runtime.json', 'sluice.json']);
  const panels = Object.values<string>(found!.data)
    .flatMap((text) => JSON.parse(text).panels)
    .filter((panel) => panel.targets !== undefined);
  const asked = panels
    .flatMap((panel: any) => panel.targets)
    .flatMap(({ expr }: { expr: string }) =>
      [...expr.matchAll(/\bsluice_(?!dev_)\w+/g)].map(([name]) => name),
    );
  const runtime = readFileSync(path.join(import.meta.dirname, '../../../runtime/metrics.ts'), 'utf8');
  const operator = await new OperatorMetrics().text();
  for (const name of asked) {
    const known = name.replace(/_(bucket|sum|count)$/, '');
    assert.ok(runtime.includes(`'${known}'`) || operator.includes(`# TYPE ${known} `), name);
  }
  assert.ok(asked.length >= panels.length);
});

test('models go out as the values say: anywhere, nowhere, by rules', (t) => {
  const policies = (...args: string[]) =>
    renderChart(t, 'sluice', ['--set=networkPolicy.runtime.namespaces={a}', ...args])
      .filter(({ kind, metadata }) => kind === 'NetworkPolicy' && metadata.namespace === 'a')
      .map(({ spec }) => [spec.policyTypes, spec.egress]);
  const requests = [['Ingress'], undefined];
  const rules = [{ ports: [{ port: 443 }] }];
  const by = (egress: unknown) => `--set-json=networkPolicy.runtime.egress=${JSON.stringify(egress)}`;
  assert.deepEqual(policies(), [requests]);
  assert.deepEqual(policies(by([])), [requests, [['Egress'], []]]);
  assert.deepEqual(policies(by(rules)), [requests, [['Egress'], rules]]);
});

test('the chart of definitions holds the CRD as it is generated, kept on uninstall', (t) => {
  const [crd, ...rest] = renderChart(t, 'sluice-crds');
  assert.deepEqual(rest, []);
  assert.equal(crd!.metadata.annotations!['helm.sh/resource-policy'], 'keep');
  assert.deepEqual(crd!.spec, JSON.parse(JSON.stringify(inferenceServiceCrd().spec)));
});

const renderings: Record<string, string[]> = {
  'as it comes': [],
  'one replica': ['--set=replicas=1'],
  'network policies for models': [
    '--set=networkPolicy.runtime.namespaces={default,kube-public},networkPolicy.operator.apiServerPorts={443,6443}',
    '--set=networkPolicy.runtime.from[0].namespaceSelector.matchLabels.team=a',
    '--set=networkPolicy.operator.from[0].podSelector.matchLabels.app=prometheus',
  ],
  'network policies for models that go nowhere': [
    '--set=networkPolicy.runtime.namespaces={default}',
    '--set-json=networkPolicy.runtime.egress=[]',
  ],
  'network policies for models of a hub': [
    '--set=networkPolicy.runtime.namespaces={default}',
    '--set-json=networkPolicy.runtime.egress=[{"ports":[{"port":443,"protocol":"TCP"}]}]',
  ],
  'some namespaces': ['--set=watchNamespaces={default,kube-public}'],
  'everything set': [
    '--set=image.repository=registry.example/op,image.tag=v1,runtimeImage=registry.example/rt:1,logLevel=debug',
    '--set=podLabels.team=a,podAnnotations.note=b,nodeSelector.disk=ssd,priorityClassName=high,metrics.service=false',
    '--set=imagePullSecrets[0].name=registry,tolerations[0].operator=Exists,serviceAccount.name=own',
  ],
};
for (const [name, args] of Object.entries(renderings)) {
  test(`the API server takes the chart ${name}`, async (t) => {
    const plane = await controlPlane(t, { controllerManager: true });
    await systemNamespace(plane.client);
    for (const object of [...renderChart(t, 'sluice', args), ...renderChart(t, 'sluice-crds')])
      await plane.client.apply(types[object.kind]!, object, {
        fieldManager: 'helm',
        force: true,
        dryRun: true,
      });
  });
}

async function systemNamespace(client: any): Promise<void> {
  await client.apply(
    resources.namespaces,
    {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name: 'sluice-system', labels: { 'pod-security.kubernetes.io/enforce': 'restricted' } },
    },
    { fieldManager: 'test', force: true },
  );
}

test('its pod passes the Pod Security Standard "restricted"', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  await systemNamespace(plane.client);
  const objects = renderChart(t, 'sluice');
  const account = objects.find((object) => object.kind === 'ServiceAccount')!;
  await plane.client.apply(types.ServiceAccount!, account, { fieldManager: 'helm', force: true });
  const { metadata, spec } = objects.find((object) => object.kind === 'Deployment')!.spec.template;
  await plane.client.create(
    resources.pods,
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { ...metadata, name: 'operator', namespace: 'sluice-system' },
      spec,
    },
    { dryRun: true },
  );
});

test('the options that the chart writes are those of the program', (t) => {
  const deployment = renderChart(t, 'sluice', ['--set=watchNamespaces={a,b}']).find(
    (object) => object.kind === 'Deployment',
  )!;
  const args: string[] = deployment.spec.template.spec.containers[0].args;
  const argv = args.map((arg) => arg.replace('$(POD_NAMESPACE)', 'sluice-system'));
  const config = loadOperatorConfig({ argv, env: {} });
  assert.deepEqual(config.watchNamespaces, ['a', 'b']);
  assert.equal(config.leaderElect, true);
});

for (const scope of ['all namespaces', 'one namespace'] as const) {
  test(`in ${scope}, the chart gives the operator the rights that it uses, and no others`, async (t) => {
    const plane = await controlPlane(t, { controllerManager: true });
    const { client } = plane;
    await installCrd(client);
    await systemNamespace(client);
    const namespace = await plane.namespace(t);
    const args = scope === 'one namespace' ? [`--set=watchNamespaces={${namespace}}`] : [];
    const objects = renderChart(t, 'sluice', args).filter((object) => object.kind !== 'Deployment');
    for (const object of objects)
      await client.apply(types[object.kind]!, object, { fieldManager: 'helm', force: true });
    t.after(async () => {
      for (const object of objects) await client.remove(types[object.kind]!, object.metadata);
      // So that the next operator makes its own.
      await client.remove(resources.leases, { namespace: 'sluice-system', name: leaseName });
    });

    const username = 'system:serviceaccount:sluice-system:sluice';
    const kubeconfig = plane.kubeconfigFor({
      name: username,
      groups: ['system:serviceaccounts', 'system:serviceaccounts:sluice-system'],
    });
    const since = await plane.auditMark();
    const kubelet = scope === 'one namespace' ? [`--watch-namespaces=${namespace}`] : [];
    const operator = await startOperator(t, kubeconfig, ['--namespace=sluice-system', ...kubelet]);
    pretendKubelet(t, client, namespace, readyAndLookedUp());
    await exercise(t, client, namespace);
    await operator.end();

    const events = await plane.auditEvents({ username, since });
    const refused = events.filter((event) => event.responseStatus?.code === 403);
    assert.deepEqual(
      refused.map((event) => `${event.verb} ${event.requestURI}`),
      [],
    );
    const used = new Set(
      events.flatMap(
        ({ verb, responseStatus, objectRef: { apiGroup = '', resource = '', subresource } = {} }) => {
          const what = [apiGroup, subresource ? `${resource}/${subresource}` : resource].join(' ');
          // An apply that makes the object needs the right to create, too.
          const makes = verb === 'patch' && responseStatus?.code === 201;
          return [verb, ...(makes ? ['create'] : [])].map((each) => `${what} ${each}`);
        },
      ),
    );
    const unused = granted(objects).filter((right) => !used.has(right));
    // Asked for only where OwnerReferencesPermissionEnforcement is on.
    assert.deepEqual(unused, ['sluice.dev inferenceservices/finalizers update']);
  });
}

/** Everything that the operator ever does: create, scale, roll out, repair in each way, prune, take over. */
async function exercise(_t: TestContext, client: any, namespace: string): Promise<void> {
  const service = await ServiceUnderTest.create(client, namespace, 'chat');
  await service.ready();
  // Each new revision loses the Deployment before it; old records are pruned.
  for (let index = 0; index < 8; index++) {
    await service.edit({ model: { path: `/tiny-${index}` } });
    await service.ready();
  }
  const { currentRevision: name } = (await service.get()).status;
  for (const [type, child, patch] of [
    [resources.deployments, name, { spec: { paused: true } }],
    [resources.services, 'chat', { spec: { sessionAffinity: 'ClientIP' } }],
    [resources.services, 'chat', { spec: { selector: { app: 'x' } } }],
  ] as const) {
    const before = await client.get(type, { namespace, name: child });
    await client.mergePatch(type, { namespace, name: child }, patch);
    await until(`${type.plural} is repaired`, async () => {
      const now: KubeObject = await client.get(type, { namespace, name: child });
      return now.metadata.resourceVersion !== before.metadata.resourceVersion && isAsBefore(before, now);
    });
  }
  await service.ready();
  // A reason that repeats is counted on its Event; the budget for disruptions comes, is repaired, and goes.
  for (const replicas of [2, 1, 2, 1]) {
    await service.edit({ replicas });
    await service.ready();
    if (replicas === 1) continue;
    const budget = { namespace, name: 'chat' };
    const other = { minAvailable: 1, maxUnavailable: null };
    await client.mergePatch(resources.podDisruptionBudgets, budget, { spec: other });
    await until('the budget is repaired', async () => {
      const { spec }: KubeObject = await client.get(resources.podDisruptionBudgets, budget);
      return spec.minAvailable === undefined && spec.maxUnavailable === 1;
    });
  }
  await service.edit({ model: { updatePolicy: 'Pinned' } });
  await until('the model is looked up', async () => (await service.get()).status.model?.commit !== undefined);
  await service.ready();
}

function isAsBefore(before: KubeObject, now: KubeObject): boolean {
  return JSON.stringify(before.spec) === JSON.stringify(now.spec);
}

function granted(objects: readonly KubeObject[]): string[] {
  return objects
    .filter((object) => ['Role', 'ClusterRole'].includes(object.kind))
    .flatMap((object) => object.rules)
    .flatMap((rule: any) =>
      rule.apiGroups.flatMap((group: string) =>
        rule.resources.flatMap((resource: string) =>
          rule.verbs.map((verb: string) => [group, resource, verb].join(' ')),
        ),
      ),
    );
}
