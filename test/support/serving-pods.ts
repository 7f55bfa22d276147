// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/**
 * A namespace's pods as a watch tells them, one event after the other, so that no moment is missed: how many served, and what
 * was the least. Ends with the test, or when it is stopped.
 */
import type { TestContext } from 'node:test';
import { type KubeClient, type KubeObject, resources } from '../../operator/kube/client.ts';

export class ServingPods {
  readonly #pods = new Map<string, KubeObject>();
  readonly #over = new AbortController();
  #fewest = Number.POSITIVE_INFINITY;

  /** Begins with what is there now. */
  static async watch(t: TestContext, client: KubeClient, namespace: string): Promise<ServingPods> {
    const watched = new ServingPods();
    const { items, resourceVersion } = await client.list(resources.pods, { namespace });
    for (const pod of items) watched.#pods.set(pod.metadata.name, pod);
    watched.countAgain();
    const following = watched.#follow(client, namespace, resourceVersion);
    t.after(async () => {
      watched.stop();
      await following;
    });
    return watched;
  }

  /** Ready, and not told to end. */
  get serving(): KubeObject[] {
    return this.all.filter(
      (pod) =>
        pod.metadata.deletionTimestamp === undefined &&
        pod.status?.conditions?.some((each: any) => each.type === 'Ready' && each.status === 'True'),
    );
  }

  get all(): KubeObject[] {
    return [...this.#pods.values()];
  }

  /** The least that served at any moment since the count began. */
  get fewest(): number {
    return this.#fewest;
  }

  countAgain(): void {
    this.#fewest = this.serving.length;
  }

  stop(): void {
    this.#over.abort();
  }

  async #follow(client: KubeClient, namespace: string, resourceVersion: string): Promise<void> {
    const { signal } = this.#over;
    try {
      for await (const event of client.watch(resources.pods, { namespace, resourceVersion, signal })) {
        if (event.type === 'BOOKMARK') continue;
        const { name } = event.object.metadata;
        if (event.type === 'DELETED') this.#pods.delete(name);
        else this.#pods.set(name, event.object);
        this.#fewest = Math.min(this.#fewest, this.serving.length);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    // A watch that the server ended would miss what comes.
    if (!signal.aborted) this.#fewest = Number.NaN;
  }
}
