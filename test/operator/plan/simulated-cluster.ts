// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * A cluster small enough to think through: it carries out plans, and plays Deployment controller, scheduler and kubelet
 * for one service on one node with so many GPUs. Time passes when told. Enters: specs and actions. Leaves: worlds.
 */
import { inferenceServiceCrd } from '../../../operator/api/crd.ts';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import type { AnyObject } from '../../../operator/api/objects.ts';
import { fieldManager } from '../../../operator/plan/drift.ts';
import { type Action, makePlan, type Plan } from '../../../operator/plan/plan.ts';
import { isReady, type World } from '../../../operator/plan/world.ts';
import { isControlledBy } from '../../../operator/resources/controller-revision.ts';
import { revisionLabel } from '../../../operator/resources/labels.ts';

export const planOptions = { runtimeImage: 'runtime:1' };

/** Revisions with this path never become ready. */
export const badPath = '/bad';
export const crashPath = '/crash';
export const refusedPath = '/refused';
export const crashCommit = 'f'.repeat(40);
export const missingImage = 'registry.example/missing:1';

export class SimulatedCluster {
  service: AnyObject;
  readonly children = new Map<string, AnyObject>();
  readonly pods = new Map<string, AnyObject>();
  now = new Date('2026-01-01T00:00:00Z');
  readonly gpus: number;
  /** What `sluice resolve` answers, by its arguments after the command: facts, or the line of its refusal. */
  readonly hub = new Map<string, object | string>();
  readonly lookups = new Map<string, AnyObject>();
  /** What the API server says to a trial of a template, by the model's path. */
  readonly refusals = new Map<string, string>();
  /** Whether the operator sees nodes and others' pods. */
  seesNodes = false;
  #uid = 0;
  #podNumber = 0;

  constructor(spec: InferenceServiceSpec, gpus = Number.POSITIVE_INFINITY) {
    this.gpus = gpus;
    const { group, names, versions } = inferenceServiceCrd().spec;
    this.service = {
      apiVersion: `${group}/${versions[0].name}`,
      kind: names.kind,
      metadata: { name: 'chat', namespace: 'prod', uid: 'service', generation: 1 },
      spec,
    };
  }

  get world(): World {
    return {
      service: this.service,
      children: [...this.children.values()],
      pods: [...this.pods.values()],
      lookups: [...this.lookups.values()],
      now: this.now,
      ...(this.seesNodes
        ? { cluster: { nodes: () => [this.#node], pods: () => [...this.pods.values()], quotas: () => [] } }
        : {}),
    };
  }

  get #node(): AnyObject {
    return {
      apiVersion: 'v1',
      kind: 'Node',
      metadata: { name: 'node-a' },
      status: { allocatable: { 'nvidia.com/gpu': String(this.gpus) } },
    };
  }

  /** As the command line does it. */
  hold(verb: string): void {
    const { status, metadata } = this.service;
    const rollout = { ...status.rollout, hold: { verb, generation: metadata.generation } };
    this.service = { ...this.service, status: { ...status, rollout } };
  }

  edit(spec: InferenceServiceSpec): void {
    const generation = (this.service.metadata.generation ?? 0) + 1;
    this.service = { ...this.service, spec, metadata: { ...this.service.metadata, generation } };
  }

  plan(): Plan {
    const plan = makePlan(this.world, planOptions);
    const message = this.refusals.get(this.service.spec.model.path);
    if (plan.trial === undefined || message === undefined) return plan;
    return makePlan({ ...this.world, refusal: { revision: plan.trial.metadata.name, message } }, planOptions);
  }

  /** One reconcile; a crash after so many writes leaves the rest undone, the status too. */
  reconcile(writesBeforeCrash = Number.POSITIVE_INFINITY): Plan {
    const plan = this.plan();
    for (const [index, action] of plan.actions.entries()) {
      if (index >= writesBeforeCrash) return plan;
      this.#carryOut(action);
    }
    if (plan.actions.length < writesBeforeCrash) this.service = { ...this.service, status: plan.status };
    return plan;
  }

  /** What the rest of the cluster does in one turn. */
  turn(seconds = 1): void {
    this.now = new Date(this.now.getTime() + seconds * 1000);
    for (const pod of [...this.pods.values()]) {
      if (pod.metadata.deletionTimestamp !== undefined) this.pods.delete(pod.metadata.name);
    }
    this.#collectGarbage();
    for (const job of this.children.values()) if (job.kind === 'Job') this.#lookUp(job);
    for (const deployment of this.#deployments()) this.#scale(deployment);
    for (const pod of this.pods.values()) this.#schedule(pod);
    for (const deployment of this.#deployments()) this.#report(deployment);
  }

  /** Reconciles and turns until it is ready and nothing is left to do, or so many times. */
  settle(turns: number): void {
    for (let turn = 0; turn < turns; turn++) {
      const { actions } = this.reconcile();
      const { observedGeneration } = this.service.status;
      const ready = this.condition('Ready').status === 'True';
      const ending = [...this.pods.values()].some((pod) => pod.metadata.deletionTimestamp !== undefined);
      if (ready && observedGeneration === this.service.metadata.generation && actions.length === 0 && !ending)
        return;
      this.turn(30);
    }
  }

  condition(type: string): any {
    return this.service.status?.conditions?.find((each: any) => each.type === type);
  }

  podsOf(revision: string | undefined): AnyObject[] {
    return [...this.pods.values()].filter((pod) => pod.metadata.labels?.[revisionLabel] === revision);
  }

  get readyPods(): number {
    return [...this.pods.values()].filter(
      (pod) => isReady(pod) && pod.metadata.deletionTimestamp === undefined,
    ).length;
  }

  child(kind: string, name: string): AnyObject | undefined {
    return this.children.get(`${kind}/${name}`);
  }

  put(object: AnyObject): void {
    this.children.set(`${object.kind}/${object.metadata.name}`, object);
  }

  #carryOut(action: Action): void {
    const { object } = action;
    const id = `${object.kind}/${object.metadata.name}`;
    if (action.verb === 'remove') {
      this.children.delete(id);
      return;
    }
    const live = this.children.get(id);
    const { apiVersion: _, kind: __, metadata, ...rest } = object;
    const { labels, annotations, ownerReferences } = metadata;
    const fieldsV1 = fieldsOf({ metadata: { labels, annotations, ownerReferences }, ...rest });
    this.children.set(id, {
      ...object,
      metadata: {
        ...metadata,
        uid: live?.metadata.uid ?? `uid-${++this.#uid}`,
        generation: (live?.metadata.generation ?? 0) + 1,
        creationTimestamp: live?.metadata.creationTimestamp ?? this.now.toISOString(),
        managedFields: [{ manager: fieldManager, operation: 'Apply', fieldsV1 }],
      },
      ...(live?.status === undefined ? {} : { status: live.status }),
    });
  }

  #deployments(): AnyObject[] {
    return [...this.children.values()].filter(
      (each) => each.kind === 'Deployment' && isControlledBy(each, this.service),
    );
  }

  #collectGarbage(): void {
    for (const pod of this.pods.values()) {
      if (this.child('Deployment', pod.metadata.labels![revisionLabel]!) === undefined) this.#end(pod);
    }
  }

  #lookUp(job: AnyObject): void {
    if (job.status !== undefined) return;
    const [container] = job.spec.template.spec.containers;
    const answer = this.hub.get(container.args.slice(1, -1).join(' '));
    if (answer === undefined) return;
    const refused = typeof answer === 'string';
    const message = refused ? answer : JSON.stringify(answer);
    const { name, uid = '' } = job.metadata;
    const ownerReferences = [{ apiVersion: 'batch/v1', kind: 'Job', name, uid, controller: true }];
    const terminated = { exitCode: refused ? 2 : 0, message };
    this.lookups.set(name, {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: `${name}-x`, namespace: 'prod', ownerReferences },
      status: {
        phase: refused ? 'Failed' : 'Succeeded',
        containerStatuses: [{ name: 'runtime', state: { terminated } }],
      },
    });
    const condition = {
      type: refused ? 'Failed' : 'Complete',
      status: 'True',
      lastTransitionTime: this.now.toISOString(),
    };
    this.put({ ...job, status: { conditions: [condition] } });
  }

  #scale(deployment: AnyObject): void {
    const staying = this.podsOf(deployment.metadata.name).filter(
      (pod) => pod.metadata.deletionTimestamp === undefined,
    );
    const { replicas, template } = deployment.spec;
    // As the ReplicaSet controller does: those that do not serve end first.
    const byWorth = [...staying].sort((a, b) => Number(isReady(a)) - Number(isReady(b)));
    for (const pod of byWorth.slice(0, Math.max(0, staying.length - replicas))) this.#end(pod);
    for (let index = staying.length; index < replicas; index++) {
      const name = `${deployment.metadata.name}-${++this.#podNumber}`;
      this.pods.set(name, {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: {
          name,
          namespace: 'prod',
          labels: template.metadata.labels,
          creationTimestamp: this.now.toISOString(),
        },
        spec: template.spec,
        status: { phase: 'Pending' },
      });
    }
  }

  #end(pod: AnyObject): void {
    if (pod.metadata.deletionTimestamp !== undefined) return;
    const deletionTimestamp = this.now.toISOString();
    this.pods.set(pod.metadata.name, { ...pod, metadata: { ...pod.metadata, deletionTimestamp } });
  }

  #schedule(pod: AnyObject): void {
    if (pod.metadata.deletionTimestamp !== undefined || isReady(pod)) return;
    const wants = gpusOf(pod);
    const used = [...this.pods.values()].reduce(
      (sum, each) => sum + (each.spec.nodeName === undefined ? 0 : gpusOf(each)),
      0,
    );
    if (pod.spec.nodeName === undefined && wants > this.gpus - used) {
      const since = pod.status.conditions?.[0]?.lastTransitionTime ?? this.now.toISOString();
      this.#say(pod, {}, [
        {
          type: 'PodScheduled',
          status: 'False',
          reason: 'Unschedulable',
          message:
            '0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available',
          lastTransitionTime: since,
        },
      ]);
      return;
    }
    const [{ args, image }] = pod.spec.containers;
    const has = (path: string) => args.includes(`--model-path=/models${path}`);
    const trouble =
      has(crashPath) || args.includes(`--huggingface-revision=${crashCommit}`)
        ? ended(1, 'segmentation of the mind', 3)
        : has(refusedPath)
          ? ended(2, 'sluice: --max-length "0": the form is an integer from 1', 1)
          : image === missingImage
            ? { state: { waiting: { reason: 'ImagePullBackOff', message: 'not found' } } }
            : undefined;
    const conditions = [
      { type: 'PodScheduled', status: 'True' },
      { type: 'Ready', status: trouble !== undefined || has(badPath) ? 'False' : 'True' },
    ];
    this.#say(pod, { nodeName: 'node-a' }, conditions, trouble);
  }

  #say(pod: AnyObject, spec: object, conditions: object[], container?: object): void {
    this.pods.set(pod.metadata.name, {
      ...pod,
      spec: { ...pod.spec, ...spec },
      status: {
        ...pod.status,
        conditions,
        ...(container === undefined ? {} : { containerStatuses: [{ name: 'runtime', ...container }] }),
      },
    });
  }

  #report(deployment: AnyObject): void {
    const pods = this.podsOf(deployment.metadata.name).filter(
      (pod) => pod.metadata.deletionTimestamp === undefined,
    );
    const ready = pods.filter(isReady).length;
    this.put({
      ...deployment,
      status: {
        observedGeneration: deployment.metadata.generation,
        replicas: pods.length,
        updatedReplicas: pods.length,
        readyReplicas: ready,
        availableReplicas: ready,
      },
    });
  }
}

function ended(exitCode: number, message: string, restartCount: number): object {
  return {
    restartCount,
    state: { waiting: { reason: 'CrashLoopBackOff' } },
    lastState: { terminated: { exitCode, message } },
  };
}

function gpusOf(pod: AnyObject): number {
  return Number(pod.spec.containers[0].resources?.limits?.['nvidia.com/gpu'] ?? 0);
}

/** As the API server's managedFields, every list being one field. */
export function fieldsOf(value: unknown): Record<string, any> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .map(([key, member]) => [`f:${key}`, fieldsOf(member)]),
  );
}
