/**
 * A server from the first byte it listens to until it has ended in order. It listens before the model is loaded, so that
 * probes can follow the loading.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import type { RuntimeConfig } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { createMetrics } from '../metrics.ts';
import { createApi, createMetricsApp } from './app.ts';
import type { Backend, LoadingProgress } from './backend.ts';
import type { ServerContext } from './context.ts';
import { Lifecycle } from './lifecycle.ts';

export interface ServerOptions {
  readonly config: RuntimeConfig;
  readonly servedNames: readonly string[];
  readonly modelPath: string;
  readonly version: string;
  readonly log: Logger;
}

export class Server {
  readonly #context: ServerContext;
  readonly #log: Logger;
  readonly #apps: FastifyInstance[] = [];
  readonly #lifecycle = new Lifecycle();
  #url = '';
  #metricsUrl = '';

  /** Throws SluiceError `config_invalid` for a bad key file. */
  constructor({ config, servedNames, modelPath, version, log }: ServerOptions) {
    this.#log = log;
    this.#context = {
      config,
      servedNames,
      modelPath,
      version,
      lifecycle: this.#lifecycle,
      metrics: createMetrics(() => this.#lifecycle.loaded?.load(), servedNames),
      startedAt: Math.floor(Date.now() / 1000),
    };
  }

  /** Where the API answers, with the port that was picked. */
  get url(): string {
    return this.#url;
  }

  get metricsUrl(): string {
    return this.#metricsUrl;
  }

  /** Throws SluiceError `config_invalid` when the address cannot be had. */
  async listen(): Promise<void> {
    const { config } = this.#context;
    const api = createApi(this.#context, this.#log);
    this.#url = await this.#open(api, config.port, '--port');
    this.#metricsUrl = this.#url;
    if (config.metricsPort !== undefined)
      this.#metricsUrl = await this.#open(
        createMetricsApp(this.#context, this.#log),
        config.metricsPort,
        '--metrics-port',
      );
  }

  reportProgress(progress: LoadingProgress): void {
    this.#lifecycle.reportProgress(progress);
  }

  ready(backend: Backend): void {
    this.#lifecycle.ready(backend);
  }

  /**
   * Ends in order: readiness fails at once; requests are taken for `delayMs` more, then refused; running ones have
   * `graceMs` to finish and are then aborted. Resolves with the number aborted when everything is closed.
   */
  async shutdown(delayMs: number, graceMs: number): Promise<number> {
    const loaded = this.#lifecycle.loaded !== undefined;
    this.#lifecycle.drain();
    // Nobody could have been sent to a server that was never ready.
    if (loaded) await sleep(delayMs);
    this.#lifecycle.refuse();
    for (const app of this.#apps) app.server.closeIdleConnections();
    const graceOver = new AbortController();
    await Promise.race([this.#lifecycle.idle(), sleep(graceMs, graceOver.signal)]);
    graceOver.abort();
    const aborted = this.#lifecycle.inFlight;
    this.#lifecycle.abortAll();
    if (aborted > 0) await Promise.race([this.#lifecycle.idle(), sleep(abortMs)]);
    await Promise.all(this.#apps.map((app) => app.close()));
    await this.#lifecycle.loaded?.close();
    return aborted;
  }

  /** After the engine's death: what was in flight has its error, probes fail for `graceMs`, then everything is closed. */
  async fail(graceMs: number): Promise<void> {
    await sleep(graceMs);
    await Promise.all(this.#apps.map((app) => app.close()));
  }

  /**
   * While the server ends, each answer is its connection's last, streamed or not: a client that kept the connection would
   * go on sending here after the proxies have been told otherwise.
   */
  #endWithAnswer(request: IncomingMessage, response: ServerResponse): void {
    const ending = () => this.#lifecycle.phase === 'draining' || this.#lifecycle.phase === 'refusing';
    if (ending()) response.setHeader('connection', 'close');
    // Its head went out before the end began, and promised to keep the connection.
    else response.once('finish', () => ending() && request.socket.destroySoon());
  }

  async #open(app: FastifyInstance, port: number, flag: string): Promise<string> {
    const { host } = this.#context.config;
    app.server.prependListener('request', (request, response) => this.#endWithAnswer(request, response));
    try {
      await app.listen({ host, port, backlog });
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      const reason = code === 'EADDRINUSE' ? 'is in use' : `cannot be listened on: ${message}`;
      throw new SluiceError(
        'config_invalid',
        `${flag} ${port} on --host ${JSON.stringify(host)}: ${reason}; choose another, for example ${flag} ${port + 1}`,
        { cause },
      );
    }
    this.#apps.push(app);
    const { port: opened } = app.server.address() as AddressInfo;
    const name = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
    return `http://${name.includes(':') ? `[${name}]` : name}:${opened}`;
  }
}

/** Connections that may wait to be taken: a thousand clients may come at once. */
const backlog = 4096;

/** How long aborted requests may take to say so to their clients. */
const abortMs = 1000;

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
