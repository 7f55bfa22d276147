/**
 * A pod's object at the API server: what it was last, its status written whenever it changes, its final deletion. In:
 * a way to compute the status; out: requests. Must not know what the status means.
 */
import { type KubeClient, KubeError, resources } from '../../operator/kube/client.ts';
import type { Pod, PodStatus } from './pod-types.ts';
import { pause } from './wait.ts';

export interface PodObjectOptions {
  readonly client: KubeClient;
  readonly computeStatus: () => PodStatus;
  /** A request that failed and will be tried again. */
  readonly onFailure: (error: unknown) => void;
}

const retryMs = 1_000;

export class PodObject {
  readonly #options: PodObjectOptions;
  #pod: Pod;
  /** Nothing more is written: the object is gone, or the node goes. */
  #closed = false;
  #dirty = false;
  #writing: Promise<void> | undefined;

  constructor(pod: Pod, options: PodObjectOptions) {
    this.#pod = pod;
    this.#options = options;
  }

  get current(): Pod {
    return this.#pod;
  }

  /** What the watch or a request brought; older than what is known counts for nothing. */
  observe(pod: Pod): void {
    if (version(pod) >= version(this.#pod)) this.#pod = pod;
  }

  /** The status is another than before. What changes together is written together. */
  changed(): void {
    this.#dirty = true;
    if (this.#closed) return;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
      if (this.#dirty) this.changed();
    });
  }

  /** Resolves when the API server has the status of now. */
  async flush(): Promise<void> {
    while (this.#writing) await this.#writing;
  }

  close(): void {
    this.#closed = true;
  }

  /** The final deletion, of this very object. Nothing is written after it. */
  async delete(): Promise<void> {
    const { uid } = this.#pod.metadata;
    while (!this.#closed) {
      try {
        await this.#options.client.remove(resources.pods, this.#ref, { gracePeriodSeconds: 0, uid: uid! });
        this.#closed = true;
      } catch (error) {
        // 409: another object has the name by now.
        if (error instanceof KubeError && error.status === 409) this.#closed = true;
        else await this.#retryLater(error);
      }
    }
  }

  get #ref() {
    const { namespace, name } = this.#pod.metadata;
    return { namespace: namespace!, name };
  }

  async #write(): Promise<void> {
    await Promise.resolve();
    const { client, computeStatus } = this.#options;
    while (this.#dirty && !this.#closed) {
      this.#dirty = false;
      const { uid, resourceVersion } = this.#pod.metadata;
      // Of this very object, and over no other writer's conditions.
      const patch = { metadata: { uid, resourceVersion }, status: computeStatus() };
      try {
        this.observe(
          (await client.mergePatch(resources.pods, this.#ref, patch, { subresource: 'status' })) as Pod,
        );
      } catch (error) {
        this.#dirty = true;
        if (error instanceof KubeError && error.status === 404) this.#closed = true;
        else if (error instanceof KubeError && error.status === 409) await this.#reread();
        else await this.#retryLater(error);
      }
    }
  }

  async #reread(): Promise<void> {
    try {
      const current = (await this.#options.client.get(resources.pods, this.#ref)) as Pod | undefined;
      if (current?.metadata.uid === this.#pod.metadata.uid) this.observe(current!);
      else this.#closed = true;
    } catch (error) {
      await this.#retryLater(error);
    }
  }

  async #retryLater(error: unknown): Promise<void> {
    this.#options.onFailure(error);
    await pause(retryMs);
  }
}

/** Resource versions of one resource are numbers that grow. */
function version(pod: Pod): bigint {
  return BigInt(pod.metadata.resourceVersion ?? '0');
}
