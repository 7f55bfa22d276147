/**
 * What would happen to a service, step by step, if nothing else moved: the plan is made again and again, and between two
 * plans Deployment controller, scheduler and kubelets are played, all of them well-meaning (an image is there, a model
 * loads). Enters: the world as it would be after an edit. Leaves: every write to a child, pods that
 * end and start, where it comes to rest. Pure: the decisions are those of makePlan and of nothing else.
 */

import { sameJson } from '../api/canonical.ts';
import type { InferenceServiceStatus } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { isControlledBy, readRecord } from '../resources/controller-revision.ts';
import { revisionLabel } from '../resources/labels.ts';
import { estimateCapacity, type PodSpec, podRequest } from './capacity.ts';
import { fieldManager } from './drift.ts';
import { type Action, makePlan, type PlanOptions } from './plan.ts';
import { worstTrouble } from './pod-trouble.ts';
import { isReady, type World } from './world.ts';

/** A request that the API server would see; server-side apply is a patch there, also where it creates. */
export interface Write {
  readonly verb: 'patch' | 'update' | 'delete';
  readonly kind: string;
  readonly name: string;
  /** The object is not there before. */
  readonly creates?: true;
}

export interface Forecast {
  /** Each once, in the order of their first time. */
  readonly writes: readonly Write[];
  /** Names of pods that are there now and end. */
  readonly podsEnded: readonly string[];
  /** Of those: pods of a revision that another one takes the place of. */
  readonly podsReplaced: readonly string[];
  readonly podsStarted: number;
  /** The fewest ready pods on the way. */
  readonly leastReady: number;
  /** Of the pods that are wanted. */
  readonly podSpec: PodSpec;
  /** The status in which it comes to rest. */
  readonly status: InferenceServiceStatus;
  /** Reasons of `Reconciling` on the way, each once, in the order of their first time. */
  readonly passed: readonly string[];
}

export interface ForecastInput {
  readonly world: World;
  readonly options: PlanOptions;
  /** The resource that GPUs are counted by. */
  readonly resource: string;
}

const secondsOfTurn = 5;
const maxTurns = 2000;

/** At rest: settled, or nothing has moved for longer than a pod without a node is waited for. What fails later, fails. */
export function forecast(input: ForecastInput): Forecast {
  const stage = new Stage(input);
  const restSeconds = 60 + 1.5 * waitSecondsOf(input.world.service);
  let stillSeconds = 0;
  for (let turn = 0; turn < maxTurns && stillSeconds < restSeconds; turn++) {
    const moved = stage.reconcile();
    const seconds = moved
      ? secondsOfTurn
      : Math.max(secondsOfTurn, Math.min(stage.requeueSeconds, restSeconds));
    stillSeconds = stage.turn(seconds) || moved ? 0 : stillSeconds + seconds;
    if (stage.isSettled) break;
  }
  return stage.result();
}

function waitSecondsOf({ spec }: AnyObject): number {
  return spec.rollout?.capacity?.waitSeconds ?? 120;
}

/** The world in motion. */
class Stage {
  readonly #options: PlanOptions;
  readonly #resource: string;
  readonly #children = new Map<string, AnyObject>();
  readonly #pods = new Map<string, AnyObject>();
  readonly #livePods: ReadonlyMap<string, AnyObject>;
  /** Pods of others, in the whole cluster. */
  #others: readonly AnyObject[];
  readonly #writes = new Map<string, Write>();
  readonly #ended = new Set<string>();
  readonly #passed: string[] = [];
  readonly #world: World;
  #service: AnyObject;
  #now: Date;
  #started = 0;
  #leastReady = Number.POSITIVE_INFINITY;
  requeueSeconds = Number.POSITIVE_INFINITY;
  isSettled = false;

  constructor({ world, options, resource }: ForecastInput) {
    this.#world = world;
    this.#options = options;
    this.#resource = resource;
    this.#service = world.service;
    this.#now = world.now;
    for (const child of world.children) this.#children.set(idOf(child), child);
    for (const pod of world.pods) this.#pods.set(pod.metadata.name, pod);
    this.#livePods = new Map(this.#pods);
    const own = (pod: AnyObject) =>
      pod.metadata.namespace === this.#service.metadata.namespace && this.#pods.has(pod.metadata.name);
    this.#others = (world.cluster?.pods() ?? []).filter((pod) => !own(pod));
  }

  /** One plan, carried out. False when it changed nothing. */
  reconcile(): boolean {
    const plan = makePlan(this.#worldNow(), this.#options);
    for (const action of plan.actions) this.#carryOut(action);
    const same = sameJson(this.#service.status ?? {}, plan.status);
    this.#service = { ...this.#service, status: plan.status };
    this.requeueSeconds = (plan.requeueAfterMs ?? Number.POSITIVE_INFINITY) / 1000;
    const reason = plan.status.conditions?.find((each) => each.type === 'Reconciling')?.reason;
    if (reason !== undefined && !this.#passed.includes(reason)) this.#passed.push(reason);
    const ending = [...this.#pods.values()].some((pod) => pod.metadata.deletionTimestamp !== undefined);
    this.isSettled = plan.actions.length === 0 && same && !ending && reason === undefined;
    return plan.actions.length > 0 || !same;
  }

  /** Time passes and the rest of the cluster acts. False when nothing moved. */
  turn(seconds: number): boolean {
    this.#now = new Date(this.#now.getTime() + seconds * 1000);
    const before = this.#fingerprint();
    for (const pod of [...this.#pods.values()]) {
      if (pod.metadata.deletionTimestamp === undefined) continue;
      this.#pods.delete(pod.metadata.name);
    }
    this.#others = this.#others.filter((pod) => pod.metadata.deletionTimestamp === undefined);
    const deployments = this.#deployments();
    const names = new Set(deployments.map((each) => each.metadata.name));
    for (const pod of this.#pods.values()) {
      if (!names.has(pod.metadata.labels?.[revisionLabel] ?? '')) this.#end(pod);
    }
    for (const deployment of deployments) this.#scale(deployment);
    for (const pod of [...this.#pods.values()]) this.#start(pod);
    for (const deployment of this.#deployments()) this.#report(deployment);
    const ready = [...this.#pods.values()].filter(
      (pod) => isReady(pod) && pod.metadata.deletionTimestamp === undefined,
    ).length;
    this.#leastReady = Math.min(this.#leastReady, ready);
    return this.#fingerprint() !== before;
  }

  result(): Forecast {
    const { status } = this.#service;
    const last = status.updateRevision;
    const podsEnded = [...this.#ended].filter((name) => this.#livePods.has(name)).sort();
    return {
      writes: [...this.#writes.values()],
      podsEnded,
      podsReplaced: podsEnded.filter(
        (name) => this.#livePods.get(name)!.metadata.labels?.[revisionLabel] !== last,
      ),
      podsStarted: this.#started,
      leastReady: Number.isFinite(this.#leastReady) ? this.#leastReady : 0,
      podSpec: this.#podSpecOf(last),
      status,
      passed: this.#passed,
    };
  }

  /** Of a revision that waits for room there is only the record. */
  #podSpecOf(revision: string | undefined): PodSpec {
    const record = this.#children.get(`ControllerRevision/${revision}`);
    const recorded = record === undefined ? undefined : readRecord(record);
    const { template } = (this.#children.get(`Deployment/${revision}`)?.spec ??
      recorded?.deployment ??
      {}) as {
      template?: { spec?: PodSpec };
    };
    return template?.spec ?? {};
  }

  #worldNow(): World {
    const { cluster } = this.#world;
    return {
      ...this.#world,
      service: this.#service,
      children: [...this.#children.values()],
      pods: [...this.#pods.values()],
      now: this.#now,
      ...(cluster === undefined
        ? {}
        : {
            cluster: {
              nodes: () => cluster.nodes(),
              pods: () => this.#allPods(),
              quotas: (namespace) => cluster.quotas(namespace),
            },
          }),
    };
  }

  #allPods(): AnyObject[] {
    return [...this.#others, ...this.#pods.values()];
  }

  #carryOut(action: Action): void {
    const { object } = action;
    const id = idOf(object);
    const live = this.#children.get(id);
    if (action.verb === 'replace') this.#note('update', object, false);
    this.#note(action.verb === 'remove' ? 'delete' : 'patch', object, live === undefined);
    if (action.verb === 'remove') {
      this.#children.delete(id);
      return;
    }
    const { apiVersion: _, kind: __, metadata, ...rest } = object;
    const { labels, annotations, ownerReferences } = metadata;
    this.#children.set(id, {
      ...object,
      metadata: {
        ...metadata,
        uid: live?.metadata.uid ?? `forecast-${id}`,
        generation: (live?.metadata.generation ?? 0) + 1,
        creationTimestamp: live?.metadata.creationTimestamp ?? this.#now.toISOString(),
        managedFields: [
          {
            manager: fieldManager,
            operation: 'Apply',
            fieldsV1: fieldsOf({ metadata: { labels, annotations, ownerReferences }, ...rest }),
          },
        ],
      },
      ...(live?.status === undefined ? {} : { status: live.status }),
    });
  }

  #note(verb: Write['verb'], { kind, metadata: { name } }: AnyObject, creates: boolean): void {
    const key = `${verb} ${kind} ${name}`;
    if (this.#writes.has(key)) return;
    this.#writes.set(key, { verb, kind, name, ...(creates ? { creates } : {}) });
  }

  #deployments(): AnyObject[] {
    return [...this.#children.values()].filter(
      (each) => each.kind === 'Deployment' && isControlledBy(each, this.#service),
    );
  }

  #podsOf(revision: string): AnyObject[] {
    return [...this.#pods.values()].filter(
      (pod) =>
        pod.metadata.labels?.[revisionLabel] === revision && pod.metadata.deletionTimestamp === undefined,
    );
  }

  /** As the ReplicaSet controller does: pods that do not serve end first, then the younger ones. */
  #scale({ metadata: { name: revision }, spec: { replicas, template } }: AnyObject): void {
    const pods = this.#podsOf(revision).sort(
      (a, b) =>
        Number(isReady(a)) - Number(isReady(b)) ||
        age(b) - age(a) ||
        (a.metadata.name < b.metadata.name ? 1 : -1),
    );
    for (const pod of pods.slice(0, Math.max(0, pods.length - replicas))) this.#end(pod);
    for (let index = pods.length; index < replicas; index++) {
      const name = `${revision}-forecast-${++this.#started}`;
      this.#pods.set(name, {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: {
          name,
          namespace: this.#service.metadata.namespace ?? '',
          labels: template.metadata.labels,
          creationTimestamp: this.#now.toISOString(),
        },
        spec: template.spec,
        status: { phase: 'Pending' },
      });
    }
  }

  #end(pod: AnyObject): void {
    if (pod.metadata.deletionTimestamp !== undefined) return;
    this.#ended.add(pod.metadata.name);
    const metadata = { ...pod.metadata, deletionTimestamp: this.#now.toISOString() };
    this.#pods.set(pod.metadata.name, { ...pod, metadata });
  }

  /** Binds a pod where it fits and lets it become ready; one in trouble stays as it is. */
  #start(pod: AnyObject): void {
    if (pod.metadata.deletionTimestamp !== undefined || isReady(pod)) return;
    if (pod.spec?.nodeName === undefined) {
      const node = this.#placeFor(pod);
      if (node === undefined) {
        this.#refuse(pod);
        return;
      }

      this.#look(pod, { nodeName: node }, [{ type: 'PodScheduled', status: 'True' }]);
      return;
    }
    if (worstTrouble([pod], undefined) !== undefined) return;
    this.#look(pod, {}, [
      { type: 'PodScheduled', status: 'True' },
      { type: 'Ready', status: 'True' },
    ]);
  }

  /** A node with room for the pod's GPUs; of everything else there is enough. */
  #placeFor(pod: AnyObject): string | undefined {
    const { cluster } = this.#world;
    const podSpec = pod.spec as PodSpec;
    const somewhere = 'a-node';
    if (cluster === undefined || podRequest(podSpec, this.#resource) === 0) return somewhere;
    const capacity = estimateCapacity({
      nodes: cluster.nodes(),
      pods: this.#allPods(),
      quotas: [],
      podSpec,
      resource: this.#resource,
    });
    if (!capacity.known) return somewhere;
    return capacity.nodes.find(
      (node) => node.excluded === undefined && node.allocatable - node.used >= capacity.perPod,
    )?.name;
  }

  #refuse(pod: AnyObject): void {
    // biome-ignore lint/suspicious/noExplicitAny: a pod condition.
    const before = pod.status?.conditions?.find((each: any) => each.type === 'PodScheduled');
    this.#look(pod, {}, [
      {
        type: 'PodScheduled',
        status: 'False',
        reason: 'Unschedulable',
        message: `0 nodes are available: Insufficient ${this.#resource}.`,
        lastTransitionTime: before?.lastTransitionTime ?? this.#now.toISOString(),
      },
    ]);
  }

  #look(pod: AnyObject, spec: object, conditions: readonly object[]): void {
    this.#pods.set(pod.metadata.name, {
      ...pod,
      spec: { ...pod.spec, ...spec },
      status: { ...pod.status, conditions },
    });
  }

  #report(deployment: AnyObject): void {
    const pods = this.#podsOf(deployment.metadata.name);
    const ready = pods.filter(isReady).length;
    this.#children.set(idOf(deployment), {
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

  #fingerprint(): string {
    const pods = [...this.#pods.values()].map(({ metadata, spec, status }) =>
      [metadata.name, metadata.deletionTimestamp, spec?.nodeName, JSON.stringify(status?.conditions)].join(),
    );
    const deployments = this.#deployments().map((each) => JSON.stringify([each.metadata.name, each.status]));
    return [...pods, ...deployments].join('\n');
  }
}

function age(pod: AnyObject): number {
  return Date.parse(pod.metadata.creationTimestamp ?? '') || 0;
}

function idOf({ kind, metadata }: AnyObject): string {
  return `${kind}/${metadata.name}`;
}

/** As the API server's managedFields, every list being one field. */
function fieldsOf(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .map(([key, member]) => [`f:${key}`, fieldsOf(member)]),
  );
}
