/**
 * A list followed by watches that never ends by itself: resumed where it broke off, listed again when the server has
 * forgotten where that was, cut when it has been silent for too long. In: a resource type and a selector; out: calls.
 */
import {
  type KubeClient,
  KubeError,
  type KubeObject,
  type ResourceType,
} from '../../operator/kube/client.ts';
import { pause } from './wait.ts';

export interface FollowOptions {
  readonly namespace?: string;
  readonly fieldSelector?: string;
  readonly signal: AbortSignal;
  /** Everything there is: at the start, and after a gap. What is missing was deleted. */
  readonly onList: (objects: readonly KubeObject[]) => void;
  readonly onEvent: (type: 'ADDED' | 'MODIFIED' | 'DELETED', object: KubeObject) => void;
  /** A connection that failed; it is tried again. */
  readonly onFailure: (error: unknown) => void;
}

const watchSeconds = 240;
/** The server ends a watch by itself: one that outlives that has lost its connection without a word. */
const silenceLimitMs = (watchSeconds + 30) * 1000;
const retryBaseMs = 200;
const retryLimitMs = 5_000;

/** Resolves when the signal is aborted. */
export async function follow(client: KubeClient, type: ResourceType, options: FollowOptions): Promise<void> {
  const { signal, namespace, fieldSelector } = options;
  const selection = {
    ...(namespace === undefined ? {} : { namespace }),
    ...(fieldSelector === undefined ? {} : { fieldSelector }),
  };
  let resourceVersion: string | undefined;
  let failures = 0;
  while (!signal.aborted) {
    const startedAt = Date.now();
    const connection = new AbortController();
    const cut = () => connection.abort();
    signal.addEventListener('abort', cut, { once: true });
    const watchdog = setTimeout(cut, silenceLimitMs);
    try {
      if (resourceVersion === undefined) {
        const list = await client.list(type, { ...selection, signal });
        if (signal.aborted) return;
        options.onList(list.items);
        resourceVersion = list.resourceVersion;
      }
      failures = 0;
      const watch = client.watch(type, {
        ...selection,
        resourceVersion,
        timeoutSeconds: watchSeconds,
        signal: connection.signal,
      });
      for await (const event of watch) {
        if (signal.aborted) return;
        if (event.type === 'BOOKMARK') {
          resourceVersion = event.resourceVersion;
        } else {
          resourceVersion = event.object.metadata.resourceVersion ?? resourceVersion;
          options.onEvent(event.type, event.object);
        }
      }
      // A server that ends watches as soon as they begin must not be asked in a tight loop.
      if (Date.now() - startedAt < 1_000) await pause(1_000, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof KubeError && error.status === 410) {
        resourceVersion = undefined;
      } else {
        if (!connection.signal.aborted) options.onFailure(error);
        const delayMs = Math.min(retryBaseMs * 2 ** failures++, retryLimitMs);
        await pause(delayMs * (0.5 + Math.random() / 2), signal);
      }
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener('abort', cut);
    }
  }
}
