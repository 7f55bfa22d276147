// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * A model is changed in production: real runtime pods behind a Service, a client that never stops asking, and every answer
 * looked at.
 */
import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { until } from '../../support/operator-process.ts';
import { modelAnswers, servingCluster, servingProblem, servingSpec } from '../../support/serving-cluster.ts';
import { ask, countAnswers, Traffic } from '../../support/traffic.ts';

const skip = servingProblem === undefined ? false : `pods need addresses of their own: ${servingProblem}`;

describe('a new revision under 10 requests a second', { skip }, () => {
  let answers: Awaited<ReturnType<typeof modelAnswers>>;
  before(async () => {
    answers = await modelAnswers();
  });

  test('with 8 GPUs it surges, and every request gets the whole text of one of the two', async (t) => {
    const cluster = await servingCluster(t, 8);
    const service = await cluster.create('chat', servingSpec());
    await service.ready();
    const traffic = new Traffic(await cluster.urlOf(service));
    await until('the old revision answers', () => traffic.outcomes.length >= 10);
    await service.edit({ model: { path: '/other' } });
    const { rollout } = await service.ready();
    assert.equal(rollout.decision, 'Surge');
    assert.match(rollout.message, /4 GPUs needed on one node, 4 of 8 free on .*: surge/);
    // The old pod ends only after Ready: it takes its time to let go of its clients.
    await until('the old pod is gone', async () => (await service.children('pods')).length === 1);
    const after = traffic.outcomes.length;
    await until('the new revision answers', () => traffic.outcomes.length >= after + 10);
    const outcomes = await traffic.stop();
    const [old, fresh] = countAnswers(outcomes, [answers.tiny, answers.other]);
    assert.ok(old! >= 10 && fresh! >= 10, `${old} old answers, ${fresh} new ones`);
    t.diagnostic(`${old} + ${fresh} answers`);
  });

  test('on a full node of 4 GPUs it is recreated in place: announced, refused at once meanwhile, no deadlock', async (t) => {
    const cluster = await servingCluster(t, 4);
    const service = await cluster.create('chat', servingSpec());
    await service.ready();
    const url = await cluster.urlOf(service);
    const traffic = new Traffic(url);
    await until('the old revision answers', () => traffic.outcomes.length >= 10);
    const mark = await cluster.plane.auditMark();
    await service.edit({ model: { path: '/other' } });
    const { message } = await service.condition('Reconciling', 'True', 'CapacityGap');
    assert.match(message, /4 GPUs needed on one node, 0 of 4 free on .*-node: recreate in place/);
    const inGap = await until('connections are refused', async () => {
      const { status } = await service.get();
      const { refused } = await ask(url, 'completion');
      return refused && status;
    });
    const said = (type: string) => inGap.conditions.find((each: any) => each.type === type);
    assert.deepEqual(
      [said('Available').status, said('Ready').reason, said('Reconciling').reason],
      ['False', 'CapacityGap', 'CapacityGap'],
    );
    const { rollout } = await service.ready();
    assert.equal(rollout.decision, 'Recreate');
    const after = traffic.outcomes.length;
    await until('the new revision answers', () => traffic.outcomes.length >= after + 10);
    const outcomes = await traffic.stop();
    // Whoever was let in got the whole answer.
    const [old, fresh] = countAnswers(
      outcomes.filter(({ refused }) => !refused),
      [answers.tiny, answers.other],
    );
    assert.ok(old! >= 10 && fresh! >= 10, `${old} old answers, ${fresh} new ones`);

    const events = await cluster.plane.auditEvents({ namespace: cluster.namespace, since: mark });
    const announced = events.findIndex(
      ({ objectRef, requestObject }) =>
        objectRef?.subresource === 'status' &&
        requestObject?.status?.conditions?.some((each: any) => each.reason === 'CapacityGap'),
    );
    const shrunk = events.findIndex(
      ({ objectRef, verb, requestObject }) =>
        objectRef?.resource === 'deployments' &&
        objectRef.subresource === undefined &&
        (verb === 'delete' || requestObject?.spec?.replicas === 0),
    );
    assert.ok(announced >= 0 && announced < shrunk, `announced by write ${announced}, begun by ${shrunk}`);
    t.diagnostic(`${old} + ${fresh} answers, ${outcomes.length - old! - fresh!} refused`);
  });
});
