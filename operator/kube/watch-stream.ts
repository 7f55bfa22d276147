/**
 * A watch's body as events. Enters: bytes, cut anywhere; leaves: one event per line. Must not know HTTP or what the
 * events are for.
 */
import { KubeError, type KubeObject, type WatchEvent } from './client.ts';
import { statusError } from './status.ts';

const newline = 0x0a;

/** Lines are cut at the byte 0x0a, which UTF-8 has inside no other character: so a character may arrive in pieces. */
export async function* lines(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string, void> {
  let pending: Uint8Array[] = [];
  for await (const chunk of chunks) {
    let start = 0;
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      pending.push(chunk.subarray(start, end));
      const line = Buffer.concat(pending).toString('utf8');
      pending = [];
      start = end + 1;
      if (line.trim() !== '') yield line;
    }
    if (start < chunk.length) pending.push(chunk.subarray(start));
  }
  if (pending.length > 0) {
    throw new KubeError(0, 'Unreachable', 'the watch ended in the middle of an event');
  }
}

/** Throws KubeError for an ERROR event and for a line that is no event: nothing is skipped. */
export function parseWatchEvent(line: string): WatchEvent {
  let event: { type?: unknown; object?: KubeObject };
  try {
    event = JSON.parse(line);
  } catch (cause) {
    throw new KubeError(0, 'Unreadable', `the watch sent a line that is not JSON: ${line.slice(0, 200)}`, {
      cause,
    });
  }
  const { type, object } = event;
  if (type === 'ERROR') throw statusError(object, 0);
  const resourceVersion = object?.metadata?.resourceVersion;
  if (object === undefined || typeof resourceVersion !== 'string') {
    throw new KubeError(0, 'Unreadable', `the watch sent an event without an object: ${line.slice(0, 200)}`);
  }
  if (type === 'BOOKMARK') return { type, resourceVersion };
  if (type === 'ADDED' || type === 'MODIFIED' || type === 'DELETED') return { type, object };
  throw new KubeError(0, 'Unreadable', `the watch sent an event of type ${JSON.stringify(type)}`);
}
