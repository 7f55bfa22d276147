/**
 * Events about pods, as kubelets write them: one object per kind of event, counted up when it repeats, and no oftener
 * than is useful. A lost event is not an error.
 */
import { randomBytes } from 'node:crypto';
import { type KubeClient, KubeError, resources } from '../../operator/kube/client.ts';
import type { Pod } from './pod-types.ts';

export interface PodEvent {
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
  readonly container?: { readonly name: string; readonly kind: 'containers' | 'initContainers' };
}

interface Written {
  readonly name: string;
  count: number;
  writtenAt: number;
  /** Resolves when the object is there. */
  ready: Promise<void>;
}

const repeatIntervalMs = 20_000;
const messageLimit = 1_000;

export class EventRecorder {
  readonly #client: KubeClient;
  readonly #nodeName: string;
  readonly #written = new Map<string, Written>();
  readonly #onFailure: (error: unknown) => void;

  constructor(client: KubeClient, nodeName: string, onFailure: (error: unknown) => void) {
    this.#client = client;
    this.#nodeName = nodeName;
    // A namespace that is being deleted takes no more events, and has no more readers.
    this.#onFailure = (error) => {
      if (!(error instanceof KubeError && (error.status === 403 || error.status === 404))) onFailure(error);
    };
  }

  record(pod: Pod, event: PodEvent): void {
    const { namespace, name, uid } = pod.metadata;
    const message = event.message.slice(0, messageLimit);
    const key = JSON.stringify([uid, event.type, event.reason, message, event.container?.name]);
    const now = Date.now();
    const time = new Date(now).toISOString().replace(/\.\d+Z$/, 'Z');
    const known = this.#written.get(key);
    if (known) {
      known.count++;
      if (now - known.writtenAt < repeatIntervalMs) return;
      known.writtenAt = now;
      const patch = { count: known.count, lastTimestamp: time };
      known.ready = known.ready
        .then(() =>
          this.#client.mergePatch(resources.events, { namespace: namespace!, name: known.name }, patch),
        )
        .then(() => {}, this.#onFailure);
      return;
    }
    const eventName = `${name}.${randomBytes(8).toString('hex')}`;
    const object = {
      apiVersion: 'v1',
      kind: 'Event',
      metadata: { name: eventName, namespace: namespace! },
      involvedObject: {
        apiVersion: 'v1',
        kind: 'Pod',
        namespace,
        name,
        uid,
        ...(event.container ? { fieldPath: `spec.${event.container.kind}{${event.container.name}}` } : {}),
      },
      type: event.type,
      reason: event.reason,
      message,
      source: { component: 'process-node', host: this.#nodeName },
      reportingComponent: 'process-node',
      reportingInstance: this.#nodeName,
      count: 1,
      firstTimestamp: time,
      lastTimestamp: time,
    };
    const ready = this.#client.create(resources.events, object).then(() => {}, this.#onFailure);
    this.#written.set(key, { name: eventName, count: 1, writtenAt: now, ready });
  }

  /** Nothing more will be said about this pod. */
  forget(pod: Pod): void {
    const prefix = JSON.stringify([pod.metadata.uid]).slice(0, -1);
    for (const key of this.#written.keys()) {
      if (key.startsWith(prefix)) this.#written.delete(key);
    }
  }

  /** Resolves when everything recorded so far was sent or has failed. */
  async flush(): Promise<void> {
    await Promise.all([...this.#written.values()].map((written) => written.ready));
  }
}
