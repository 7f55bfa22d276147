/**
 * Keeps a copy of all objects of a type as the API server has them: list, then watch, and list again whenever the watch
 * cannot go on. In: a client and a type. Out: a callback after each change. Must not know what the objects mean.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type KubeClient, KubeError, type KubeObject, type ResourceType } from '../operator/kube/client.ts';

export interface FollowOptions {
  readonly client: KubeClient;
  readonly type: ResourceType;
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  readonly signal: AbortSignal;
  /** After the first list and after every change, with all objects by namespace/name. */
  readonly onChange: (objects: ReadonlyMap<string, KubeObject>) => void;
}

const retryMs = 500;
/** The server ends a watch after this; one that went deaf is noticed then. */
const watchSeconds = 240;

/** Resolves when the signal fires, never rejects for trouble with the server. */
export async function follow(options: FollowOptions): Promise<void> {
  const { client, type, signal, onChange } = options;
  const selection = {
    ...(options.namespace === undefined ? {} : { namespace: options.namespace }),
    ...(options.labelSelector === undefined ? {} : { labelSelector: options.labelSelector }),
    ...(options.fieldSelector === undefined ? {} : { fieldSelector: options.fieldSelector }),
  };
  while (!signal.aborted) {
    try {
      const objects = new Map<string, KubeObject>();
      const list = await client.list(type, { ...selection, signal });
      for (const object of list.items) objects.set(keyOf(object), object);
      onChange(objects);
      let resourceVersion = list.resourceVersion;
      for (;;) {
        const watch = client.watch(type, {
          ...selection,
          resourceVersion,
          timeoutSeconds: watchSeconds,
          signal,
        });
        for await (const event of watch) {
          if (event.type === 'BOOKMARK') {
            resourceVersion = event.resourceVersion;
            continue;
          }
          resourceVersion = event.object.metadata.resourceVersion ?? resourceVersion;
          if (event.type === 'DELETED') objects.delete(keyOf(event.object));
          else objects.set(keyOf(event.object), event.object);
          onChange(objects);
        }
        if (signal.aborted) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof KubeError)) throw error;
      // Expired needs only a new list; anything else, a server that may be away.
      if (error.reason !== 'Expired') await sleep(retryMs, undefined, { signal }).catch(() => {});
    }
  }
}

export function keyOf(object: KubeObject): string {
  const { namespace, name } = object.metadata;
  return namespace === undefined ? name : `${namespace}/${name}`;
}
