// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * Changes that cannot work are applied in production: real runtime pods behind a Service, a client that never stops asking,
 * and the revision that served serves on, or again.
 */
import assert from 'node:assert/strict';
import { before, describe, type TestContext, test } from 'node:test';
import type { ServiceUnderTest } from '../../support/inference-services.ts';
import { until } from '../../support/operator-process.ts';
import {
  modelAnswers,
  type ServingCluster,
  servingCluster,
  servingProblem,
  servingSpec,
} from '../../support/serving-cluster.ts';
import { countAnswers, type Outcome, Traffic } from '../../support/traffic.ts';

const skip = servingProblem === undefined ? false : `pods need addresses of their own: ${servingProblem}`;
const container = (more: object) => ({ spec: { containers: [{ name: 'runtime', ...more }] } });
const serving = servingSpec({ gpus: 2, replicas: 2 }) as any;

interface Failure {
  /** Over what serves. */
  readonly change: object;
  readonly progressDeadlineSeconds?: number;
  readonly reason: string;
  readonly says: RegExp;
}

const failures: Record<string, Failure> = {
  crashes: {
    change: { template: container({ command: ['sh', '-c', 'echo the driver is gone >&2; exit 1'] }) },
    reason: 'CrashLoop',
    says: /ended with exit code 1: the driver is gone/,
  },
  'never becomes ready': {
    change: { template: container({ readinessProbe: { httpGet: { path: '/never', port: 'http' } } }) },
    progressDeadlineSeconds: 15,
    reason: 'ProgressDeadlineExceeded',
    says: /no further pod became ready within 15 seconds/,
  },
  'has an image that does not exist': {
    change: { image: 'missing:1' },
    // A registry may be behind for a minute, and meanwhile everything serves.
    progressDeadlineSeconds: 15,
    reason: 'ProgressDeadlineExceeded',
    says: /The image "missing:1" of container runtime cannot be pulled: .*not found/,
  },
  'has a flag that does not exist': {
    change: { runtime: { extraArgs: ['--devices=cpu:0', '--no-such-flag=1'] } },
    reason: 'RuntimeConfigRejected',
    says: /The runtime refuses .*--no-such-flag/,
  },
};

/** Asks for what serves with one change, and nothing of an earlier one. */
async function change(
  service: ServiceUnderTest,
  spec: any,
  { change, progressDeadlineSeconds = 600 }: Failure,
) {
  await service.edit({
    image: null,
    template: null,
    runtime: spec.runtime,
    rollout: { progressDeadlineSeconds },
    ...change,
  });
}

/** Waits for the rollback, and looks at what is said of it. */
async function rolledBack(
  service: ServiceUnderTest,
  stable: string,
  { reason, says }: Failure,
): Promise<string> {
  const { message } = await service.condition('Stalled', 'True', 'RolledBack');
  const { status } = await service.get();
  const failed: string = status.updateRevision;
  assert.notEqual(failed, stable);
  assert.ok(message.startsWith(`Revision ${failed} failed: ${reason}: `), message);
  assert.match(message, says);
  assert.ok(message.includes(`. ${stable} serves`), message);
  assert.equal(status.currentRevision, stable);
  assert.equal(status.revisions.find((each: any) => each.name === failed).phase, 'Failed');
  await service.condition('Available', 'True');
  await service.condition('Ready', 'False', 'RolledBack');
  assert.deepEqual(
    (await service.children('deployments')).map((each) => each.metadata.name),
    [stable],
  );
  return failed;
}

/** The service, its stable revision, and the traffic that it already answers. */
async function underTraffic(t: TestContext, cluster: ServingCluster, spec: object) {
  const service = await cluster.create('chat', spec);
  const { currentRevision } = await service.ready();
  const traffic = new Traffic(await cluster.urlOf(service));
  t.after(() => traffic.stop());
  await until('it answers', () => traffic.outcomes.length >= 10);
  return { service, traffic, stable: currentRevision as string };
}

describe('a revision that fails under 10 requests a second', { skip }, () => {
  let answers: Awaited<ReturnType<typeof modelAnswers>>;
  before(async () => {
    answers = await modelAnswers();
  });
  const allAnswered = (t: TestContext, outcomes: readonly Outcome[]) => {
    const [count] = countAnswers(outcomes, [answers.tiny]);
    t.diagnostic(`${count} answers`);
  };

  test('beside two that serve: no request fails, whatever it fails of, and only a retry tries it again', async (t) => {
    const cluster = await servingCluster(t, 8);
    const { service, traffic, stable } = await underTraffic(t, cluster, serving);
    let failed = '';
    for (const [name, failure] of Object.entries(failures))
      await t.test(name, async () => {
        await change(service, serving, failure);
        failed = await rolledBack(service, stable, failure);
        assert.equal((await service.get()).status.readyReplicas, 2);
      });

    // Neither time nor an operator that remembers nothing tries the last one again.
    const mark = await cluster.plane.auditMark();
    await cluster.operator.end('SIGKILL');
    const operator = await cluster.startOperator();
    await operator.idle();
    const writesOfFailed = async () => {
      const events = await cluster.plane.auditEvents({
        namespace: cluster.namespace,
        resource: 'deployments',
        name: failed,
        since: mark,
      });
      return events.filter(({ verb }) => verb === 'patch').length;
    };
    assert.equal(await writesOfFailed(), 0);
    await service.hold('Retry');
    await until('it is tried again', async () => (await writesOfFailed()) > 0);
    await rolledBack(service, stable, failures['has a flag that does not exist']!);
    allAnswered(t, await traffic.stop());
  });

  test('on a full node with two replicas: one old pod makes room and comes back, and no request fails', async (t) => {
    const cluster = await servingCluster(t, 4);
    const { service, traffic, stable } = await underTraffic(t, cluster, serving);
    const failure = { ...failures['has an image that does not exist']!, reason: 'ImagePullFailed' };
    await change(service, serving, { ...failure, progressDeadlineSeconds: 600 });
    const { message } = await service.condition('Reconciling', 'True', 'CapacityGap');
    assert.match(message, /2 GPUs needed on one node, 0 of 4 free on .*-node: recreate in place/);
    await service.condition('Reconciling', 'True', 'RollingBack');
    await rolledBack(service, stable, failure);
    assert.equal((await service.get()).status.readyReplicas, 2);
    allAnswered(t, await traffic.stop());
  });

  test('on a full node with one replica: the announced gap, and then the old one serves again', async (t) => {
    const cluster = await servingCluster(t, 2);
    const spec = { ...serving, replicas: 1 };
    const { service, traffic, stable } = await underTraffic(t, cluster, spec);
    const failure = failures['has a flag that does not exist']!;
    await change(service, spec, failure);
    const { message } = await service.condition('Reconciling', 'True', 'CapacityGap');
    assert.match(message, /2 GPUs needed on one node, 0 of 2 free on .*-node: recreate in place/);
    await rolledBack(service, stable, failure);
    const after = traffic.outcomes.length;
    await until('the old one answers again', () => traffic.outcomes.length >= after + 10);
    const outcomes = await traffic.stop();
    const letIn = outcomes.filter(({ refused }) => !refused);
    assert.ok(letIn.length < outcomes.length, 'the gap was one');
    t.diagnostic(`${outcomes.length - letIn.length} refused`);
    allAnswered(t, letIn);
  });
});
