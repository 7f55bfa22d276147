// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * The operator's program is killed about every change that it makes in a rollout, started again at once, and the end is what
 * it is without: for n = 1, 2, ... just before the n-th change and just after it, until a rollout has fewer. Control plane,
 * scheduler and controllers are real; pods are what the test says as soon as they are bound.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { resources } from '../../../operator/kube/client.ts';
import { controlPlane, type TestControlPlane } from '../../support/control-plane.ts';
import { type CountingProxy, countingProxy } from '../../support/counting-proxy.ts';
import { gpuNodes } from '../../support/gpu-nodes.ts';
import { installCrd, minimalSpec, ServiceUnderTest } from '../../support/inference-services.ts';
import { type OperatorProcess, startOperator, until } from '../../support/operator-process.ts';
import { crashing, ready } from '../../support/pretend-kubelet.ts';
import { ServingPods } from '../../support/serving-pods.ts';

interface Condition {
  readonly type: string;
  readonly reason: string;
}

interface Rollout {
  readonly replicas: number;
  /** On the one node; a pod takes 4. */
  readonly gpus: number;
  readonly model: string;
  readonly end: Condition;
  /** So many of the pods serve at any time. */
  readonly bound: number;
}

const settled: Condition = { type: 'Ready', reason: 'Settled' };
const broken = '/broken';

const rollouts: Record<string, Rollout> = {
  'a surge': { replicas: 1, gpus: 8, model: '/other', end: settled, bound: 1 },
  'a revision that fails and is rolled back': {
    ...{ replicas: 1, gpus: 8, model: broken, bound: 1 },
    end: { type: 'Stalled', reason: 'RolledBack' },
  },
  'a full node, where old pods make room': { replicas: 2, gpus: 8, model: '/other', end: settled, bound: 1 },
};

for (const [name, rollout] of Object.entries(rollouts))
  test(`${name}: killed about any change, it comes to the same end`, async (t) => {
    const sweep = await Sweep.begin(t, rollout);
    const expected = await sweep.run();
    t.diagnostic(`${expected.changes.length} changes without a kill`);
    let killed = true;
    for (let change = 1; killed; change++) {
      killed = false;
      for (const side of ['before', 'after'] as const) {
        let passed = false;
        await t.test(`${side} change ${change}: ${expected.changes[change - 1] ?? 'none'}`, async () => {
          const { end, cutAt } = await sweep.run({ change, side });
          assert.deepEqual(end, expected.end, `killed ${side} ${cutAt}`);
          killed ||= cutAt !== undefined;
          passed = true;
        });
        // It leaves the node as no other run should find it.
        if (!passed) return;
      }
    }
  });

interface Run {
  readonly end: unknown;
  readonly changes: readonly string[];
  /** The change about which the operator was killed; absent where there were fewer. */
  readonly cutAt?: string;
}

/** One node and one operator for all runs of a rollout; each has a namespace of its own. */
class Sweep {
  readonly #t: TestContext;
  readonly #plane: TestControlPlane;
  readonly #proxy: CountingProxy;
  readonly #rollout: Rollout;
  #operator: Promise<OperatorProcess>;

  static async begin(t: TestContext, rollout: Rollout): Promise<Sweep> {
    const plane = await controlPlane(t, { controllerManager: true, scheduler: true });
    await installCrd(plane.client);
    const nodes = await gpuNodes(t, plane.client, { node: rollout.gpus });
    nodes.turnsToEnd = 1;
    nodes.look = (pod) =>
      pod.spec.containers[0].args.some((each: string) => each.endsWith(broken))
        ? crashing(1, 'segmentation of the mind')(pod)
        : ready(pod);
    return new Sweep(t, plane, await countingProxy(t, plane), rollout);
  }

  private constructor(t: TestContext, plane: TestControlPlane, proxy: CountingProxy, rollout: Rollout) {
    this.#t = t;
    this.#plane = plane;
    this.#proxy = proxy;
    this.#rollout = rollout;
    this.#operator = this.#start();
  }

  #start(): Promise<OperatorProcess> {
    // The lease of a dead leader would have to run out first.
    const args = ['--no-leader-elect', '--runtime-image=runtime:test'];
    return startOperator(this.#t, this.#proxy.kubeconfig, args);
  }

  async run(cut?: { readonly change: number; readonly side: 'before' | 'after' }): Promise<Run> {
    const { client } = this.#plane;
    const { replicas, model, end, bound } = this.#rollout;
    const namespace = await this.#plane.namespace(this.#t);
    const pods = await ServingPods.watch(this.#t, client, namespace);
    const service = await ServiceUnderTest.create(client, namespace, 'chat', {
      ...minimalSpec,
      replicas,
      gpus: 4,
      // The scheduler would wait for the claim.
      template: { spec: { volumes: [{ name: 'models', emptyDir: {} }] } },
    });
    await this.#rest(service, pods, settled);
    let cutAt: string | undefined;
    const happen = async (): Promise<void> => {
      cutAt = this.#proxy.changes.at(-1);
      const ended = (await this.#operator).end('SIGKILL');
      this.#operator = ended.then(() => this.#start());
      await ended;
    };
    this.#proxy.count(namespace, cut === undefined ? undefined : { ...cut, happen });
    pods.countAgain();
    await service.edit({ model: { path: model } });
    await this.#rest(service, pods, end);
    const { changes } = this.#proxy;
    assert.ok(pods.fewest >= bound, `${pods.fewest} pods served; killed ${cut?.side} ${cutAt}`);
    const run = { end: await endOf(service), changes, ...(cutAt === undefined ? {} : { cutAt }) };
    await service.remove();
    // The garbage collector learns of a new kind only after half a minute.
    for (const deployment of await service.children('deployments'))
      await client.remove(resources.deployments, deployment.metadata, { propagationPolicy: 'Background' });
    await until('all pods are gone', () => pods.all.length === 0);
    pods.stop();
    return run;
  }

  /** The condition is there, nothing but the pods that are wanted is, and the operator has no more to do. */
  async #rest(service: ServiceUnderTest, pods: ServingPods, { type, reason }: Condition): Promise<void> {
    const { replicas } = this.#rollout;
    const atRest = async (): Promise<boolean> => {
      const { metadata, status } = await service.get();
      const condition = status?.conditions?.find((each: any) => each.type === type);
      return (
        condition?.status === 'True' &&
        condition.reason === reason &&
        condition.observedGeneration === metadata.generation &&
        (await service.children('deployments')).length === 1 &&
        pods.all.length === replicas &&
        pods.serving.length === replicas
      );
    };
    try {
      await until(`${type} (${reason}), and at rest`, async () => {
        if (!(await atRest())) return false;
        const operator = this.#operator;
        await (await operator).idle().catch((error) => {
          // It may have been killed meanwhile, about its last change.
          if (operator === this.#operator) throw error;
        });
        return operator === this.#operator && (await atRest());
      });
    } catch (error) {
      const state = await this.#state(service, pods);
      throw new Error(`${(error as Error).message}\n${JSON.stringify(state, null, 1)}`, { cause: error });
    }
  }

  async #state(service: ServiceUnderTest, pods: ServingPods): Promise<object> {
    const { status } = await service.get();
    const deployments = await service.children('deployments');
    const { child, stderr, log } = await this.#operator;
    return {
      status,
      deployments: deployments.map(({ metadata, spec, status }) => [metadata.name, spec.replicas, status]),
      pods: pods.all.map(({ metadata, status }) => [metadata.name, metadata.deletionTimestamp, status]),
      changes: this.#proxy.changes,
      operator: [child.exitCode, child.signalCode, stderr()],
      log: log.slice(-20).map(({ msg, err }: any) => [msg, err?.message]),
    };
  }
}

/** Everything that the operator is answerable for, without times and what the API server made up. */
async function endOf(service: ServiceUnderTest): Promise<unknown> {
  const { spec, status } = await service.get();
  const deployments = await service.children('deployments');
  const records = await service.children('controllerRevisions');
  const services = await service.children('services');
  const budgets = await service.children('podDisruptionBudgets');
  const end = {
    spec,
    status,
    deployments: deployments.map(({ metadata, spec }) => [metadata.name, metadata.labels, spec]),
    records: records.map(({ metadata, revision, data }) => [metadata.name, metadata.labels, revision, data]),
    budgets: budgets.map(({ metadata, spec }) => [metadata.name, metadata.labels, spec]),
    services: services.map(({ metadata, spec: { clusterIP: _, clusterIPs: __, ...spec } }) => [
      metadata.name,
      metadata.labels,
      spec,
    ]),
  };
  const timeless = JSON.stringify(end, (_key, value) =>
    typeof value === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value) ? 'a time' : value,
  );
  return JSON.parse(timeless.replaceAll(service.namespace, 'namespace'));
}
