/**
 * An API server in memory: the reference implementation of KubeClient, good enough for reconcile tests. It has resource
 * versions, generations, the status subresource, optimistic locking, server-side apply with owned fields, paging, watches
 * with a bounded history, finalizers, and garbage collection as an explicit step. It knows no schemas: `validate` may
 * refuse objects. Must not know any domain.
 */
import { isDeepStrictEqual } from 'node:util';
import {
  type ApplyOptions,
  type DeleteOptions,
  type GetOptions,
  type KubeClient,
  KubeError,
  type KubeObject,
  type ListOptions,
  type ObjectList,
  type ObjectMeta,
  type ObjectRef,
  type ResourceType,
  type WatchEvent,
  type WatchOptions,
  type WriteOptions,
} from '../../operator/kube/client.ts';
import { applyFields, type ManagerEntry, managedFields, updateFields } from './memory-kube-fields.ts';
import { fieldMatcher, labelMatcher } from './memory-kube-selectors.ts';

export interface MemoryRequest {
  readonly verb: 'get' | 'list' | 'watch' | 'create' | 'replace' | 'apply' | 'patch' | 'delete' | 'text';
  readonly type: ResourceType | undefined;
  readonly namespace: string | undefined;
  readonly name: string | undefined;
  readonly subresource: string | undefined;
  readonly body?: unknown;
}

export interface MemoryKubeOptions {
  readonly now?: () => Date;
  /** Called before each request is served; what it throws (a KubeError) is the answer. */
  readonly intercept?: (request: MemoryRequest) => void | Promise<void>;
  /** A message refuses the object with 422 Invalid. */
  readonly validate?: (type: ResourceType, object: KubeObject) => string | undefined;
  readonly text?: (path: string) => string;
}

interface Stored {
  readonly type: ResourceType;
  /** Never changed in place: a write stores a new one. */
  readonly object: KubeObject;
  readonly managers: readonly ManagerEntry[];
}

interface LogEntry {
  readonly resourceVersion: number;
  readonly type: ResourceType;
  readonly before: KubeObject | undefined;
  /** For a deletion: the last state, at the deletion's own resource version. */
  readonly after: KubeObject;
  readonly deleted: boolean;
}

/** As on the real server: these have no status of their own, so that one write changes all of the object. */
const withoutStatus: ReadonlySet<string> = new Set([
  'configmaps',
  'secrets',
  'events',
  'leases',
  'controllerrevisions',
  'endpointslices',
  'serviceaccounts',
]);
const withoutGeneration: ReadonlySet<string> = new Set([
  ...withoutStatus,
  'services',
  'nodes',
  'namespaces',
  'persistentvolumes',
  'persistentvolumeclaims',
]);
const updateManager = 'sluice';

export class MemoryKube implements KubeClient {
  readonly #options: MemoryKubeOptions;
  readonly #stored = new Map<string, Stored>();
  readonly #log: LogEntry[] = [];
  /** Changes up to here are forgotten: a watch from an older version is 410. */
  #compactedAt = 0;
  #resourceVersion = 1;
  #counter = 0;
  readonly #pages = new Map<string, { items: KubeObject[]; resourceVersion: number }>();
  readonly #watchers = new Set<Watcher>();
  /** Every request, in order: tests read what was asked and written. */
  readonly requests: MemoryRequest[] = [];

  constructor(options: MemoryKubeOptions = {}) {
    this.#options = options;
  }

  /** The requests that change something. */
  get writes(): readonly MemoryRequest[] {
    return this.requests.filter(({ verb }) => !['get', 'list', 'watch', 'text'].includes(verb));
  }

  async get(type: ResourceType, ref: ObjectRef, options: GetOptions = {}): Promise<KubeObject | undefined> {
    options.signal?.throwIfAborted();
    await this.#request({
      verb: 'get',
      type,
      namespace: ref.namespace,
      name: ref.name,
      subresource: undefined,
    });
    const stored = this.#stored.get(keyOf(type, ref));
    return stored && structuredClone(stored.object);
  }

  async list(type: ResourceType, options: ListOptions = {}): Promise<ObjectList> {
    const { namespace } = options;
    await this.#request({ verb: 'list', type, namespace, name: undefined, subresource: undefined });
    let page: { items: KubeObject[]; resourceVersion: number };
    if (options.continue !== undefined) {
      const known = this.#pages.get(options.continue);
      if (known === undefined) throw expired('The provided continue parameter is too old');
      page = known;
    } else {
      const asked = Number(options.resourceVersion ?? 0);
      if (asked > this.#resourceVersion) {
        throw new KubeError(504, 'Timeout', `Too large resource version: ${asked}`, { retryAfterSeconds: 1 });
      }
      const resourceVersion = options.resourceVersionMatch === 'Exact' ? asked : this.#resourceVersion;
      page = { items: this.#snapshot(type, resourceVersion, selection(options)), resourceVersion };
    }
    const limit = options.limit ?? 0;
    const items = limit > 0 ? page.items.slice(0, limit) : page.items;
    const rest = page.items.slice(items.length);
    let token: string | undefined;
    if (rest.length > 0) {
      token = `page-${++this.#counter}`;
      this.#pages.set(token, { items: rest, resourceVersion: page.resourceVersion });
    }
    return {
      items: structuredClone(items),
      resourceVersion: String(page.resourceVersion),
      ...(token === undefined ? {} : { continue: token }),
    };
  }

  async *watch(type: ResourceType, options: WatchOptions): AsyncGenerator<WatchEvent, void> {
    const { namespace, signal } = options;
    await this.#request({ verb: 'watch', type, namespace, name: undefined, subresource: undefined });
    signal.throwIfAborted();
    const matches = selection(options);
    const from = Number(options.resourceVersion || 0);
    const watcher = new Watcher(type, matches);
    if (from === 0) {
      for (const object of this.#snapshot(type, this.#resourceVersion, matches))
        watcher.push({ type: 'ADDED', object });
    } else {
      if (from < this.#compactedAt) throw expired(`too old resource version: ${from} (${this.#compactedAt})`);
      for (const entry of this.#log) if (entry.resourceVersion > from) watcher.offer(entry);
    }
    const onAbort = () => watcher.end(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    const timer =
      options.timeoutSeconds === undefined
        ? undefined
        : setTimeout(() => {
            watcher.push({ type: 'BOOKMARK', resourceVersion: String(this.#resourceVersion) });
            watcher.end();
          }, options.timeoutSeconds * 1000);
    this.#watchers.add(watcher);
    try {
      yield* watcher;
    } finally {
      this.#watchers.delete(watcher);
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  async create(type: ResourceType, object: KubeObject, options: WriteOptions = {}): Promise<KubeObject> {
    const { subresource } = options;
    await this.#write(
      { verb: 'create', type, ...nameOf(object.metadata), subresource, body: object },
      options,
    );
    if (subresource === 'binding') {
      const { before } = this.#need(type, object.metadata);
      const bound = { ...before.object, spec: { ...before.object.spec, nodeName: object.target.name } };
      this.#store(type, before, bound, before.managers);
      return object;
    }
    if (subresource === 'eviction') {
      this.#delete(type, object.metadata, {});
      return object;
    }
    if (subresource !== undefined) throw notFound(type, object.metadata);
    const metadata = { ...object.metadata };
    if (!metadata.name && typeof metadata.generateName === 'string') {
      metadata.name = `${metadata.generateName}${(++this.#counter).toString(36).padStart(5, '0')}`;
    }
    if (!metadata.name) throw invalid(type, metadata, 'name or generateName is required');
    if (metadata.resourceVersion) {
      throw new KubeError(500, 'InternalError', 'resourceVersion should not be set on objects to be created');
    }
    if (this.#stored.has(keyOf(type, metadata))) throw alreadyExists(type, metadata);
    return this.#create(type, { ...object, metadata }, options);
  }

  async replace(type: ResourceType, object: KubeObject, options: WriteOptions = {}): Promise<KubeObject> {
    const { subresource } = options;
    await this.#write(
      { verb: 'replace', type, ...nameOf(object.metadata), subresource, body: object },
      options,
    );
    return this.#update(type, object.metadata, object, options);
  }

  async mergePatch(
    type: ResourceType,
    ref: ObjectRef,
    patch: unknown,
    options: WriteOptions = {},
  ): Promise<KubeObject> {
    const { subresource } = options;
    await this.#write(
      { verb: 'patch', type, namespace: ref.namespace, name: ref.name, subresource, body: patch },
      options,
    );
    const { before } = this.#need(type, ref);
    const target = subresource === 'scale' ? scaleOf(before.object) : before.object;
    const patched = mergePatched(target, patch) as KubeObject;
    // A patch without a resourceVersion is retried by the server until it fits: no conflict is possible.
    const sent = (patch as { metadata?: ObjectMeta })?.metadata?.resourceVersion;
    const metadata = { ...patched.metadata };
    if (sent === undefined) delete metadata.resourceVersion;
    return this.#update(type, ref, { ...patched, metadata }, options);
  }

  async apply(type: ResourceType, object: KubeObject, options: ApplyOptions): Promise<KubeObject> {
    const { subresource } = options;
    await this.#write(
      { verb: 'apply', type, ...nameOf(object.metadata), subresource, body: object },
      options,
    );
    if (object.metadata.managedFields !== undefined) {
      throw new KubeError(400, 'BadRequest', 'metadata.managedFields must be nil');
    }
    const who = {
      manager: options.fieldManager,
      subresource: subresource ?? '',
      force: options.force === true,
    };
    const before = this.#stored.get(keyOf(type, object.metadata));
    const applied = part(type, object, subresource);
    if (before === undefined) {
      if (subresource !== undefined) throw notFound(type, object.metadata);
      if (object.metadata.uid !== undefined)
        throw conflict(type, object.metadata, 'the object has been deleted');
      const empty = {
        apiVersion: object.apiVersion,
        kind: object.kind,
        metadata: { ...nameOf(object.metadata) },
      };
      const outcome = applyFields(empty, applied, [], who);
      return this.#create(type, outcome.object as unknown as KubeObject, options, outcome.managers);
    }
    this.#checkPreconditions(type, object.metadata, before.object);
    const outcome = applyFields(before.object, applied, before.managers, who);
    if (outcome.conflicts.length > 0) {
      const s = outcome.conflicts.length === 1 ? '' : 's';
      throw new KubeError(
        409,
        'Conflict',
        `Apply failed with ${outcome.conflicts.length} conflict${s}: ${outcome.conflicts.join('\n')}`,
      );
    }
    return this.#store(type, before, outcome.object as unknown as KubeObject, outcome.managers, options);
  }

  async remove(type: ResourceType, ref: ObjectRef, options: DeleteOptions = {}): Promise<void> {
    await this.#write(
      { verb: 'delete', type, namespace: ref.namespace, name: ref.name, subresource: undefined },
      options,
    );
    if (!options.dryRun) this.#delete(type, ref, options);
  }

  async getText(path: string): Promise<string> {
    await this.#request({
      verb: 'text',
      type: undefined,
      namespace: undefined,
      name: path,
      subresource: undefined,
    });
    if (this.#options.text === undefined) throw new KubeError(404, 'NotFound', `no text at ${path}`);
    return this.#options.text(path);
  }

  // What tests do to the server.

  /** Forgets history and continue tokens, as etcd's compaction does: older watches and pages get 410. */
  compact(): void {
    this.#compactedAt = this.#resourceVersion;
    this.#log.length = 0;
    this.#pages.clear();
  }

  /** Ends all watches: cleanly, or with an error as when the connection breaks or the version is too old. */
  endWatches(error?: KubeError): void {
    for (const watcher of [...this.#watchers]) watcher.end(error);
  }

  sendBookmarks(): void {
    for (const watcher of this.#watchers) {
      watcher.push({ type: 'BOOKMARK', resourceVersion: String(this.#resourceVersion) });
    }
  }

  get openWatches(): number {
    return this.#watchers.size;
  }

  /** All objects of a type, for assertions; not counted as a request. */
  objects(type: ResourceType, namespace?: string): KubeObject[] {
    return structuredClone(
      this.#snapshot(type, this.#resourceVersion, selection(namespace ? { namespace } : {})),
    );
  }

  /** What the garbage collector does, until nothing is left to do. */
  collectGarbage(): void {
    for (let changed = true; changed; ) {
      changed = false;
      const byUid = new Map(
        Array.from(this.#stored.values(), (stored) => [stored.object.metadata.uid, stored]),
      );
      for (const stored of [...this.#stored.values()]) {
        const { metadata } = stored.object;
        const owners = metadata.ownerReferences ?? [];
        if (this.#stored.get(keyOf(stored.type, metadata)) !== stored) continue;
        const finalizers = (metadata.finalizers as string[] | undefined) ?? [];
        const dependents = [...this.#stored.values()].filter(({ object }) =>
          object.metadata.ownerReferences?.some(({ uid }) => uid === metadata.uid),
        );
        if (metadata.deletionTimestamp && finalizers.includes('orphan')) {
          for (const dependent of dependents) {
            const kept = dependent.object.metadata.ownerReferences!.filter(({ uid }) => uid !== metadata.uid);
            this.#replaceMetadata(dependent, { ownerReferences: kept });
          }
          this.#replaceMetadata(stored, { finalizers: finalizers.filter((name) => name !== 'orphan') });
          changed = true;
        } else if (metadata.deletionTimestamp && finalizers.includes('foregroundDeletion')) {
          const blocking = dependents.filter(({ object }) => !object.metadata.deletionTimestamp);
          for (const { type, object } of blocking) this.#delete(type, object.metadata, {});
          if (dependents.length === 0) {
            this.#replaceMetadata(stored, {
              finalizers: finalizers.filter((name) => name !== 'foregroundDeletion'),
            });
          }
          changed ||= blocking.length > 0 || dependents.length === 0;
        } else if (
          owners.length > 0 &&
          !metadata.deletionTimestamp &&
          !owners.some(({ uid }) => byUid.has(uid))
        ) {
          this.#delete(stored.type, metadata, {});
          changed = true;
        }
      }
    }
  }

  async #request(request: MemoryRequest): Promise<void> {
    this.requests.push(structuredClone(request));
    // A real answer never comes in the same turn: code that depends on that would fail only in production.
    await Promise.resolve();
    await this.#options.intercept?.(request);
  }

  async #write(request: MemoryRequest, options: WriteOptions): Promise<void> {
    options.signal?.throwIfAborted();
    options.beforeSend?.();
    await this.#request(request);
  }

  #need(type: ResourceType, ref: ObjectRef): { before: Stored } {
    const before = this.#stored.get(keyOf(type, ref));
    if (before === undefined) throw notFound(type, ref);
    return { before };
  }

  #checkPreconditions(type: ResourceType, sent: ObjectMeta, current: KubeObject): void {
    const { uid, resourceVersion } = sent;
    if (uid !== undefined && uid !== current.metadata.uid) {
      throw conflict(
        type,
        sent,
        `Precondition failed: UID in precondition: ${uid}, UID: ${current.metadata.uid}`,
      );
    }
    if (resourceVersion !== undefined && resourceVersion !== current.metadata.resourceVersion) {
      throw conflict(
        type,
        sent,
        'the object has been modified; please apply your changes to the latest version',
      );
    }
  }

  #update(type: ResourceType, ref: ObjectRef, sent: KubeObject, options: WriteOptions): KubeObject {
    const { subresource } = options;
    const { before } = this.#need(type, ref);
    this.#checkPreconditions(type, sent.metadata, before.object);
    const current = before.object;
    let next: KubeObject;
    if (subresource === 'scale')
      next = { ...current, spec: { ...current.spec, replicas: sent.spec.replicas } };
    else if (subresource === 'status') next = withStatus(current, sent.status);
    else {
      next = { ...sent, metadata: { ...sent.metadata } };
      if (hasStatus(type)) next = withStatus(next, current.status);
    }
    const who = { manager: updateManager, subresource: subresource ?? '' };
    const managers = updateFields(current, next, before.managers, who);
    const stored = this.#store(type, before, next, managers, options);
    return subresource === 'scale' ? scaleOf(stored) : stored;
  }

  #create(
    type: ResourceType,
    object: KubeObject,
    options: WriteOptions,
    managers?: readonly ManagerEntry[],
  ): KubeObject {
    const next = hasStatus(type) ? withStatus(object, undefined) : object;
    const owners = managers ?? updateFields(undefined, next, [], { manager: updateManager, subresource: '' });
    return this.#store(type, undefined, next, owners, options);
  }

  /** The only place that stores: sets what the server sets, logs the change, tells the watchers. */
  #store(
    type: ResourceType,
    before: Stored | undefined,
    sent: KubeObject,
    managers: readonly ManagerEntry[],
    options: { dryRun?: boolean } = {},
  ): KubeObject {
    const old = before?.object;
    const next = structuredClone(sent);
    const now = timestamp(this.#options.now?.() ?? new Date());
    next.metadata = {
      ...next.metadata,
      uid: old?.metadata.uid ?? `00000000-0000-4000-8000-${String(++this.#counter).padStart(12, '0')}`,
      creationTimestamp: old?.metadata.creationTimestamp ?? now,
      managedFields: managedFields(managers, next.apiVersion, now),
    };
    // Only deletion sets these, and nothing takes them back.
    for (const field of ['deletionTimestamp', 'deletionGracePeriodSeconds']) {
      if (old?.metadata[field] === undefined) delete next.metadata[field];
      else next.metadata[field] = old.metadata[field];
    }
    if (withoutGeneration.has(type.plural)) delete next.metadata.generation;
    else {
      const changed = old !== undefined && !isDeepStrictEqual(desired(type, old), desired(type, next));
      next.metadata.generation =
        (old?.metadata.generation ?? (old === undefined ? 1 : 0)) + (changed ? 1 : 0);
    }
    const message = this.#options.validate?.(type, next);
    if (message !== undefined) throw invalid(type, next.metadata, message);
    if (old !== undefined) {
      next.metadata.resourceVersion = old.metadata.resourceVersion!;
      // A write that changes nothing is no write: no new version, no event.
      if (isDeepStrictEqual(withoutTimes(old), withoutTimes(next))) return structuredClone(old);
    }
    if (options.dryRun) return next;
    const finalizers = next.metadata.finalizers as string[] | undefined;
    if (old?.metadata.deletionTimestamp && !finalizers?.length && !isTerminatingPod(type, next)) {
      this.#commit(type, old, next, managers, true);
    } else this.#commit(type, old, next, managers, false);
    return structuredClone(next);
  }

  #commit(
    type: ResourceType,
    before: KubeObject | undefined,
    after: KubeObject,
    managers: readonly ManagerEntry[],
    deleted: boolean,
  ): void {
    after.metadata.resourceVersion = String(++this.#resourceVersion);
    const key = keyOf(type, after.metadata);
    if (deleted) this.#stored.delete(key);
    else this.#stored.set(key, { type, object: after, managers });
    const entry: LogEntry = { resourceVersion: this.#resourceVersion, type, before, after, deleted };
    this.#log.push(entry);
    for (const watcher of this.#watchers) watcher.offer(entry);
  }

  #replaceMetadata(stored: Stored, metadata: Record<string, unknown>): void {
    const next = { ...stored.object, metadata: { ...stored.object.metadata, ...metadata } };
    this.#store(stored.type, stored, next, stored.managers);
  }

  #delete(type: ResourceType, ref: ObjectRef, options: DeleteOptions): void {
    const stored = this.#stored.get(keyOf(type, ref));
    if (stored === undefined) return;
    const { object, managers } = stored;
    const { metadata } = object;
    if (options.uid !== undefined && options.uid !== metadata.uid) {
      throw conflict(
        type,
        ref,
        `Precondition failed: UID in precondition: ${options.uid}, UID: ${metadata.uid}`,
      );
    }
    const added = { Foreground: ['foregroundDeletion'], Orphan: ['orphan'], Background: [] };
    const finalizers = [
      ...new Set([
        ...((metadata.finalizers as string[] | undefined) ?? []),
        ...added[options.propagationPolicy ?? 'Background'],
      ]),
    ];
    const graceSeconds =
      type.plural === 'pods' && object.spec?.nodeName
        ? (options.gracePeriodSeconds ?? object.spec.terminationGracePeriodSeconds ?? 30)
        : 0;
    const next: KubeObject = { ...object, metadata: { ...metadata } };
    if (finalizers.length === 0 && graceSeconds === 0) {
      this.#commit(type, object, next, managers, true);
      return;
    }
    if (metadata.deletionTimestamp && (graceSeconds > 0 || finalizers.length > 0)) return;
    const now = this.#options.now?.() ?? new Date();
    next.metadata.deletionTimestamp = timestamp(new Date(now.getTime() + graceSeconds * 1000));
    next.metadata.deletionGracePeriodSeconds = graceSeconds;
    if (finalizers.length > 0) next.metadata.finalizers = finalizers;
    if (next.metadata.generation !== undefined) next.metadata.generation += 1;
    this.#commit(type, object, next, managers, false);
  }

  /** All objects of a type as they were at a resource version, in the order of their keys. */
  #snapshot(
    type: ResourceType,
    resourceVersion: number,
    matches: (object: KubeObject) => boolean,
  ): KubeObject[] {
    if (resourceVersion < this.#compactedAt) throw expired(`too old resource version: ${resourceVersion}`);
    const prefix = keyOf(type, { name: '', namespace: '' }).slice(0, -1);
    const state = new Map<string, KubeObject>();
    for (const [key, { object }] of this.#stored) if (key.startsWith(prefix)) state.set(key, object);
    for (const entry of this.#log.toReversed()) {
      if (entry.resourceVersion <= resourceVersion) break;
      const key = keyOf(entry.type, entry.after.metadata);
      if (!key.startsWith(prefix)) continue;
      if (entry.before === undefined) state.delete(key);
      else state.set(key, entry.before);
    }
    const keys = [...state.keys()].sort();
    return keys.map((key) => state.get(key)!).filter(matches);
  }
}

/** One watch: filters, translates selector changes into ADDED and DELETED, queues. */
class Watcher implements AsyncIterable<WatchEvent> {
  readonly #type: ResourceType;
  readonly #matches: (object: KubeObject) => boolean;
  readonly #queue: WatchEvent[] = [];
  #ended: { error: unknown } | undefined;
  #wake: (() => void) | undefined;

  constructor(type: ResourceType, matches: (object: KubeObject) => boolean) {
    this.#type = type;
    this.#matches = matches;
  }

  offer({ type, before, after, deleted }: LogEntry): void {
    if (type.group !== this.#type.group || type.plural !== this.#type.plural) return;
    const was = before !== undefined && this.#matches(before);
    const is = !deleted && this.#matches(after);
    if (!was && !is) return;
    if (is) this.push({ type: was ? 'MODIFIED' : 'ADDED', object: after });
    else {
      // The last state that the selector saw, at the resource version of the change.
      const { resourceVersion } = after.metadata;
      const metadata = { ...before!.metadata, ...(resourceVersion === undefined ? {} : { resourceVersion }) };
      this.push({ type: 'DELETED', object: { ...before!, metadata } });
    }
  }

  push(event: WatchEvent): void {
    if (this.#ended !== undefined) return;
    this.#queue.push(structuredClone(event));
    this.#wake?.();
  }

  end(error?: unknown): void {
    this.#ended ??= { error };
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<WatchEvent, void> {
    while (true) {
      const event = this.#queue.shift();
      if (event !== undefined) yield event;
      else if (this.#ended !== undefined) {
        if (this.#ended.error !== undefined) throw this.#ended.error;
        return;
      } else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

function keyOf(type: ResourceType, ref: ObjectRef): string {
  if (!type.namespaced) return `${type.group}/${type.plural}//${ref.name}`;
  if (ref.namespace === undefined)
    throw new Error(`${type.kind} ${JSON.stringify(ref.name)} without a namespace`);
  return `${type.group}/${type.plural}/${ref.namespace}/${ref.name}`;
}

function nameOf(metadata: ObjectMeta): { namespace: string | undefined; name: string } {
  return { namespace: metadata.namespace, name: metadata.name };
}

function selection(options: {
  namespace?: string;
  labelSelector?: string;
  fieldSelector?: string;
}): (object: KubeObject) => boolean {
  const labels = labelMatcher(options.labelSelector ?? '');
  const fields = fieldMatcher(options.fieldSelector ?? '');
  const { namespace } = options;
  return (object) =>
    (namespace === undefined || object.metadata.namespace === namespace) &&
    labels(object.metadata.labels ?? {}) &&
    fields(object);
}

function hasStatus(type: ResourceType): boolean {
  return !withoutStatus.has(type.plural);
}

function withStatus(object: KubeObject, status: unknown): KubeObject {
  const { status: _dropped, ...rest } = object;
  return status === undefined ? (rest as KubeObject) : ({ ...rest, status } as KubeObject);
}

/** The part of an object that a write through a subresource may own. */
function part(type: ResourceType, object: KubeObject, subresource: string | undefined): KubeObject {
  const { apiVersion, kind, metadata } = object;
  if (subresource === 'status')
    return { apiVersion, kind, metadata: nameOf(metadata), status: object.status } as never;
  return hasStatus(type) ? withStatus(object, undefined) : object;
}

/** What bumps the generation: everything but metadata and status. */
function desired(type: ResourceType, object: KubeObject): unknown {
  const { metadata: _metadata, status, ...rest } = object;
  return hasStatus(type) ? rest : { ...rest, status };
}

function withoutTimes(object: KubeObject): unknown {
  const fields = object.metadata.managedFields as { time?: string }[] | undefined;
  const stable = fields?.map(({ time: _time, ...entry }) => entry);
  return { ...object, metadata: { ...object.metadata, managedFields: stable } };
}

function scaleOf(object: KubeObject): KubeObject {
  const { name, namespace, uid, resourceVersion } = object.metadata;
  return {
    apiVersion: 'autoscaling/v1',
    kind: 'Scale',
    metadata: { name, namespace, uid, resourceVersion } as ObjectMeta,
    spec: { replicas: object.spec?.replicas ?? 0 },
    status: { replicas: object.status?.replicas ?? 0 },
  };
}

function isTerminatingPod(type: ResourceType, object: KubeObject): boolean {
  return type.plural === 'pods' && Number(object.metadata.deletionGracePeriodSeconds ?? 0) > 0;
}

/** RFC 7396. */
function mergePatched(target: unknown, patch: unknown): unknown {
  if (typeof patch !== 'object' || patch === null || Array.isArray(patch)) return patch;
  const source = typeof target === 'object' && target !== null && !Array.isArray(target) ? target : {};
  const result: Record<string, unknown> = { ...source };
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = mergePatched(result[name], value);
  }
  return result;
}

/** RFC 3339 in seconds, as metav1.Time is written. */
function timestamp(date: Date): string {
  return date.toISOString().replace(/\.\d+Z$/, 'Z');
}

function qualified(type: ResourceType): string {
  return type.group === '' ? type.plural : `${type.plural}.${type.group}`;
}

function notFound(type: ResourceType, ref: ObjectRef): KubeError {
  return new KubeError(404, 'NotFound', `${qualified(type)} "${ref.name}" not found`);
}

function alreadyExists(type: ResourceType, ref: ObjectRef): KubeError {
  return new KubeError(409, 'AlreadyExists', `${qualified(type)} "${ref.name}" already exists`);
}

function conflict(type: ResourceType, ref: ObjectRef, message: string): KubeError {
  return new KubeError(
    409,
    'Conflict',
    `Operation cannot be fulfilled on ${qualified(type)} "${ref.name}": ${message}`,
  );
}

function invalid(type: ResourceType, ref: ObjectRef, message: string): KubeError {
  return new KubeError(422, 'Invalid', `${type.kind} "${ref.name}" is invalid: ${message}`);
}

function expired(message: string): KubeError {
  return new KubeError(410, 'Expired', message);
}
