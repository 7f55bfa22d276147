/**
 * Why pods do not start, from what scheduler and kubelet write into their status. Pure. The words are stable: a restart
 * count or a back-off that moves must not change them.
 */
import type { AnyObject } from '../api/objects.ts';
import { runtimeContainer } from '../resources/pod-template.ts';

export interface Trouble {
  readonly reason:
    | 'RuntimeConfigRejected'
    | 'ImagePullFailed'
    | 'ContainerConfigInvalid'
    | 'CrashLoop'
    | 'PodsRejected'
    | 'Unschedulable';
  readonly message: string;
}

/** The worst first: what no waiting cures comes before what a free GPU might. */
const severity: readonly Trouble['reason'][] = [
  'RuntimeConfigRejected',
  'ImagePullFailed',
  'ContainerConfigInvalid',
  'CrashLoop',
  'PodsRejected',
  'Unschedulable',
];

const imageReasons = [
  'ErrImagePull',
  'ImagePullBackOff',
  'InvalidImageName',
  'ErrImageNeverPull',
  'ImageInspectError',
  'RegistryUnavailable',
];
const configReasons = [
  'CreateContainerConfigError',
  'CreateContainerError',
  'RunContainerError',
  'PreStartHookError',
  'PostStartHookError',
];

/** The runtime's exit code for flags and checkpoints that it refuses. */
const refusedExitCode = 2;

interface ContainerState {
  readonly waiting?: { readonly reason?: string; readonly message?: string };
  readonly running?: object;
  readonly terminated?: { readonly exitCode: number; readonly reason?: string; readonly message?: string };
}

interface ContainerStatus {
  readonly name: string;
  readonly image?: string;
  readonly ready?: boolean;
  readonly state?: ContainerState;
  readonly lastState?: ContainerState;
}

/** The worst trouble of the pods given and of the Deployment that makes them; of two alike, the first by pod's name. */
export function worstTrouble(pods: readonly AnyObject[], deployment?: AnyObject): Trouble | undefined {
  const found = [...pods].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1)).flatMap(podTroubles);
  if (deployment !== undefined) found.push(...deploymentTroubles(deployment));
  return found.sort((a, b) => severity.indexOf(a.reason) - severity.indexOf(b.reason))[0];
}

/** What the scheduler says about a pod that it found no place for. */
export function unschedulable(pod: AnyObject): { message: string; since: string } | undefined {
  const condition = notScheduled(pod);
  if (condition?.reason !== 'Unschedulable') return undefined;
  // What preemption and claims would give adds numbers and no cause.
  const message = String(condition.message ?? 'no node fits').replace(
    /\s*(no new claims to deallocate,)?\s*preemption: .*$/s,
    '',
  );
  return { message, since: condition.lastTransitionTime ?? pod.metadata.creationTimestamp ?? '' };
}

function notScheduled(
  pod: AnyObject,
): { reason?: string; message?: string; lastTransitionTime?: string } | undefined {
  return (pod.status?.conditions ?? []).find(
    // biome-ignore lint/suspicious/noExplicitAny: a pod condition.
    (each: any) => each.type === 'PodScheduled' && each.status === 'False',
  );
}

function podTroubles(pod: AnyObject): Trouble[] {
  const waiting = unschedulable(pod);
  if (waiting !== undefined)
    return [{ reason: 'Unschedulable', message: `No node can take a pod: ${waiting.message}` }];
  if (notScheduled(pod)?.reason === 'SchedulingGated')
    return [
      {
        reason: 'Unschedulable',
        message:
          'A pod is not scheduled before its scheduling gates are removed (by Kueue, or whoever set them)',
      },
    ];
  const statuses: ContainerStatus[] = [
    ...(pod.status?.initContainerStatuses ?? []),
    ...(pod.status?.containerStatuses ?? []),
  ];
  return statuses.flatMap((status) => containerTrouble(status, pod) ?? []);
}

function containerTrouble(status: ContainerStatus, pod: AnyObject): Trouble | undefined {
  const { reason = '', message = '' } = status.state?.waiting ?? {};
  if (imageReasons.includes(reason)) {
    const detail = imageDetail(message);
    const image = specImage(pod, status.name) ?? status.image ?? '';
    return {
      reason: 'ImagePullFailed',
      message: `The image ${JSON.stringify(image)} of container ${status.name} cannot be pulled${detail === '' ? '' : `: ${detail}`}`,
    };
  }
  if (configReasons.includes(reason))
    return {
      reason: 'ContainerConfigInvalid',
      message: `Container ${status.name} cannot be made: ${message}`,
    };
  const ended = status.state?.terminated ?? status.lastState?.terminated;
  // A restarted container that has become ready has recovered; an init container's success is none of it.
  if (ended === undefined || ended.exitCode === 0 || status.ready) return undefined;
  return crash(status.name, ended, pod);
}

function crash(name: string, ended: NonNullable<ContainerState['terminated']>, pod: AnyObject): Trouble {
  const line = errorLine(ended.message ?? '');
  if (name === runtimeContainer && ended.exitCode === refusedExitCode)
    return {
      reason: 'RuntimeConfigRejected',
      message: `The runtime refuses its configuration or checkpoint: ${line === '' ? 'exit code 2' : line}`,
    };
  if (ended.reason === 'OOMKilled') {
    const limit = container(pod, name)?.resources?.limits?.memory;
    const bound = limit === undefined ? 'the node has no memory left' : `its limit is ${limit}`;
    return { reason: 'CrashLoop', message: `Container ${name} was killed for its use of memory; ${bound}` };
  }
  const how = `Container ${name} ended with exit code ${ended.exitCode}`;
  return { reason: 'CrashLoop', message: line === '' ? how : `${how}: ${line}` };
}

function deploymentTroubles(deployment: AnyObject): Trouble[] {
  const failure = (deployment.status?.conditions ?? []).find(
    // biome-ignore lint/suspicious/noExplicitAny: a Deployment condition.
    (each: any) => each.type === 'ReplicaFailure' && each.status === 'True',
  );
  if (failure === undefined) return [];
  // Pods have generated names; the rest of the message stays the same from try to try.
  const message = String(failure.message ?? '').replace(/^pods "[^"]*" is forbidden/, 'pods are forbidden');
  return [{ reason: 'PodsRejected', message: `The API server refuses the pods: ${message}` }];
}

/** The kubelet says the same thing in two ways by turns; what both hold is the cause. */
function imageDetail(message: string): string {
  if (/^Back-off pulling image "[^"]*"$/.test(message.trim())) return '';
  return message
    .replace(/^Back-off pulling image "[^"]*": (ErrImagePull|ImagePullBackOff): /, '')
    .replace(/^rpc error: code = \w+ desc = /, '')
    .trim();
}

/**
 * The line of a termination message (or of the last log lines in its place) that says what went wrong: the last one that
 * is plain text, or else the message of the last record of level error.
 */
export function errorLine(message: string): string {
  const lines = message
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  let plain = '';
  let logged = '';
  for (const line of lines) {
    const record = readRecord(line);
    if (record === undefined) plain = line;
    else if (record.level >= 50) logged = record.text;
  }
  return plain === '' ? logged : plain;
}

function readRecord(line: string): { level: number; text: string } | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    const record = JSON.parse(line);
    const text = record.err?.message ?? record.msg;
    const level = record.level === 'error' || record.level === 'fatal' ? 50 : Number(record.level);
    return typeof text === 'string' ? { level: Number.isFinite(level) ? level : 0, text } : undefined;
  } catch {
    return undefined;
  }
}

function specImage(pod: AnyObject, name: string): string | undefined {
  return container(pod, name)?.image;
}

// biome-ignore lint/suspicious/noExplicitAny: a container of a pod's spec.
function container(pod: AnyObject, name: string): any {
  const { initContainers = [], containers = [] } = pod.spec ?? {};
  // biome-ignore lint/suspicious/noExplicitAny: a container of a pod's spec.
  return [...initContainers, ...containers].find((each: any) => each.name === name);
}
