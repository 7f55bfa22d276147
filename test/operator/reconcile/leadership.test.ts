/** Two operators, one lease: who writes when the leader stops, goes on, or ends. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { resources } from '../../../operator/kube/client.ts';
import { controlPlane, writeVerbs } from '../../support/control-plane.ts';
import { installCrd, ServiceUnderTest } from '../../support/inference-services.ts';
import { startOperator, until } from '../../support/operator-process.ts';
import { pretendKubelet } from '../../support/pretend-kubelet.ts';

test('a leader stopped for 20 s makes no write after the other has taken over; a leader that ends hands over', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  const { client } = plane;
  await installCrd(client);
  const namespace = await plane.namespace(t);
  pretendKubelet(t, client, namespace);
  const args = [`--namespace=${namespace}`, `--watch-namespaces=${namespace}`];
  const userOf = (name: string) => plane.kubeconfigFor({ name, groups: ['system:masters'] });
  const first = await startOperator(t, userOf('operator-one'), args);
  await first.said('became leader');
  const second = await startOperator(t, userOf('operator-two'), args);
  const service = await ServiceUnderTest.create(client, namespace, 'chat');
  await service.ready();

  first.child.kill('SIGSTOP');
  // Work that the stopped one has seen coming and would do when it goes on.
  await service.edit({ model: { path: '/tiny2' } });
  await Promise.all([sleep(20_000), second.said('became leader')]);
  const takenOver = await plane.auditMark();
  first.child.kill('SIGCONT');
  await first.said('stopped leading');
  await service.edit({ replicas: 2 });
  await service.ready();
  const late = await plane.auditEvents({ username: 'operator-one', verbs: writeVerbs, since: takenOver });
  assert.deepEqual(
    late
      // Looking for the lease again, which it does not get, is no write of a leader.
      .filter((event) => !(event.objectRef?.resource === 'leases' && event.responseStatus?.code === 409))
      .map((event) => `${event.verb} ${event.requestURI}`),
    [],
  );

  const ready = await fetch(`http://127.0.0.1:${first.healthPort}/readyz`);
  assert.equal(ready.status, 200, 'a standby is ready');
  assert.equal(await second.end('SIGTERM'), 0);
  const lease = await client.get(resources.leases, { namespace, name: 'sluice-operator' });
  assert.ok(lease?.spec.holderIdentity !== undefined);
  await until(
    'the first leads again',
    () => first.log.filter((record) => record.msg === 'became leader').length === 2,
  );
  await service.edit({ replicas: 1 });
  await service.ready();
});

test('probes and metrics', async (t) => {
  const plane = await controlPlane(t, { controllerManager: true });
  await installCrd(plane.client);
  const namespace = await plane.namespace(t);
  pretendKubelet(t, plane.client, namespace);
  const operator = await startOperator(t, plane.kubeconfig, [
    `--namespace=${namespace}`,
    `--watch-namespaces=${namespace}`,
  ]);
  const get = (port: number, route: string) => fetch(`http://127.0.0.1:${port}${route}`);
  assert.equal((await get(operator.healthPort, '/livez')).status, 200);
  await until('it is ready', async () => (await get(operator.healthPort, '/readyz')).status === 200);
  assert.equal((await get(operator.healthPort, '/other')).status, 404);
  const service = await ServiceUnderTest.create(plane.client, namespace, 'chat');
  await service.ready();
  const text = await (await get(operator.metricsPort, '/metrics')).text();
  const value = (name: string) =>
    Number(new RegExp(`^${name.replaceAll(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1]);
  assert.equal(value('sluice_operator_leader'), 1);
  assert.equal(value('sluice_operator_inference_services'), 1);
  assert.ok(value('sluice_operator_reconciles_total{outcome="success"}') > 0);
  assert.equal(value('sluice_operator_child_writes_total{verb="apply",kind="Service"}'), 1);
  assert.ok(value('sluice_operator_reconcile_seconds_count') > 0);
});
