/**
 * What the process node does with each field of a pod's spec: the one list of honoured fields, the one of fields that
 * are accepted with a warning, and the rule that anything else fails the pod. README.md repeats the lists and a test
 * compares the two. Pure.
 */

export interface FieldRow {
  /**
   * From the pod's spec down; `containers[]` stands for init containers too, and a row covers everything below it.
   * A field that is false, empty or null counts as absent.
   */
  readonly path: string;
  readonly note?: string;
}

const probe = (name: string): FieldRow[] =>
  ['exec', 'httpGet', 'tcpSocket', 'initialDelaySeconds', 'periodSeconds', 'timeoutSeconds']
    .concat(['successThreshold', 'failureThreshold', 'terminationGracePeriodSeconds'])
    .map((field) => ({ path: `containers[].${name}.${field}` }));

export const honouredFields: readonly FieldRow[] = [
  { path: 'containers[].name' },
  { path: 'containers[].image', note: "a name in the node's image table" },
  { path: 'containers[].imagePullPolicy', note: 'nothing is ever pulled' },
  { path: 'containers[].command' },
  { path: 'containers[].args' },
  { path: 'containers[].workingDir' },
  {
    path: 'containers[].ports',
    note: "names for probes; a hostPort changes nothing, the pod's address is the machine's",
  },
  { path: 'containers[].env' },
  { path: 'containers[].envFrom' },
  {
    path: 'containers[].resources.limits.nvidia.com/gpu',
    note: 'ids in NVIDIA_VISIBLE_DEVICES, ranks in SLUICE_DEVICES',
  },
  { path: 'containers[].resources.requests', note: "the scheduler's" },
  { path: 'containers[].resizePolicy', note: 'limits are not enforced, so nothing needs a restart' },
  { path: 'containers[].restartPolicy', note: 'Always, on an init container: a sidecar' },
  { path: 'containers[].volumeMounts[].name' },
  { path: 'containers[].volumeMounts[].mountPath' },
  { path: 'containers[].volumeMounts[].subPath' },
  { path: 'containers[].volumeMounts[].subPathExpr' },
  { path: 'containers[].volumeMounts[].readOnly' },
  ...probe('livenessProbe'),
  ...probe('readinessProbe'),
  ...probe('startupProbe'),
  { path: 'containers[].lifecycle.preStop' },
  { path: 'containers[].lifecycle.postStart' },
  { path: 'containers[].terminationMessagePath' },
  { path: 'containers[].terminationMessagePolicy' },
  { path: 'containers[].securityContext.runAsUser', note: 'as root' },
  { path: 'containers[].securityContext.runAsGroup', note: 'as root' },
  {
    path: 'containers[].securityContext.readOnlyRootFilesystem',
    note: 'where the machine allows mount namespaces',
  },
  { path: 'securityContext.runAsUser', note: 'as root' },
  { path: 'securityContext.runAsGroup', note: 'as root' },
  { path: 'volumes[].name' },
  { path: 'volumes[].emptyDir.medium', note: 'on disk whatever it says' },
  { path: 'volumes[].hostPath' },
  { path: 'volumes[].configMap' },
  { path: 'volumes[].secret' },
  { path: 'volumes[].downwardAPI' },
  { path: 'volumes[].projected.defaultMode' },
  { path: 'volumes[].projected.sources[].configMap' },
  { path: 'volumes[].projected.sources[].secret' },
  { path: 'volumes[].projected.sources[].downwardAPI' },
  { path: 'volumes[].projected.sources[].serviceAccountToken' },
  { path: 'volumes[].persistentVolumeClaim', note: 'bound to a volume of type hostPath or local' },
  { path: 'restartPolicy' },
  { path: 'terminationGracePeriodSeconds' },
  { path: 'activeDeadlineSeconds' },
  { path: 'readinessGates' },
  { path: 'hostname' },
  { path: 'hostNetwork', note: "the pod's address is then the node's" },
  { path: 'serviceAccountName' },
  { path: 'serviceAccount' },
  { path: 'automountServiceAccountToken' },
  { path: 'imagePullSecrets', note: 'nothing is ever pulled' },
  { path: 'enableServiceLinks', note: 'only KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are given' },
  { path: 'dnsPolicy', note: "the machine's resolver, always" },
  { path: 'os.name' },
  { path: 'nodeName', note: "the scheduler's, as are those that follow" },
  { path: 'nodeSelector' },
  { path: 'affinity' },
  { path: 'tolerations' },
  { path: 'topologySpreadConstraints' },
  { path: 'schedulerName' },
  { path: 'schedulingGates' },
  { path: 'priority' },
  { path: 'priorityClassName' },
  { path: 'preemptionPolicy' },
  { path: 'overhead' },
];

/** Isolation that a plain process does not have. */
export const warnedFields: readonly FieldRow[] = [
  { path: 'containers[].securityContext' },
  { path: 'containers[].resources.limits.cpu' },
  { path: 'containers[].resources.limits.memory' },
  { path: 'containers[].resources.limits.ephemeral-storage' },
  { path: 'containers[].volumeMounts[].mountPropagation' },
  { path: 'securityContext' },
  { path: 'volumes[].emptyDir.sizeLimit' },
  { path: 'resources' },
  { path: 'hostPID' },
  { path: 'hostIPC' },
  { path: 'hostUsers' },
  { path: 'shareProcessNamespace' },
  { path: 'runtimeClassName' },
  { path: 'dnsConfig' },
];

export interface FieldReport {
  /** Accepted, but without the effect they would have elsewhere; paths as in the pod. */
  readonly warned: readonly string[];
  readonly unsupported: readonly string[];
}

export function inspectFields(spec: unknown): FieldReport {
  const warned: string[] = [];
  const unsupported: string[] = [];
  const visit = (value: unknown, shown: string, pattern: string): void => {
    if (isAbsent(value)) return;
    if (pattern !== '') {
      if (honoured.has(pattern)) return;
      // A longer row, if there is one, decides below a field that another row covers.
      const covered = warnedPaths.has(pattern);
      if (!prefixes.has(pattern)) {
        (covered ? warned : unsupported).push(shown);
        return;
      }
      if (covered) {
        for (const [key, inner] of Object.entries(value as object)) {
          if (!isAbsent(inner) && !honoured.has(`${pattern}.${key}`)) warned.push(`${shown}.${key}`);
        }
        return;
      }
    }
    if (Array.isArray(value)) {
      value.forEach((item, index) => {
        visit(item, `${shown}[${index}]`, `${pattern}[]`);
      });
    } else if (typeof value === 'object') {
      for (const [key, inner] of Object.entries(value as object)) {
        const name = pattern === '' && key === 'initContainers' ? 'containers' : key;
        visit(inner, shown === '' ? key : `${shown}.${key}`, pattern === '' ? name : `${pattern}.${name}`);
      }
    } else {
      unsupported.push(shown);
    }
  };
  visit(spec, '', '');
  return { warned, unsupported };
}

const honoured = new Set(honouredFields.map((row) => row.path));
const warnedPaths = new Set(warnedFields.map((row) => row.path));
/** Patterns below which some row lies. */
const prefixes = new Set(
  [...honoured, ...warnedPaths].flatMap((path) => {
    const cuts: string[] = [];
    for (let at = 0; at < path.length; at++) {
      if (path[at] === '.' || path.startsWith('[]', at)) cuts.push(path.slice(0, at));
      if (path.startsWith('[].', at)) cuts.push(path.slice(0, at + 2));
    }
    return cuts;
  }),
);

function isAbsent(value: unknown): boolean {
  if (value === undefined || value === null || value === false || value === '') return true;
  if (Array.isArray(value)) return value.length === 0;
  return typeof value === 'object' && Object.keys(value as object).length === 0;
}
