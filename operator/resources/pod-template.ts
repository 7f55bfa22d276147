/**
 * A revision's inputs -> the template of its pods. The one function that knows a pod's shape. Its result is frozen in the
 * revision's record: what changes here reaches only revisions that are made afterwards. Pure.
 */
import { runtimeOptions, runtimeSpecArgs } from '../../runtime/config.ts';
import type { JsonObject } from '../api/objects.ts';
import type { RevisionInputs } from '../api/revision.ts';
import { revisionLabels } from './labels.ts';
import { mergeTemplate } from './merge.ts';

export const runtimeContainer = 'runtime';
export const httpPortName = 'http';
export const modelsMountPath = '/models';
export const cacheMountPath = '/cache';

/** A checkpoint of which nothing is known may take this long to start before the kubelet gives up on the container. */
export const startupSeconds = 3600;
const startupPeriodSeconds = 2;

/** Time for proxies to learn that the pod is going before the runtime is told; its own --shutdown-delay comes after. */
const preStopSleepSeconds = 2;
/** Beyond what the runtime takes by its own account. */
const graceMarginSeconds = 5;

export interface TemplateContext {
  readonly serviceName: string;
  readonly revision: string;
  /** For revisions whose author named no image. */
  readonly defaultImage: string;
  /** The most that /cache may hold; absent: what that may be is not known. */
  readonly cacheBytes?: number;
  /** The longest that downloading and loading may take; absent: it is not known. */
  readonly startupSeconds?: number;
}

export function podTemplate(inputs: RevisionInputs, context: TemplateContext): JsonObject {
  const labels = revisionLabels(context.serviceName, context.revision);
  const base: JsonObject = {
    metadata: { labels, annotations: { 'kubectl.kubernetes.io/default-container': runtimeContainer } },
    spec: {
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      terminationGracePeriodSeconds: terminationGraceSeconds(inputs),
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      // Where there are several nodes a lost one takes few replicas; where there is one it makes no difference.
      topologySpreadConstraints: [
        {
          maxSkew: 1,
          topologyKey: 'kubernetes.io/hostname',
          whenUnsatisfiable: 'ScheduleAnyway',
          labelSelector: { matchLabels: labels },
        },
      ],
      containers: [container(inputs, context)],
      volumes: [...modelVolumes(inputs), { name: 'cache', emptyDir: sized(context.cacheBytes) }],
    },
  };
  const merged = mergeTemplate(base, (inputs.template ?? {}) as JsonObject);
  // Whatever the overlay says, the selectors must find the pods.
  return mergeTemplate(merged, { metadata: { labels } });
}

/** How long a template, its author's own probe included, gives a pod to start; undefined where it sets no end. */
export function startupSecondsOf({ containers = [] }: PodSpecPart): number | undefined {
  const probe = containers.find(({ name }) => name === runtimeContainer)?.startupProbe;
  if (probe === undefined || probe === null) return undefined;
  const { initialDelaySeconds = 0, periodSeconds = 10, failureThreshold = 3 } = probe;
  return initialDelaySeconds + periodSeconds * failureThreshold;
}

interface PodSpecPart {
  readonly containers?: readonly {
    readonly name?: string;
    readonly startupProbe?: {
      readonly initialDelaySeconds?: number;
      readonly periodSeconds?: number;
      readonly failureThreshold?: number;
    } | null;
  }[];
}

/** Only what the author wrote: the runtime's defaults are the runtime's own. */
function runtimeArgs(inputs: RevisionInputs): string[] {
  const { model, quantization, runtime: { extraArgs = [], ...options } = {} } = inputs;
  return [
    'serve',
    ...modelArguments(inputs),
    ...(model.servedNames ?? []).map((name) => flag(runtimeOptions.servedModelName, name)),
    ...(quantization === undefined ? [] : [flag(runtimeOptions.quantizationEncoding, quantization)]),
    ...runtimeSpecArgs(options),
    ...extraArgs,
  ];
}

/** Which files: the path first. On the hub the commit, as soon as it is known. */
export function modelArguments({ model, commit }: RevisionInputs): string[] {
  const onHub = isOnHub(model.path);
  const revision = onHub ? (commit ?? model.revision) : undefined;
  return [
    flag(runtimeOptions.modelPath, onHub ? model.path : modelsMountPath + model.path),
    ...(revision === undefined ? [] : [flag(runtimeOptions.huggingfaceRevision, revision)]),
    ...(model.weightFiles ?? []).map((file) => flag(runtimeOptions.weightPath, weightPath(model.path, file))),
  ];
}

export function isOnHub(modelPath: string): boolean {
  return !modelPath.startsWith('/');
}

function hubEnvironment({ model: { path, endpoint, tokenSecretRef } }: RevisionInputs): JsonObject[] {
  if (!isOnHub(path)) return [];
  return [
    { name: 'HF_HUB_CACHE', value: `${cacheMountPath}/hub` },
    ...(endpoint === undefined ? [] : [{ name: 'HF_ENDPOINT', value: endpoint }]),
    ...(tokenSecretRef === undefined
      ? []
      : [{ name: 'HF_TOKEN', valueFrom: { secretKeyRef: { ...tokenSecretRef } } }]),
  ];
}

function flag(option: { readonly flag: string }, value: string): string {
  return `--${option.flag}=${value}`;
}

function weightPath(modelPath: string, file: string): string {
  if (isOnHub(modelPath) && !file.startsWith('/')) return `${modelPath}/${file}`;
  return modelsMountPath + (file.startsWith('/') ? file : `${modelPath.replace(/\/+$/, '')}/${file}`);
}

function container(inputs: RevisionInputs, context: TemplateContext): JsonObject {
  const gpus = inputs.gpus ?? 0;
  const subPath = inputs.storage?.persistentVolumeClaim?.subPath;
  const probe = (path: string) => ({
    httpGet: { path, port: httpPortName, scheme: 'HTTP' },
    timeoutSeconds: 5,
  });
  return {
    name: runtimeContainer,
    image: inputs.image ?? context.defaultImage,
    args: runtimeArgs(inputs),
    env: [{ name: runtimeOptions.cacheDir.env, value: cacheMountPath }, ...hubEnvironment(inputs)],
    ports: [{ name: httpPortName, containerPort: runtimeOptions.port.default, protocol: 'TCP' }],
    ...(gpus === 0
      ? {}
      : { resources: { limits: { [inputs.gpuResource ?? 'nvidia.com/gpu']: String(gpus) } } }),
    volumeMounts: [
      ...(inputs.storage === undefined
        ? []
        : [{ name: 'models', mountPath: modelsMountPath, readOnly: true, ...(subPath ? { subPath } : {}) }]),
      { name: 'cache', mountPath: cacheMountPath },
    ],
    startupProbe: {
      ...probe('/health'),
      periodSeconds: startupPeriodSeconds,
      failureThreshold: Math.ceil((context.startupSeconds ?? startupSeconds) / startupPeriodSeconds),
    },
    // Where a pod that ends is the only one, proxies go on sending to it until these fail: well within --shutdown-delay.
    readinessProbe: { ...probe('/readyz'), periodSeconds: 1, failureThreshold: 2 },
    livenessProbe: { ...probe('/livez'), periodSeconds: 10, failureThreshold: 6 },
    lifecycle: { preStop: { sleep: { seconds: preStopSleepSeconds } } },
    terminationMessagePolicy: 'FallbackToLogsOnError',
    securityContext: {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    },
  };
}

function modelVolumes(inputs: RevisionInputs): JsonObject[] {
  const claim = inputs.storage?.persistentVolumeClaim;
  if (claim === undefined) return [];
  return [{ name: 'models', persistentVolumeClaim: { claimName: claim.claimName, readOnly: true } }];
}

const gibibyte = 2 ** 30;

/** A pod that writes more is evicted, before the node runs out of disk and others are. */
function sized(bytes: number | undefined): JsonObject {
  return bytes === undefined ? {} : { sizeLimit: `${Math.ceil(bytes / gibibyte)}Gi` };
}

function terminationGraceSeconds({ runtime = {} }: RevisionInputs): number {
  return (
    preStopSleepSeconds +
    (runtime.shutdownDelaySeconds ?? runtimeOptions.shutdownDelay.default) +
    (runtime.shutdownGraceSeconds ?? runtimeOptions.shutdownGrace.default) +
    graceMarginSeconds
  );
}
