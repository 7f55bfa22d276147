/**
 * What this process wrote and its caches may not have seen yet, so that a reconcile on an old cache does not write the
 * same thing again. Enters: the API server's answers. Leaves: the newer of two states. Holds nothing that a cache has
 * caught up with.
 */
import type { KubeObject } from '../kube/client.ts';

export class RecentWrites {
  readonly #written = new Map<string, KubeObject>();
  /** By uid: objects whose deletion was accepted. */
  readonly #removed = new Set<string>();

  noteWritten(object: KubeObject): void {
    this.#written.set(keyOf(object), object);
  }

  noteRemoved(object: KubeObject): void {
    this.#written.delete(keyOf(object));
    if (object.metadata.uid !== undefined) this.#removed.add(object.metadata.uid);
  }

  /** The state to go by, of a kind and name, given what the cache has. */
  newest(
    kind: string,
    namespace: string,
    name: string,
    cached: KubeObject | undefined,
  ): KubeObject | undefined {
    const key = `${kind}/${namespace}/${name}`;
    const written = this.#written.get(key);
    if (cached === undefined) return written;
    if (cached.metadata.uid !== undefined && this.#removed.has(cached.metadata.uid)) return undefined;
    if (written === undefined) return cached;
    if (written.metadata.uid === cached.metadata.uid && isOlder(cached, written)) return written;
    this.#written.delete(key);
    return cached;
  }

  /** The cache saw the object go: what was written of it, and that it was removed, is history. */
  forget(object: KubeObject): void {
    const written = this.#written.get(keyOf(object));
    if (written?.metadata.uid === object.metadata.uid) this.#written.delete(keyOf(object));
    if (object.metadata.uid !== undefined) this.#removed.delete(object.metadata.uid);
  }
}

function keyOf({ kind, metadata }: KubeObject): string {
  return `${kind}/${metadata.namespace ?? ''}/${metadata.name}`;
}

/** Resource versions are decimal numbers that grow (guaranteed since Kubernetes 1.35, true before). */
function isOlder(a: KubeObject, b: KubeObject): boolean {
  const [left, right] = [a.metadata.resourceVersion ?? '', b.metadata.resourceVersion ?? ''];
  return left.length === right.length ? left < right : left.length < right.length;
}
