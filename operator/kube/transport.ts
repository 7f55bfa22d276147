/**
 * HTTP to the API server: connections kept alive, time limits, one repetition where that is harmless. Enters: method,
 * path and body; leaves: the response, or KubeError with status 0 when there was none. It must not know objects.
 * It does not throttle, and it does not wait for Retry-After: callers own their pace.
 */
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import type { TLSSocket } from 'node:tls';
import { KubeError } from './client.ts';
import type { Authenticated, Credentials } from './credentials.ts';

export interface HttpCall {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** Path and query. */
  readonly path: string;
  readonly contentType?: string;
  readonly body?: string;
  readonly signal?: AbortSignal | undefined;
  /** Called synchronously before the request's first byte is written, the connection being ready; may throw. */
  readonly beforeSend?: (() => void) | undefined;
}

interface HttpAnswer {
  readonly status: number;
  readonly body: string;
  readonly retryAfterSeconds: number | undefined;
  readonly warnings: readonly string[];
}

interface TransportOptions {
  readonly requestTimeoutMs: number;
  readonly userAgent: string;
}

export class Transport {
  readonly #credentials: Credentials;
  readonly #options: TransportOptions;

  constructor(credentials: Credentials, options: TransportOptions) {
    this.#credentials = credentials;
    this.#options = options;
  }

  /** One answer, read whole within the time limit. */
  async call(call: HttpCall): Promise<HttpAnswer> {
    const { response, release } = await this.open(call);
    try {
      return await readAnswer(response);
    } catch (cause) {
      throw this.#failure(call, cause);
    } finally {
      release();
    }
  }

  /**
   * The response as soon as its head is here; the time limit goes on until `unlimit` is called. The caller reads or
   * destroys the response, and calls `release` in the end.
   */
  async open(
    call: HttpCall,
  ): Promise<{ response: IncomingMessage; unlimit: () => void; release: () => void }> {
    call.signal?.throwIfAborted();
    const abort = new AbortController();
    const onAbort = () => abort.abort(call.signal!.reason);
    call.signal?.addEventListener('abort', onAbort, { once: true });
    const timer = setTimeout(
      () => abort.abort(new Error(`no answer within ${this.#options.requestTimeoutMs} ms`)),
      this.#options.requestTimeoutMs,
    );
    const unlimit = () => clearTimeout(timer);
    const release = () => {
      unlimit();
      call.signal?.removeEventListener('abort', onAbort);
    };
    try {
      let response = await this.#send(call, abort.signal);
      if (response.statusCode === 401 && this.#credentials.reload()) {
        response.resume();
        response = await this.#send(call, abort.signal);
      }
      return { response, unlimit, release };
    } catch (cause) {
      release();
      throw this.#failure(call, cause);
    }
  }

  async #send(call: HttpCall, signal: AbortSignal): Promise<IncomingMessage> {
    try {
      return await this.#sendOnce(call, await this.#credentials.authenticate(), signal);
    } catch (error) {
      // A kept-alive connection that the server closed while we were writing. Every method but POST may be repeated:
      // a lost PUT or PATCH that did take effect gives the same state or a conflict the second time.
      if (!(error instanceof StaleConnection) || call.method === 'POST') throw error;
      return await this.#sendOnce(call, await this.#credentials.authenticate(), signal);
    }
  }

  #sendOnce(call: HttpCall, authenticated: Authenticated, signal: AbortSignal): Promise<IncomingMessage> {
    const { server } = this.#credentials;
    const body = call.body === undefined ? undefined : Buffer.from(call.body);
    const headers: Record<string, string | number> = {
      ...authenticated.headers,
      accept: 'application/json, */*',
      'user-agent': this.#options.userAgent,
    };
    if (body !== undefined) {
      headers['content-type'] = call.contentType ?? 'application/json';
      headers['content-length'] = body.length;
    }
    const secure = server.protocol === 'https:';
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const request = (secure ? httpsRequest : httpRequest)({
        protocol: server.protocol,
        hostname: server.hostname.replace(/^\[|\]$/g, ''),
        port: server.port === '' ? (secure ? 443 : 80) : Number(server.port),
        method: call.method,
        path: server.pathname.replace(/\/$/, '') + call.path,
        agent: authenticated.agent,
        headers,
        ...(authenticated.basicAuth === undefined ? {} : { auth: authenticated.basicAuth }),
      });
      const onAbort = () => request.destroy(asError(signal.reason));
      signal.addEventListener('abort', onAbort, { once: true });
      request.once('close', () => signal.removeEventListener('abort', onAbort));
      request.once('response', resolve);
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (
          !signal.aborted &&
          request.reusedSocket &&
          (error.code === 'ECONNRESET' || error.code === 'EPIPE')
        ) {
          reject(new StaleConnection(error));
        } else reject(error);
      });
      // Nothing is written until end(): so the caller's last word comes after the wait for a connection, and
      // immediately before the bytes.
      request.once('socket', (socket) => {
        const write = () => {
          if (request.destroyed) return;
          try {
            call.beforeSend?.();
          } catch (error) {
            reject(new Refused(error));
            request.destroy();
            return;
          }
          request.end(body);
        };
        const connecting =
          socket.connecting || (socket as TLSSocket & { secureConnecting?: boolean }).secureConnecting;
        if (connecting) socket.once(secure ? 'secureConnect' : 'connect', write);
        else write();
      });
    });
  }

  #failure(call: HttpCall, error: unknown): unknown {
    if (call.signal?.aborted) return call.signal.reason;
    if (error instanceof Refused) return error.cause;
    const cause = error instanceof StaleConnection ? error.cause : error;
    const { origin } = this.#credentials.server;
    return new KubeError(0, 'Unreachable', `${call.method} ${origin}${call.path}: ${describe(cause)}`, {
      cause,
    });
  }
}

/** What beforeSend threw: it is the caller's own, and goes back to it unchanged. */
class Refused extends Error {
  constructor(cause: unknown) {
    super('refused before sending', { cause });
  }
}

class StaleConnection extends Error {
  constructor(cause: Error) {
    super(cause.message, { cause });
  }
}

export async function readAnswer(response: IncomingMessage): Promise<HttpAnswer> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  const retryAfter = Number(response.headers['retry-after']);
  return {
    status: response.statusCode ?? 0,
    body: Buffer.concat(chunks).toString('utf8'),
    retryAfterSeconds: Number.isFinite(retryAfter) ? retryAfter : undefined,
    warnings: warningsOf(response.headers.warning),
  };
}

/** `299 - "text"`, several joined by commas. */
function warningsOf(header: string | undefined): string[] {
  const texts = header?.matchAll(/\b\d{3} \S+ "((?:[^"\\]|\\.)*)"/g) ?? [];
  return Array.from(texts, (match) => match[1]!.replace(/\\(.)/g, '$1'));
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

function describe(cause: unknown): string {
  const error = asError(cause) as NodeJS.ErrnoException & { errors?: Error[] };
  // A name with several addresses fails with an AggregateError, whose own message is empty.
  if (error.message === '' && error.errors?.length)
    return error.errors.map((inner) => inner.message).join('; ');
  return error.message || error.code || error.name;
}
