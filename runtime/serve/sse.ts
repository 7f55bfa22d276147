/** A stream of server-sent events over a raw response. Must not know what the events say. */
import type { ServerResponse } from 'node:http';

export class EventStream {
  readonly #response: ServerResponse;

  /** Sends the headers: from here on errors go into the stream. */
  constructor(response: ServerResponse, headers: Readonly<Record<string, string>>) {
    this.#response = response;
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      // nginx would collect the events otherwise.
      'x-accel-buffering': 'no',
      ...headers,
    });
  }

  /** Resolves when the socket takes more, or is gone. */
  async send(data: unknown): Promise<void> {
    const response = this.#response;
    if (response.destroyed) return;
    const room = response.write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`);
    if (room) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        response.off('drain', done);
        response.off('close', done);
        resolve();
      };
      response.on('drain', done);
      response.on('close', done);
    });
  }

  /** A comment, which clients pass over. */
  keepAlive(): void {
    if (!this.#response.destroyed && !this.#response.writableNeedDrain)
      this.#response.write(': keep-alive\n\n');
  }

  end(): void {
    if (!this.#response.destroyed) this.#response.end();
  }
}
