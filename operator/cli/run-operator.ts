/**
 * The operator put together: caches, leader election, one controller for each term, probes, metrics. Enters: options, a
 * client, a log, a signal. Resolves when the signal has aborted, work has ended and the lease is released.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { setFlagsFromString } from 'node:v8';
import type { Logger } from 'pino';
import type { OperatorConfig } from '../config.ts';
import { systemClock } from '../controller/clock.ts';
import { Controller } from '../controller/controller.ts';
import { EventRecorder } from '../controller/event-recorder.ts';
import { fencedClient } from '../controller/fenced-client.ts';
import { LeaderElector } from '../controller/leader.ts';
import type { KubeClient } from '../kube/client.ts';
import { inferenceServiceReconciler } from '../reconcilers/inference-service.ts';
import { RecentWrites } from '../reconcilers/recent-writes.ts';
import { Sources } from '../reconcilers/sources.ts';
import { serveRoutes } from './http-server.ts';
import { OperatorMetrics } from './metrics.ts';

export const leaseName = 'sluice-operator';

export interface OperatorParts {
  readonly config: OperatorConfig;
  readonly client: KubeClient;
  /** Where the Lease is. */
  readonly namespace: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** Throws when a port is taken. For a process of its own: it sets how V8 keeps its heap. */
export async function runOperator({ config, client, namespace, log, signal }: OperatorParts): Promise<void> {
  keepHeapSmall();
  const clock = systemClock;
  const random = Math.random;
  const metrics = new OperatorMetrics();
  const identity = `${hostname()}_${randomBytes(4).toString('hex')}`;
  const sources = new Sources({
    client,
    clock,
    random,
    log,
    namespaces: config.watchNamespaces ?? [],
    metrics: (resource) => metrics.reflector(resource),
  });
  let controller: Controller | undefined;

  /** Works until `until` aborts, writing through `writer`. */
  const work = async (writer: KubeClient, until: AbortSignal): Promise<void> => {
    // Of this term alone: what another leader wrote since is only in the caches.
    const recent = new RecentWrites();
    const events = new EventRecorder({
      client: writer,
      component: 'sluice-operator',
      instance: identity,
      clock,
      random,
      log,
    });
    controller = new Controller({
      name: 'inferenceservice',
      reconcile: inferenceServiceReconciler({
        client: writer,
        sources,
        recent,
        plan: { runtimeImage: config.runtimeImage },
        now: () => clock.now(),
        notify: (object, notice) => events.record(object, notice),
        onWrite: (verb, kind) => metrics.childWritten(verb, kind),
      }),
      workers: config.workers,
      ready: sources.capacityTried,
      clock,
      random,
      log,
      metrics: metrics.controller,
    });
    const unsubscribe = sources.onDeleted((object) => recent.forget(object));
    sources.feed(controller);
    await controller.run(until);
    unsubscribe();
    await events.flush();
  };

  const elector = config.leaderElect
    ? new LeaderElector({ client, namespace, name: leaseName, identity, clock, random, log })
    : undefined;
  metrics.observe({
    isLeader: () => elector?.isLeader ?? true,
    queueDepth: () => controller?.depth ?? 0,
    inferenceServices: () => sources.size,
  });
  const servers = await Promise.all([
    serveRoutes(config.host, config.healthPort, {
      '/livez': () => ({ status: 200, body: 'ok\n' }),
      '/readyz': () =>
        sources.hasSynced
          ? { status: 200, body: 'ok\n' }
          : { status: 503, body: `not read yet: ${sources.missing.join(', ')}\n` },
    }),
    serveRoutes(config.host, config.metricsPort, {
      '/metrics': async () => ({
        status: 200,
        body: await metrics.text(),
        contentType: 'text/plain; version=0.0.4; charset=utf-8',
      }),
    }),
  ]);
  log.info({ identity, healthPort: servers[0].port, metricsPort: servers[1].port }, 'operator started');
  const watching = [...sources.reflectors, ...sources.capacityReflectors].map((each) => each.run(signal));
  try {
    if (elector === undefined) await work(client, signal);
    else await elector.run((term) => work(fencedClient(client, term), term.signal), signal);
  } finally {
    await Promise.all([...watching, ...servers.map((server) => server.close())]);
  }
  log.info({ identity }, 'operator stopped');
}

/**
 * What is read once and dropped (10,000 pods of others, page by page) makes V8's young heap grow to 64 MB and its old one
 * to twice what lives, and neither shrinks: 144 MB for those pods, and 20 so. Collecting more often costs little
 * where almost nothing is computed.
 */
function keepHeapSmall(): void {
  setFlagsFromString('--semi-space-growth-factor=1');
  setFlagsFromString('--heap-growing-percent=30');
}
