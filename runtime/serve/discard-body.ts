/**
 * The rest of a body that nobody wants, before an answer that closes the connection: a socket that is closed with bytes
 * unread is reset, and the client may lose the answer. On a connection that is kept Node reads them itself.
 */
import type { IncomingMessage } from 'node:http';

/** Whoever sends on for longer, or more, is not waited for. */
const mostMs = 5000;
const mostBytes = 64 << 20;

/** Resolves when the body has been received, or the client has gone, or it is too much. */
export function discardBody(request: IncomingMessage): Promise<void> {
  if (request.complete || request.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    let bytes = 0;
    const done = () => {
      clearTimeout(timer);
      request.off('data', count).off('end', done).off('close', done);
      resolve();
    };
    const count = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > mostBytes) done();
    };
    const timer = setTimeout(done, mostMs);
    request.on('data', count).on('end', done).on('close', done).resume();
  });
}
