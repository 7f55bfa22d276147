/**
 * The objects of one type as last seen, by key and by indexes. Enters: whole objects; leaves: frozen ones, shared by all
 * readers. Must not know where they come from.
 */
import type { KubeObject, ObjectRef } from '../kube/client.ts';

/** "namespace/name", or "name" for an object without a namespace. */
type ObjectKey = string;

export function keyOf(object: KubeObject | ObjectRef): ObjectKey {
  const { namespace, name } = 'metadata' in object ? (object as KubeObject).metadata : (object as ObjectRef);
  return namespace === undefined ? name! : `${namespace}/${name}`;
}

export function refOf(key: ObjectKey): ObjectRef {
  const slash = key.indexOf('/');
  return slash === -1 ? { name: key } : { namespace: key.slice(0, slash), name: key.slice(slash + 1) };
}

/** The values under which an object is found; none when it has no place in the index. */
export type Index = (object: KubeObject) => readonly string[];

/** Under the uid of its controller. */
const ownerIndex: Index = (object) => {
  const owner = object.metadata.ownerReferences?.find(({ controller }) => controller === true);
  return owner === undefined ? [] : [owner.uid];
};

export interface ReadonlyStore {
  /** Frozen: copy before changing. */
  get(key: ObjectKey): KubeObject | undefined;
  /** In no particular order. */
  list(namespace?: string): KubeObject[];
  /** Throws when there is no such index. "namespace" and "owner" (the controller's uid) are always there. */
  by(index: string, value: string): KubeObject[];
  readonly size: number;
}

export type Change =
  | { readonly type: 'added'; readonly object: KubeObject; readonly previous?: undefined }
  | { readonly type: 'updated'; readonly object: KubeObject; readonly previous: KubeObject }
  /** `object` is the last state known: of an object whose deletion was missed, possibly an old one. */
  | { readonly type: 'deleted'; readonly object: KubeObject; readonly previous: KubeObject };

export class Store implements ReadonlyStore {
  readonly #objects = new Map<ObjectKey, KubeObject>();
  readonly #indexes: ReadonlyMap<string, Index>;
  /** Index name -> value -> keys. Invariant: holds exactly what the indexes give for the objects stored. */
  readonly #entries = new Map<string, Map<string, Set<ObjectKey>>>();

  readonly #onIndexError: (index: string, object: KubeObject, error: unknown) => void;

  /** An index that throws leaves the object out of that index, and is reported. */
  constructor(
    indexes: Readonly<Record<string, Index>>,
    onIndexError: (index: string, object: KubeObject, error: unknown) => void,
  ) {
    this.#onIndexError = onIndexError;
    const namespaces: Index = ({ metadata }) =>
      metadata.namespace === undefined ? [] : [metadata.namespace];
    this.#indexes = new Map(Object.entries({ namespace: namespaces, owner: ownerIndex, ...indexes }));
    for (const name of this.#indexes.keys()) this.#entries.set(name, new Map());
  }

  get size(): number {
    return this.#objects.size;
  }

  get(key: ObjectKey): KubeObject | undefined {
    return this.#objects.get(key);
  }

  list(namespace?: string): KubeObject[] {
    return namespace === undefined ? [...this.#objects.values()] : this.by('namespace', namespace);
  }

  by(index: string, value: string): KubeObject[] {
    const entries = this.#entries.get(index);
    if (entries === undefined) throw new Error(`the store has no index ${JSON.stringify(index)}`);
    return Array.from(entries.get(value) ?? [], (key) => this.#objects.get(key)!);
  }

  keys(): ObjectKey[] {
    return [...this.#objects.keys()];
  }

  /**
   * Stores an object; gives what that changed: nothing for a version already here, two changes when another object of
   * the same name took its place.
   */
  set(object: KubeObject): Change[] {
    const key = keyOf(object);
    const previous = this.#objects.get(key);
    if (previous === undefined) {
      this.#put(key, object);
      return [{ type: 'added', object }];
    }
    if (previous.metadata.uid !== object.metadata.uid) {
      return [...this.delete(key), ...this.set(object)];
    }
    if (previous.metadata.resourceVersion === object.metadata.resourceVersion) return [];
    this.#unindex(key, previous);
    this.#put(key, object);
    return [{ type: 'updated', object, previous }];
  }

  /** `last` is the state that the deletion brought, where it did. */
  delete(key: ObjectKey, last?: KubeObject): Change[] {
    const previous = this.#objects.get(key);
    if (previous === undefined) return [];
    this.#unindex(key, previous);
    this.#objects.delete(key);
    return [{ type: 'deleted', object: last === undefined ? previous : deepFreeze(last), previous }];
  }

  #put(key: ObjectKey, object: KubeObject): void {
    this.#objects.set(key, deepFreeze(object));
    for (const [name, index] of this.#indexes) {
      const entries = this.#entries.get(name)!;
      for (const value of this.#values(name, index, object)) {
        const keys = entries.get(value) ?? new Set();
        keys.add(key);
        entries.set(value, keys);
      }
    }
  }

  #unindex(key: ObjectKey, object: KubeObject): void {
    for (const [name, index] of this.#indexes) {
      const entries = this.#entries.get(name)!;
      for (const value of this.#values(name, index, object)) {
        const keys = entries.get(value);
        keys?.delete(key);
        if (keys?.size === 0) entries.delete(value);
      }
    }
  }

  #values(name: string, index: Index, object: KubeObject): readonly string[] {
    try {
      return index(object);
    } catch (error) {
      this.#onIndexError(name, object, error);
      return [];
    }
  }
}

/** A reader that changes what all readers share gets a TypeError. */
function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
