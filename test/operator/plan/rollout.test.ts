/**
 * Rollouts walked step by step: what the conditions say after every reconcile, what the pods do meanwhile, what is said in
 * words. The conditions are those that GitOps tools read, so every step of every rollout is written down.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { InferenceServiceSpec, RolloutPolicy } from '../../../operator/api/inference-service.ts';
import { noticesOf } from '../../../operator/plan/notices.ts';
import { badPath, crashPath, missingImage, refusedPath, SimulatedCluster } from './simulated-cluster.ts';

const spec = (path: string, more: Partial<InferenceServiceSpec> = {}): InferenceServiceSpec => ({
  model: { path },
  replicas: 1,
  gpus: 4,
  storage: { persistentVolumeClaim: { claimName: 'models' } },
  ...more,
});

function settled(first: InferenceServiceSpec, gpus: number, seesNodes = true): SimulatedCluster {
  const cluster = new SimulatedCluster(first, gpus);
  cluster.seesNodes = seesNodes;
  cluster.settle(10);
  assert.equal(cluster.condition('Ready')?.status, 'True');
  return cluster;
}

/** `A R` settled; `A r Reconciling:RollingOut`; Paused with its reason behind it. */
function line(cluster: SimulatedCluster): string {
  const of = (type: string) => cluster.condition(type);
  const words = [of('Available').status === 'True' ? 'A' : 'a', of('Ready').status === 'True' ? 'R' : 'r'];
  for (const type of ['Reconciling', 'Stalled', 'Paused'])
    if (of(type) !== undefined) {
      assert.equal(of(type).status, 'True', `${type} is there only while true`);
      words.push(`${type}:${of(type).reason}`);
    }
  for (const each of cluster.service.status.conditions)
    assert.equal(each.observedGeneration, cluster.service.metadata.generation);
  return words.join(' ');
}

interface Walk {
  readonly lines: string[];
  readonly events: string[];
  /** Fewest ready pods on the way. */
  readonly fewest: number;
}

function walk(cluster: SimulatedCluster, turns: number, seconds = 10): Walk {
  const lines: string[] = [];
  const events: string[] = [];
  let fewest = Number.POSITIVE_INFINITY;
  for (let turn = 0; turn < turns; turn++) {
    const before = cluster.service.status;
    cluster.reconcile();
    events.push(
      ...noticesOf(before, cluster.service.status).map((each) => `${each.reason}: ${each.message}`),
    );
    const now = line(cluster);
    if (lines.at(-1) !== now) lines.push(now);
    cluster.turn(seconds);
    fewest = Math.min(fewest, cluster.readyPods);
  }
  return { lines, events, fewest };
}

const surge = ['A r Reconciling:RollingOut', 'A R'];
const gap = [
  'A r Reconciling:CapacityGap',
  'a r Reconciling:CapacityGap',
  'A r Reconciling:RollingOut',
  'A R',
];
const rolledBack = (trouble: string[]) => [
  ...['A r Reconciling:RollingOut', ...trouble],
  'A r Reconciling:RollingBack',
  'A r Stalled:RolledBack',
];

interface Case {
  readonly gpus: number;
  readonly before?: Partial<InferenceServiceSpec>;
  readonly after?: Partial<InferenceServiceSpec>;
  readonly path?: string;
  readonly rollout?: RolloutPolicy;
  /** False: what is free is not known. */
  readonly seesNodes?: false;
  readonly lines: string[];
  readonly fewest: number;
  readonly says?: RegExp;
  readonly decision?: string | undefined;
}

const cases: Record<string, Case> = {
  'free GPUs: beside the old one, without a gap': {
    gpus: 8,
    lines: surge,
    fewest: 1,
    decision: 'Surge',
    says: /^4 GPUs needed on one node, 4 of 8 free on node-a: surge$/,
  },
  'a full node: in place, announced first': {
    gpus: 4,
    lines: gap,
    fewest: 0,
    decision: 'Recreate',
    says: /^4 GPUs needed on one node, 0 of 4 free on node-a: recreate in place$/,
  },
  'GPUs free, but too few on the node: in place': {
    gpus: 6,
    lines: gap,
    fewest: 0,
    decision: 'Recreate',
    says: /2 of 6 free on node-a: recreate in place$/,
  },
  'a full node and whenInsufficient Wait: nothing moves': {
    gpus: 4,
    rollout: { capacity: { whenInsufficient: 'Wait' } },
    lines: ['A r Reconciling:CapacityWait'],
    fewest: 1,
    decision: 'Wait',
    says: /0 of 4 free on node-a: wait until there is room$/,
  },
  'a full node and strategy Surge: nothing moves': {
    gpus: 4,
    rollout: { strategy: 'Surge' },
    lines: ['A r Reconciling:CapacityWait'],
    fewest: 1,
    decision: 'Wait',
  },
  'more GPUs wanted than the node has: the old one stays': {
    gpus: 4,
    after: { gpus: 8 },
    lines: ['A r Reconciling:CapacityWait'],
    fewest: 1,
    decision: 'Wait',
    says: /no old pod could make room$/,
  },
  'a full node that may grow: the new pod stays Pending': {
    gpus: 4,
    rollout: { capacity: { mode: 'MayGrow' }, progressDeadlineSeconds: 10_000 },
    lines: ['A r Reconciling:RollingOut', 'A r Reconciling:Unschedulable'],
    fewest: 1,
    decision: 'Surge',
  },
  'capacity unknown and room there: tried, and it works': {
    gpus: 8,
    seesNodes: false,
    lines: surge,
    fewest: 1,
    decision: 'Surge',
    says: /cannot be estimated: the nodes are not seen/,
  },
  'capacity unknown and no room: tried, withdrawn, then in place': {
    gpus: 4,
    seesNodes: false,
    lines: ['A r Reconciling:RollingOut', 'A r Reconciling:Unschedulable', ...gap],
    fewest: 0,
    decision: 'Recreate',
    says: /Insufficient nvidia\.com\/gpu.*recreate in place$/,
  },
  'capacity unknown, no room, and Wait: withdrawn': {
    gpus: 4,
    seesNodes: false,
    rollout: { capacity: { whenInsufficient: 'Wait', waitSeconds: 200 } },
    lines: ['A r Reconciling:RollingOut', 'A r Reconciling:Unschedulable', 'A r Reconciling:CapacityWait'],
    fewest: 1,
    decision: 'Wait',
  },
  'strategy Recreate: announced, also where there is room': {
    gpus: 8,
    rollout: { strategy: 'Recreate' },
    lines: gap,
    fewest: 0,
    decision: 'Recreate',
    says: /^the strategy is Recreate: recreate in place$/,
  },
  'three replicas and room for one more: one at a time': {
    gpus: 4,
    before: { replicas: 3, gpus: 1 },
    after: { replicas: 3, gpus: 1 },
    lines: surge,
    fewest: 3,
    decision: 'Surge',
  },
  'a surge of three and room for one: a partial surge': {
    gpus: 4,
    before: { replicas: 3, gpus: 1 },
    after: { replicas: 3, gpus: 1 },
    rollout: { maxSurge: '100%' },
    lines: surge,
    fewest: 3,
    decision: 'PartialSurge',
    says: /1 of 4 free on node-a: surge by 1$/,
  },
  'three replicas on a full node: one old pod at a time makes room': {
    gpus: 3,
    before: { replicas: 3, gpus: 1 },
    after: { replicas: 3, gpus: 1 },
    lines: ['A r Reconciling:CapacityGap', 'A r Reconciling:RollingOut', 'A R'],
    fewest: 2,
    decision: 'Recreate',
  },
  'maxUnavailable 1 and no surge on a full node: no gap is needed': {
    gpus: 3,
    before: { replicas: 3, gpus: 1 },
    after: { replicas: 3, gpus: 1 },
    rollout: { maxSurge: 0, maxUnavailable: 1 },
    lines: surge,
    fewest: 2,
  },
  'maxUnavailable that ends the only pod is announced as a gap': {
    gpus: 4,
    rollout: { maxSurge: 0, maxUnavailable: 1 },
    lines: gap,
    fewest: 0,
    decision: 'Recreate',
  },
  'a crash loop: rolled back': {
    gpus: 8,
    path: crashPath,
    lines: rolledBack([]),
    fewest: 1,
  },
  'flags that the runtime refuses: rolled back': {
    gpus: 8,
    path: refusedPath,
    lines: rolledBack([]),
    fewest: 1,
  },
  'an image that is not there: rolled back': {
    gpus: 8,
    after: { image: missingImage },
    lines: rolledBack(['A r Reconciling:ImagePullFailed']),
    fewest: 1,
  },
  'never ready: rolled back at the deadline': {
    gpus: 8,
    path: badPath,
    rollout: { progressDeadlineSeconds: 100 },
    lines: rolledBack([]),
    fewest: 1,
  },
  'a crash loop in a gap: the old one comes back': {
    gpus: 4,
    path: crashPath,
    lines: [
      'A r Reconciling:CapacityGap',
      'a r Reconciling:CapacityGap',
      'a r Reconciling:RollingBack',
      'A r Stalled:RolledBack',
    ],
    fewest: 0,
  },
  'a crash loop and onFailure Hold: everything stays': {
    gpus: 8,
    path: crashPath,
    rollout: { onFailure: 'Hold' },
    lines: ['A r Reconciling:RollingOut', 'A r Stalled:CrashLoop'],
    fewest: 1,
  },
  'paused: nothing moves': {
    gpus: 8,
    rollout: { paused: true },
    lines: ['A r Reconciling:ManualPause Paused:ManualPause'],
    fewest: 1,
  },
  'promotion by hand: the new one waits, ready, beside the old one': {
    gpus: 8,
    rollout: { promotion: 'Manual' },
    lines: ['A r Reconciling:RollingOut', 'A r Reconciling:ManualPause Paused:AwaitingPromotion'],
    fewest: 2,
  },
  'promotion by hand on a full node: the gap waits for a person too': {
    gpus: 4,
    rollout: { promotion: 'Manual' },
    lines: ['A r Reconciling:ManualPause Paused:AwaitingPromotion'],
    fewest: 1,
  },
  'suspended: no pods, and that is as asked': {
    gpus: 4,
    path: '/a',
    after: { suspend: true },
    lines: ['A r Reconciling:Scaling', 'a R'],
    fewest: 0,
  },
};

for (const [name, each] of Object.entries(cases)) {
  test(name, () => {
    const cluster = settled(spec('/a', each.before), each.gpus, each.seesNodes !== false);
    cluster.edit(
      spec(each.path ?? '/b', {
        ...each.before,
        ...each.after,
        ...(each.rollout === undefined ? {} : { rollout: each.rollout }),
      }),
    );
    const { lines, fewest, events } = walk(cluster, 80);
    assert.deepEqual(lines, each.lines);
    assert.equal(fewest, each.fewest);
    const said = events.find((event) => /^Rollout(Surge|PartialSurge|Recreate|Wait): /.test(event)) ?? '';
    const decided = events.filter((event) => event.startsWith('Rollout')).at(-1) ?? said;
    if (each.decision !== undefined)
      assert.ok(decided.startsWith(`Rollout${each.decision}: `), events.join('\n'));
    if (each.says !== undefined) assert.match(decided.replace(/^\w+: /, ''), each.says);
    const { service } = cluster;
    cluster.reconcile();
    assert.deepEqual(cluster.service, service, 'what is settled is not written again');
  });
}

const last = (cluster: SimulatedCluster) => walk(cluster, 40).lines.at(-1);

test('a failed revision is named with its cause, and not tried again until its inputs change', () => {
  const cluster = settled(spec('/a'), 8);
  const { currentRevision } = cluster.service.status;
  cluster.edit(spec(refusedPath));
  walk(cluster, 20);
  const { failure } = cluster.service.status.rollout;
  assert.equal(failure.reason, 'RuntimeConfigRejected');
  assert.match(cluster.condition('Stalled').message, /RuntimeConfigRejected: .*--max-length "0"/);
  assert.equal(cluster.child('Deployment', failure.revision), undefined);
  assert.equal(cluster.service.status.currentRevision, currentRevision);
  const phases = cluster.service.status.revisions.map((each: { phase: string }) => each.phase);
  assert.deepEqual(phases.sort(), ['Failed', 'Stable']);
  cluster.edit(spec(refusedPath, { replicas: 2, gpus: 4 }));
  walk(cluster, 10);
  assert.equal(cluster.child('Deployment', failure.revision), undefined, 'a scale is no new try');
  assert.equal(cluster.readyPods, 2, 'the stable revision follows it');
  cluster.edit(spec('/c'));
  assert.equal(last(cluster), 'A R');
  assert.equal(cluster.service.status.rollout.failure, undefined);
});

test('a retry tries the failed revision once more', () => {
  const cluster = settled(spec('/a'), 8);
  cluster.edit(spec(crashPath));
  walk(cluster, 20);
  const { revision } = cluster.service.status.rollout.failure;
  cluster.hold('Retry');
  cluster.reconcile();
  assert.equal(cluster.service.status.rollout.hold, undefined, 'done');
  cluster.reconcile();
  assert.ok(cluster.child('Deployment', revision));
  assert.equal(last(cluster), 'A r Stalled:RolledBack');
});

test('an abort goes back, a promotion goes on, a pause holds, and each ends with the next generation', () => {
  const cluster = settled(spec('/a'), 8);
  cluster.edit(spec('/b', { rollout: { promotion: 'Manual' } }));
  assert.equal(last(cluster), 'A r Reconciling:ManualPause Paused:AwaitingPromotion');
  cluster.hold('Abort');
  assert.equal(last(cluster), 'A r Stalled:RolledBack');
  assert.match(cluster.condition('Stalled').message, /Aborted/);
  cluster.edit(spec('/c', { rollout: { promotion: 'Manual' } }));
  assert.equal(last(cluster), 'A r Reconciling:ManualPause Paused:AwaitingPromotion');
  cluster.hold('Promote');
  assert.equal(last(cluster), 'A R');
  assert.equal(cluster.service.status.rollout.hold, undefined);
  cluster.hold('Pause');
  assert.equal(last(cluster), 'A R Paused:ManualPause');
  cluster.edit(spec('/d'));
  assert.equal(last(cluster), 'A R');
  assert.equal(cluster.service.status.rollout.hold, undefined);
});

test('rollbackTo serves an earlier revision, and says what is not rolled out meanwhile', () => {
  const cluster = settled(spec('/a'), 8);
  const first = cluster.service.status.currentRevision;
  cluster.edit(spec('/b'));
  assert.equal(last(cluster), 'A R');
  cluster.edit(spec('/b', { rollout: { rollbackTo: first } }));
  assert.equal(last(cluster), 'A R Paused:PinnedToRevision');
  assert.equal(cluster.service.status.currentRevision, first);
  cluster.edit(spec('/c', { rollout: { rollbackTo: first } }));
  assert.equal(last(cluster), 'A R Paused:PinnedToRevision');
  cluster.edit(spec('/c', { rollout: { rollbackTo: 'chat-none' } }));
  assert.equal(last(cluster), 'A r Stalled:RevisionNotFound');
  assert.match(cluster.condition('Stalled').message, /chat-none/);
});

test('a pod that finds no node is left to wait where no old pod is left to make room', () => {
  const two = (path: string, rollout: RolloutPolicy = {}) =>
    spec(path, { replicas: 2, gpus: 2, rollout: { capacity: { waitSeconds: 2 }, ...rollout } });
  const cluster = settled({ ...two('/tiny'), replicas: 1 }, 3);
  cluster.edit(two('/tiny'));
  walk(cluster, 3);
  cluster.edit(two('/tiny2'));
  walk(cluster, 6);
  assert.equal(cluster.condition('Reconciling').reason, 'CapacityGap');
  // The announcement of the gap is lost to the pause.
  cluster.edit(two('/tiny2', { paused: true }));
  walk(cluster, 3);
  cluster.edit(two('/tiny2'));
  assert.deepEqual(walk(cluster, 40).lines, ['A r Reconciling:Unschedulable']);
  assert.equal(cluster.podsOf(cluster.service.status.updateRevision).length, 2);
});

test('a new Deployment whose pods are still to be made is no sign that GPUs lack', () => {
  const more = { gpus: 1, replicas: 2 };
  const cluster = settled(spec('/a', more), 8);
  cluster.edit(spec('/b', more));
  for (let again = 0; again < 4; again++) cluster.reconcile();
  assert.equal(cluster.service.status.rollout.decision, 'Surge');
  assert.equal(line(cluster), 'A r Reconciling:RollingOut');
});

test('history is as long as asked for', () => {
  const cluster = settled(spec('/0'), 8);
  for (let index = 1; index < 6; index++) {
    cluster.edit(spec(`/${index}`, { revisionHistoryLimit: 2 }));
    walk(cluster, 10);
  }
  const records = [...cluster.children.values()].filter((each) => each.kind === 'ControllerRevision');
  assert.equal(records.length, 3);
});

test('the first revision has nothing to return to: it stalls at the deadline, and recovers', () => {
  const cluster = new SimulatedCluster(spec(badPath, { rollout: { progressDeadlineSeconds: 60 } }), 4);
  const { lines } = walk(cluster, 20);
  assert.deepEqual(lines, ['a r Reconciling:Starting', 'a r Stalled:ProgressDeadlineExceeded']);
  cluster.edit(spec('/good'));
  assert.equal(last(cluster), 'A R');
});

test('cut off anywhere, a rollout with room never has fewer ready pods than its bound', () => {
  const step = fc.oneof(
    fc.record({ path: fc.constantFrom('/a', '/b', '/c', badPath, crashPath, refusedPath) }),
    fc.record({ crashAfter: fc.integer({ min: 0, max: 4 }) }),
    fc.record({ seconds: fc.constantFrom(1, 30, 400) }),
  );
  const policy = fc.record({ maxSurge: fc.constantFrom(1, 2, '50%'), maxUnavailable: fc.constantFrom(0, 1) });
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 60 }),
      policy,
      fc.integer({ min: 2, max: 4 }),
      (steps, rollout, replicas) => {
        const cluster = settled(spec('/a', { gpus: 1, replicas }), 100);
        for (const each of steps) {
          if ('path' in each)
            cluster.edit(
              spec(each.path, { gpus: 1, replicas, rollout: { ...rollout, progressDeadlineSeconds: 300 } }),
            );
          else if ('crashAfter' in each) cluster.reconcile(each.crashAfter);
          else cluster.turn(each.seconds);
          assert.ok(cluster.readyPods >= replicas - rollout.maxUnavailable, JSON.stringify(each));
        }
      },
    ),
    { numRuns: 100 },
  );
});
