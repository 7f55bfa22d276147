/**
 * Every metric of the operator, named once. Enters: what controller and caches report. Leaves: the text of /metrics.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { ControllerMetrics } from '../controller/controller.ts';
import type { ReflectorMetrics } from '../controller/reflector.ts';

/** What is looked up when the metrics are asked for. */
export interface Gauges {
  readonly isLeader: () => boolean;
  readonly queueDepth: () => number;
  readonly inferenceServices: () => number;
}

export class OperatorMetrics {
  readonly #registry = new Registry();
  readonly #reconciles: Counter;
  readonly #reconcileSeconds: Histogram;
  readonly #queueSeconds: Histogram;
  readonly #retries: Counter;
  readonly #writes: Counter;
  readonly #lists: Counter;
  readonly #watchEnds: Counter;
  readonly #watchEvents: Counter;

  constructor() {
    const registers = [this.#registry];
    collectDefaultMetrics({ register: this.#registry });
    const buckets = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30];
    this.#reconciles = new Counter({
      name: 'sluice_operator_reconciles_total',
      help: 'Reconciles ended, by outcome',
      labelNames: ['outcome'],
      registers,
    });
    this.#reconcileSeconds = new Histogram({
      name: 'sluice_operator_reconcile_seconds',
      help: 'Time that a reconcile took',
      buckets,
      registers,
    });
    this.#queueSeconds = new Histogram({
      name: 'sluice_operator_queue_seconds',
      help: 'Time that a key waited for a worker',
      buckets,
      registers,
    });
    this.#retries = new Counter({
      name: 'sluice_operator_retries_total',
      help: 'Reconciles put off after a failure',
      registers,
    });
    this.#writes = new Counter({
      name: 'sluice_operator_child_writes_total',
      help: 'Writes of children, by verb and kind',
      labelNames: ['verb', 'kind'],
      registers,
    });
    this.#lists = new Counter({
      name: 'sluice_operator_lists_total',
      help: 'Lists read to fill a cache',
      labelNames: ['resource'],
      registers,
    });
    this.#watchEnds = new Counter({
      name: 'sluice_operator_watch_ends_total',
      help: 'Watches ended, by reason',
      labelNames: ['resource', 'reason'],
      registers,
    });
    this.#watchEvents = new Counter({
      name: 'sluice_operator_watch_events_total',
      help: 'Events of watches',
      labelNames: ['resource'],
      registers,
    });
  }

  observe({ isLeader, queueDepth, inferenceServices }: Gauges): void {
    const gauge = (name: string, help: string, read: () => number) =>
      new Gauge({
        name,
        help,
        registers: [this.#registry],
        collect() {
          this.set(read());
        },
      });
    gauge('sluice_operator_leader', '1 while this process holds the lease', () => (isLeader() ? 1 : 0));
    gauge('sluice_operator_queue_depth', 'Keys that wait for a worker', queueDepth);
    gauge('sluice_operator_inference_services', 'InferenceServices in the cache', inferenceServices);
  }

  get controller(): ControllerMetrics {
    return {
      reconciled: (outcome, durationMs) => {
        this.#reconciles.inc({ outcome });
        this.#reconcileSeconds.observe(durationMs / 1000);
      },
      taken: (queuedMs) => this.#queueSeconds.observe(queuedMs / 1000),
      retried: () => this.#retries.inc(),
    };
  }

  reflector(resource: string): ReflectorMetrics {
    return {
      listed: () => this.#lists.inc({ resource }),
      event: () => this.#watchEvents.inc({ resource }),
      watchEnded: (reason) => this.#watchEnds.inc({ resource, reason }),
    };
  }

  childWritten(verb: string, kind: string): void {
    this.#writes.inc({ verb, kind });
  }

  text(): Promise<string> {
    return this.#registry.metrics();
  }
}
