/**
 * The real KubeClient: REST paths, verbs and options on top of the transport. Enters and leaves: plain JSON, nothing
 * dropped, nothing renamed. Writes of objects ask for fieldValidation=Strict: a field the server does not know is an
 * error. Must not know any domain, and does not retry.
 */
import type {
  ApplyOptions,
  DeleteOptions,
  GetOptions,
  KubeClient,
  KubeObject,
  ListOptions,
  ObjectList,
  ObjectRef,
  ResourceType,
  WatchEvent,
  WatchOptions,
  WriteOptions,
} from './client.ts';
import { KubeError } from './client.ts';
import { type CredentialOptions, Credentials } from './credentials.ts';
import { collectionPath, listQuery, needNamespace, objectPath, query } from './paths.ts';
import { answerError } from './status.ts';
import { type HttpCall, readAnswer, Transport } from './transport.ts';
import { lines, parseWatchEvent } from './watch-stream.ts';

export interface KubeClientOptions extends CredentialOptions {
  /** From the call to the last byte of the answer; for a watch, to the head of the answer. Default 30,000. */
  readonly requestTimeoutMs?: number;
  /** Shown in the audit log. Default "sluice". */
  readonly userAgent?: string;
  /** The server's Warning headers: deprecated versions, fields that admission changed. */
  readonly onWarning?: (warning: string) => void;
}

export interface ConnectedKubeClient extends KubeClient {
  /** The API server's URL, for messages. */
  readonly server: string;
  /** The namespace of the kubeconfig's context, or of the pod that this runs in. */
  readonly namespace: string | undefined;
  /** Ends connections at once; requests in flight fail. */
  close(): void;
}

/** Throws SluiceError config_invalid when there is no usable configuration. Does not connect. */
export function createKubeClient(options: KubeClientOptions = {}): ConnectedKubeClient {
  const credentials = new Credentials(options);
  const transport = new Transport(credentials, {
    requestTimeoutMs: options.requestTimeoutMs ?? 30_000,
    userAgent: options.userAgent ?? 'sluice',
  });
  return new RestClient(credentials, transport, options.onWarning);
}

class RestClient implements ConnectedKubeClient {
  readonly #credentials: Credentials;
  readonly #transport: Transport;
  readonly #onWarning: ((warning: string) => void) | undefined;

  constructor(credentials: Credentials, transport: Transport, onWarning?: (warning: string) => void) {
    this.#credentials = credentials;
    this.#transport = transport;
    this.#onWarning = onWarning;
  }

  get server(): string {
    return this.#credentials.server.origin;
  }

  get namespace(): string | undefined {
    return this.#credentials.namespace;
  }

  close(): void {
    this.#credentials.close();
  }

  async get(type: ResourceType, ref: ObjectRef, options: GetOptions = {}): Promise<KubeObject | undefined> {
    try {
      const path = objectPath(type, ref);
      return withType(type, await this.#json({ method: 'GET', path, signal: options.signal }));
    } catch (error) {
      if (error instanceof KubeError && error.status === 404) return undefined;
      throw error;
    }
  }

  async list(type: ResourceType, options: ListOptions = {}): Promise<ObjectList> {
    const path = collectionPath(type, options.namespace) + listQuery(options);
    const { items, metadata } = await this.#json({ method: 'GET', path, signal: options.signal });
    return {
      items: (items ?? []).map((item: KubeObject) => withType(type, item)),
      resourceVersion: metadata?.resourceVersion ?? '',
      ...(metadata?.continue ? { continue: metadata.continue } : {}),
    };
  }

  async *watch(type: ResourceType, options: WatchOptions): AsyncGenerator<WatchEvent, void> {
    const path =
      collectionPath(type, options.namespace) +
      query({
        watch: true,
        allowWatchBookmarks: true,
        resourceVersion: options.resourceVersion,
        timeoutSeconds: options.timeoutSeconds,
        labelSelector: options.labelSelector,
        fieldSelector: options.fieldSelector,
      });
    const { response, unlimit, release } = await this.#transport.open({
      method: 'GET',
      path,
      signal: options.signal,
    });
    try {
      if (response.statusCode !== 200) {
        const answer = await readAnswer(response);
        throw answerError(answer.status, answer.body, answer.retryAfterSeconds);
      }
      unlimit();
      for await (const line of lines(response)) yield parseWatchEvent(line);
    } catch (cause) {
      if (options.signal.aborted) throw options.signal.reason;
      if (cause instanceof KubeError) throw cause;
      throw new KubeError(
        0,
        'Unreachable',
        `watch of ${type.plural} broke off: ${(cause as Error).message}`,
        { cause },
      );
    } finally {
      response.destroy();
      release();
    }
  }

  async create(type: ResourceType, object: KubeObject, options: WriteOptions = {}): Promise<KubeObject> {
    const path =
      options.subresource === undefined
        ? collectionPath(type, needNamespace(type, object.metadata))
        : objectPath(type, object.metadata, options.subresource);
    return await this.#write(type, 'POST', path, 'application/json', object, options);
  }

  async replace(type: ResourceType, object: KubeObject, options: WriteOptions = {}): Promise<KubeObject> {
    const path = objectPath(type, object.metadata, options.subresource);
    return await this.#write(type, 'PUT', path, 'application/json', object, options);
  }

  async apply(type: ResourceType, object: KubeObject, options: ApplyOptions): Promise<KubeObject> {
    const path = objectPath(type, object.metadata, options.subresource);
    // JSON is YAML.
    return await this.#write(type, 'PATCH', path, 'application/apply-patch+yaml', object, options, {
      fieldManager: options.fieldManager,
      force: options.force === true ? true : undefined,
    });
  }

  async mergePatch(
    type: ResourceType,
    ref: ObjectRef,
    patch: unknown,
    options: WriteOptions = {},
  ): Promise<KubeObject> {
    const path = objectPath(type, ref, options.subresource);
    return await this.#write(type, 'PATCH', path, 'application/merge-patch+json', patch, options);
  }

  async remove(type: ResourceType, ref: ObjectRef, options: DeleteOptions = {}): Promise<void> {
    const body = {
      apiVersion: 'v1',
      kind: 'DeleteOptions',
      ...(options.uid === undefined ? {} : { preconditions: { uid: options.uid } }),
      ...(options.propagationPolicy === undefined ? {} : { propagationPolicy: options.propagationPolicy }),
      ...(options.gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds: options.gracePeriodSeconds }),
      ...(options.dryRun ? { dryRun: ['All'] } : {}),
    };
    try {
      await this.#json({
        method: 'DELETE',
        path: objectPath(type, ref),
        body: JSON.stringify(body),
        signal: options.signal,
        beforeSend: options.beforeSend,
      });
    } catch (error) {
      if (error instanceof KubeError && error.status === 404) return;
      throw error;
    }
  }

  async getText(path: string): Promise<string> {
    return await this.#text({ method: 'GET', path });
  }

  async #write(
    type: ResourceType,
    method: 'POST' | 'PUT' | 'PATCH',
    path: string,
    contentType: string,
    body: unknown,
    options: WriteOptions,
    parameters: Record<string, string | boolean | undefined> = {},
  ): Promise<KubeObject> {
    const search = query({
      ...parameters,
      fieldValidation: 'Strict',
      dryRun: options.dryRun ? 'All' : undefined,
    });
    const answer = await this.#json({
      method,
      path: path + search,
      contentType,
      body: JSON.stringify(body),
      signal: options.signal,
      beforeSend: options.beforeSend,
    });
    // A subresource answers with a kind of its own (Scale, TokenRequest, Status).
    return options.subresource === undefined || options.subresource === 'status'
      ? withType(type, answer)
      : answer;
  }

  // biome-ignore lint/suspicious/noExplicitAny: what the API server sends is as open as its schema.
  async #json(call: HttpCall): Promise<any> {
    const body = await this.#text(call);
    try {
      return JSON.parse(body);
    } catch (cause) {
      const message = `${call.method} ${call.path}: the answer is not JSON: ${body.slice(0, 200)}`;
      throw new KubeError(0, 'Unreadable', message, { cause });
    }
  }

  async #text(call: HttpCall): Promise<string> {
    const answer = await this.#transport.call(call);
    for (const warning of answer.warnings) this.#onWarning?.(warning);
    if (answer.status < 200 || answer.status > 299) {
      throw answerError(answer.status, answer.body, answer.retryAfterSeconds);
    }
    return answer.body;
  }
}

/** The items of a list of a built-in type come without apiVersion and kind. */
function withType(type: ResourceType, object: KubeObject): KubeObject {
  const apiVersion = type.group === '' ? type.version : `${type.group}/${type.version}`;
  return object.kind === undefined ? { ...object, apiVersion, kind: type.kind } : object;
}
