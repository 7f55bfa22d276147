/**
 * The ConfigMaps and Secrets that volumes show, each followed for as long as some pod shows it. Out: their decoded
 * values, and a call when they change. Reads for environments are single requests: they count at a container's start.
 */
import { type KubeClient, type KubeObject, resources } from '../../operator/kube/client.ts';
import { follow } from './follow.ts';

export type KeyedKind = 'ConfigMap' | 'Secret';
export type KeyedData = Readonly<Record<string, Buffer>>;

export interface KeyedObject {
  /** Undefined when there is no such object. Resolves once the first answer is there. */
  read(): Promise<KeyedData | undefined>;
  release(): void;
}

interface Entry {
  data: KeyedData | undefined;
  version: string | undefined;
  readonly first: Promise<void>;
  readonly listeners: Set<() => void>;
  readonly controller: AbortController;
}

const types = { ConfigMap: resources.configMaps, Secret: resources.secrets } as const;

export class KeyedObjects {
  readonly #client: KubeClient;
  readonly #onFailure: (error: unknown) => void;
  readonly #entries = new Map<string, Entry>();

  constructor(client: KubeClient, onFailure: (error: unknown) => void) {
    this.#client = client;
    this.#onFailure = onFailure;
  }

  acquire(kind: KeyedKind, namespace: string, name: string, onChange: () => void): KeyedObject {
    const key = `${kind}/${namespace}/${name}`;
    let entry = this.#entries.get(key);
    if (!entry) {
      entry = this.#follow(kind, namespace, name);
      this.#entries.set(key, entry);
    }
    const shared = entry;
    // A listener of its own, so that one pod may show an object twice.
    const listener = () => onChange();
    shared.listeners.add(listener);
    return {
      read: async () => {
        await shared.first;
        return shared.data;
      },
      release: () => {
        shared.listeners.delete(listener);
        if (shared.listeners.size > 0) return;
        shared.controller.abort();
        this.#entries.delete(key);
      },
    };
  }

  /** One request, nothing kept. */
  async readOnce(kind: KeyedKind, namespace: string, name: string): Promise<KeyedData | undefined> {
    const object = await this.#client.get(types[kind], { namespace, name });
    return object && decode(object);
  }

  #follow(kind: KeyedKind, namespace: string, name: string): Entry {
    const controller = new AbortController();
    let resolveFirst: () => void = () => {};
    const entry: Entry = {
      data: undefined,
      version: undefined,
      first: new Promise((resolve) => {
        resolveFirst = resolve;
      }),
      listeners: new Set(),
      controller,
    };
    const set = (object: KubeObject | undefined) => {
      const version = object?.metadata.resourceVersion;
      if (version === entry.version) return;
      entry.version = version;
      entry.data = object && decode(object);
      for (const listener of entry.listeners) listener();
    };
    void follow(this.#client, types[kind], {
      namespace,
      fieldSelector: `metadata.name=${name}`,
      signal: controller.signal,
      onList: (objects) => {
        set(objects[0]);
        resolveFirst();
      },
      onEvent: (type, object) => set(type === 'DELETED' ? undefined : object),
      onFailure: this.#onFailure,
    }).finally(resolveFirst);
    return entry;
  }
}

function decode(object: KubeObject): KeyedData {
  const result: Record<string, Buffer> = {};
  const text = object.kind === 'Secret' ? 'base64' : 'utf8';
  for (const [key, value] of Object.entries((object.data ?? {}) as Record<string, string>)) {
    result[key] = Buffer.from(value, text);
  }
  for (const [key, value] of Object.entries((object.binaryData ?? {}) as Record<string, string>)) {
    result[key] = Buffer.from(value, 'base64');
  }
  return result;
}
