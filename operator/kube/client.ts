/**
 * The Kubernetes API as the operator and local/ use it: plain JSON objects in and out, nothing dropped, nothing renamed.
 * Implementations: the real one over @kubernetes/client-node's configuration and authentication, and an in-memory one
 * for tests. Must not know any domain.
 */

export interface ResourceType {
  /** '' for the core group. */
  readonly group: string;
  readonly version: string;
  readonly kind: string;
  readonly plural: string;
  readonly namespaced: boolean;
}

export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
  blockOwnerDeletion?: boolean;
}

export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid?: string;
  resourceVersion?: string;
  generation?: number;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: OwnerReference[];
  managedFields?: unknown[];
  [field: string]: unknown;
}

export interface KubeObject {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
  // biome-ignore lint/suspicious/noExplicitAny: an API object is as open as the API server's schema.
  [field: string]: any;
}

export interface ObjectRef {
  readonly namespace?: string;
  readonly name: string;
}

export interface GetOptions {
  readonly signal?: AbortSignal;
}

export interface ListOptions {
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  readonly limit?: number;
  readonly continue?: string;
  readonly resourceVersion?: string;
  readonly resourceVersionMatch?: 'Exact' | 'NotOlderThan';
  readonly signal?: AbortSignal;
}

export interface ObjectList {
  readonly items: KubeObject[];
  readonly resourceVersion: string;
  /** Present when there are more pages. */
  readonly continue?: string;
}

export interface WatchOptions {
  readonly namespace?: string;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  readonly resourceVersion: string;
  /** The server ends the watch after so long. */
  readonly timeoutSeconds?: number;
  readonly signal: AbortSignal;
}

export type WatchEvent =
  | { readonly type: 'ADDED' | 'MODIFIED' | 'DELETED'; readonly object: KubeObject }
  | { readonly type: 'BOOKMARK'; readonly resourceVersion: string };

export interface WriteOptions {
  readonly subresource?: 'status' | 'scale' | 'binding' | 'eviction' | 'token';
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  /**
   * Called synchronously when the connection is ready and immediately before the request's first byte is written, again
   * before a repetition. What it throws is thrown to the caller, and nothing is sent. For fencing by a lease.
   */
  readonly beforeSend?: () => void;
}

export interface ApplyOptions extends WriteOptions {
  readonly fieldManager: string;
  /** Takes fields from other managers; only on objects known to be ours. */
  readonly force?: boolean;
}

export interface DeleteOptions extends WriteOptions {
  /** Precondition: delete only this very object. */
  readonly uid?: string;
  readonly propagationPolicy?: 'Background' | 'Foreground' | 'Orphan';
  readonly gracePeriodSeconds?: number;
}

/**
 * Every method throws KubeError for an answer other than 2xx, and for a connection that failed (status 0); the signal's
 * reason when the signal aborted.
 */
export interface KubeClient {
  /** Undefined when there is no such object (404). */
  get(type: ResourceType, ref: ObjectRef, options?: GetOptions): Promise<KubeObject | undefined>;
  list(type: ResourceType, options?: ListOptions): Promise<ObjectList>;
  /** Ends when the server ends it; throws KubeError (410 Expired: list again). */
  watch(type: ResourceType, options: WatchOptions): AsyncIterable<WatchEvent>;
  create(type: ResourceType, object: KubeObject, options?: WriteOptions): Promise<KubeObject>;
  /** PUT; with metadata.resourceVersion a conflict is KubeError 409. */
  replace(type: ResourceType, object: KubeObject, options?: WriteOptions): Promise<KubeObject>;
  /** Server-side apply. */
  apply(type: ResourceType, object: KubeObject, options: ApplyOptions): Promise<KubeObject>;
  mergePatch(type: ResourceType, ref: ObjectRef, patch: unknown, options?: WriteOptions): Promise<KubeObject>;
  /** Resolves also when the object is already gone. */
  remove(type: ResourceType, ref: ObjectRef, options?: DeleteOptions): Promise<void>;
  /** GET of any other path (/version, /readyz, logs); the body as text. */
  getText(path: string): Promise<string>;
}

/** The API server's Status object as an error. `status` is the HTTP code, 0 when there was no answer. */
export class KubeError extends Error {
  readonly status: number;
  /** The Status object's reason: NotFound, Conflict, AlreadyExists, Expired, Invalid, Forbidden, ... */
  readonly reason: string;
  /** Seconds from Retry-After or details.retryAfterSeconds. */
  readonly retryAfterSeconds: number | undefined;

  constructor(
    status: number,
    reason: string,
    message: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'KubeError';
    this.status = status;
    this.reason = reason;
    this.retryAfterSeconds = options.retryAfterSeconds;
  }
}

/** Well-known resource types, named once. */
export const resources = {
  pods: { group: '', version: 'v1', kind: 'Pod', plural: 'pods', namespaced: true },
  services: { group: '', version: 'v1', kind: 'Service', plural: 'services', namespaced: true },
  nodes: { group: '', version: 'v1', kind: 'Node', plural: 'nodes', namespaced: false },
  namespaces: { group: '', version: 'v1', kind: 'Namespace', plural: 'namespaces', namespaced: false },
  secrets: { group: '', version: 'v1', kind: 'Secret', plural: 'secrets', namespaced: true },
  configMaps: { group: '', version: 'v1', kind: 'ConfigMap', plural: 'configmaps', namespaced: true },
  persistentVolumes: {
    group: '',
    version: 'v1',
    kind: 'PersistentVolume',
    plural: 'persistentvolumes',
    namespaced: false,
  },
  persistentVolumeClaims: {
    group: '',
    version: 'v1',
    kind: 'PersistentVolumeClaim',
    plural: 'persistentvolumeclaims',
    namespaced: true,
  },
  events: { group: '', version: 'v1', kind: 'Event', plural: 'events', namespaced: true },
  deployments: { group: 'apps', version: 'v1', kind: 'Deployment', plural: 'deployments', namespaced: true },
  replicaSets: { group: 'apps', version: 'v1', kind: 'ReplicaSet', plural: 'replicasets', namespaced: true },
  controllerRevisions: {
    group: 'apps',
    version: 'v1',
    kind: 'ControllerRevision',
    plural: 'controllerrevisions',
    namespaced: true,
  },
  jobs: { group: 'batch', version: 'v1', kind: 'Job', plural: 'jobs', namespaced: true },
  leases: { group: 'coordination.k8s.io', version: 'v1', kind: 'Lease', plural: 'leases', namespaced: true },
  endpointSlices: {
    group: 'discovery.k8s.io',
    version: 'v1',
    kind: 'EndpointSlice',
    plural: 'endpointslices',
    namespaced: true,
  },
  podDisruptionBudgets: {
    group: 'policy',
    version: 'v1',
    kind: 'PodDisruptionBudget',
    plural: 'poddisruptionbudgets',
    namespaced: true,
  },
  resourceQuotas: {
    group: '',
    version: 'v1',
    kind: 'ResourceQuota',
    plural: 'resourcequotas',
    namespaced: true,
  },
  customResourceDefinitions: {
    group: 'apiextensions.k8s.io',
    version: 'v1',
    kind: 'CustomResourceDefinition',
    plural: 'customresourcedefinitions',
    namespaced: false,
  },
  inferenceServices: {
    group: 'sluice.dev',
    version: 'v1alpha1',
    kind: 'InferenceService',
    plural: 'inferenceservices',
    namespaced: true,
  },
} as const satisfies Record<string, ResourceType>;
