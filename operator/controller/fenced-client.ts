/**
 * A client for the leader: reads as before, and refuses to write once the lease may have passed to another process.
 * Enters: a client and a Leadership; leaves: a client. Must not know what is written.
 *
 * The check is made by the transport when the connection is ready, in the same turn of the event loop as the write of
 * the request's bytes. What is left is a process stopped between these two instructions, or a request that the server
 * itself sits on for longer than leaseDurationMs - renewDeadlineMs; no client can close that.
 */
import type { KubeClient, WriteOptions } from '../kube/client.ts';
import type { Leadership } from './leader.ts';

/** Writes throw NotLeaderError when not sent; those under way when the lease is lost are aborted with it. */
export function fencedClient(client: KubeClient, leadership: Leadership): KubeClient {
  const fenced = <T extends WriteOptions>(options: T | undefined): T => {
    leadership.assertLeader();
    return {
      ...(options as T),
      signal:
        options?.signal === undefined ? leadership.lost : AbortSignal.any([options.signal, leadership.lost]),
      beforeSend: () => {
        options?.beforeSend?.();
        leadership.assertLeader();
      },
    };
  };
  return {
    get: (type, ref, options) => client.get(type, ref, options),
    list: (type, options) => client.list(type, options),
    watch: (type, options) => client.watch(type, options),
    getText: (path) => client.getText(path),
    create: async (type, object, options) => client.create(type, object, fenced(options)),
    replace: async (type, object, options) => client.replace(type, object, fenced(options)),
    apply: async (type, object, options) => client.apply(type, object, fenced(options)),
    mergePatch: async (type, ref, patch, options) => client.mergePatch(type, ref, patch, fenced(options)),
    remove: async (type, ref, options) => client.remove(type, ref, fenced(options)),
  };
}
