/**
 * Where the API server is and how to prove who we are: a kubeconfig file, the default lookup, or the pod's service
 * account. Enters: options; leaves: the server's URL and, per request, TLS options, headers and the agent to use. It
 * must not know paths or objects. client-node does the parsing, the exec plugins and the token file (read again every
 * minute); what it read is thrown away and loaded again when the server answers 401.
 */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent, type RequestOptions } from 'node:https';
import { KubeConfig } from '@kubernetes/client-node';
import { SluiceError } from '../../runtime/errors.ts';

export interface CredentialOptions {
  /** Path of a kubeconfig file. Absent: $KUBECONFIG, ~/.kube/config, then the pod's service account. */
  readonly kubeconfig?: string;
  /** Use the pod's service account and nothing else. */
  readonly inCluster?: boolean;
  /** A context of the kubeconfig other than its current one. */
  readonly context?: string;
  /** After a 401 the configuration is loaded again, but not more often than this. Default 10 s. */
  readonly reloadIntervalMs?: number;
}

export interface Authenticated {
  readonly agent: HttpAgent | HttpsAgent;
  readonly headers: Readonly<Record<string, string>>;
  /** For HTTP basic authentication: user:password. */
  readonly basicAuth: string | undefined;
}

/** A server closes idle connections (the API server: after 90 s); we let go of them first. */
const idleSocketMs = 30_000;

export class Credentials {
  readonly #options: CredentialOptions;
  #config: KubeConfig;
  #loadedAt = performance.now();
  #agent: { material: string; agent: HttpAgent | HttpsAgent } | undefined;
  readonly server: URL;

  constructor(options: CredentialOptions) {
    this.#options = options;
    this.#config = load(options);
    this.server = new URL(this.#config.getCurrentCluster()!.server);
  }

  /** The namespace of the context, or of the pod. */
  get namespace(): string | undefined {
    return this.#config.getContextObject(this.#config.getCurrentContext())?.namespace?.trim() || undefined;
  }

  /** Reads certificates and tokens anew, so that rotated files are picked up; equal material keeps its connections. */
  async authenticate(): Promise<Authenticated> {
    const tls: RequestOptions = {};
    await this.#config.applyToHTTPSOptions(tls);
    const headers: Record<string, string> = {};
    for (const [name, value] of Object.entries(tls.headers ?? {})) {
      // A token file often ends in a newline, which no header may hold.
      headers[name] = String(value).trim();
    }
    const basicAuth = typeof tls.auth === 'string' ? tls.auth : undefined;
    if (this.#config.getCurrentCluster()?.proxyUrl) {
      return { agent: tls.agent as HttpsAgent, headers, basicAuth };
    }
    const options = {
      ca: tls.ca,
      cert: tls.cert,
      key: tls.key,
      rejectUnauthorized: tls.rejectUnauthorized,
      servername: tls.servername,
    };
    const material = JSON.stringify(
      [options.ca, options.cert, options.key, options.servername],
      (_key, value) =>
        typeof value === 'object' && value?.type === 'Buffer'
          ? Buffer.from(value.data).toString('latin1')
          : value,
    );
    if (this.#agent?.material !== material) {
      const common = {
        keepAlive: true,
        keepAliveMsecs: 30_000,
        timeout: idleSocketMs,
        scheduling: 'lifo',
      } as const;
      const present = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
      const agent =
        this.server.protocol === 'https:'
          ? new HttpsAgent({ ...common, ...present })
          : new HttpAgent({ ...common });
      // Requests in flight on the old agent finish; its idle sockets close by themselves after idleSocketMs.
      this.#agent = { material, agent };
    }
    return { agent: this.#agent.agent, headers, basicAuth };
  }

  /** After a 401. False when it was done a moment ago: the 401 is then the answer. */
  reload(): boolean {
    // A server that answers 401 to everything must not make us run the exec plugin for every request.
    if (performance.now() - this.#loadedAt < (this.#options.reloadIntervalMs ?? 10_000)) return false;
    this.#config = load(this.#options);
    this.#loadedAt = performance.now();
    return true;
  }

  close(): void {
    this.#agent?.agent.destroy();
  }
}

function load(options: CredentialOptions): KubeConfig {
  const config = new KubeConfig();
  const source = options.inCluster
    ? "the pod's service account"
    : options.kubeconfig === undefined
      ? 'the default kubeconfig'
      : `kubeconfig ${JSON.stringify(options.kubeconfig)}`;
  try {
    if (options.inCluster) config.loadFromCluster();
    else if (options.kubeconfig !== undefined) config.loadFromFile(options.kubeconfig);
    else config.loadFromDefault();
  } catch (cause) {
    throw new SluiceError('config_invalid', `${source} cannot be read: ${(cause as Error).message}`, {
      cause,
    });
  }
  if (options.context !== undefined) {
    const names = config.getContexts().map((context) => context.name);
    if (!names.includes(options.context)) {
      const known = names.length === 0 ? 'it has none' : `it has ${names.join(', ')}`;
      throw new SluiceError('config_invalid', `${source} has no context "${options.context}": ${known}`);
    }
    config.setCurrentContext(options.context);
  }
  const server = config.getCurrentCluster()?.server;
  if (server === undefined || !URL.canParse(server)) {
    throw new SluiceError(
      'config_invalid',
      `${source} names no API server (got ${JSON.stringify(server ?? null)}): ` +
        `its current context must name a cluster with a server, for example https://10.0.0.1:6443`,
    );
  }
  return config;
}
