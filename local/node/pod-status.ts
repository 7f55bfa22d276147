/** A pod's phase and conditions from the states of its containers, by the kubelet's rules. Pure. */
import type { ContainerStatus, Pod, PodCondition, PodStatus } from './pod-types.ts';

export interface PodState {
  readonly pod: Pod;
  readonly hostIP: string;
  readonly podIP: string | undefined;
  readonly startTime: string;
  /** Regular init containers and sidecars, in order. */
  readonly initStatuses: readonly ContainerStatus[];
  readonly statuses: readonly ContainerStatus[];
  readonly sandboxReady: boolean;
  /** Every regular init container has succeeded and every sidecar has started. */
  readonly initialized: boolean;
  /** Why the whole pod failed, whatever its containers say. */
  readonly failure: { readonly reason: string; readonly message: string } | undefined;
  /** No container will run again. */
  readonly ended: boolean;
  readonly now: string;
}

export function computePodStatus(state: PodState): PodStatus {
  const phase = computePhase(state);
  return {
    phase,
    conditions: computeConditions(state, phase),
    hostIP: state.hostIP,
    hostIPs: [{ ip: state.hostIP }],
    ...(state.podIP === undefined ? {} : { podIP: state.podIP, podIPs: [{ ip: state.podIP }] }),
    startTime: state.startTime,
    ...(state.initStatuses.length === 0 ? {} : { initContainerStatuses: state.initStatuses }),
    ...(state.statuses.length === 0 ? {} : { containerStatuses: state.statuses }),
    ...(state.failure ?? {}),
    ...(state.pod.metadata.generation === undefined
      ? {}
      : { observedGeneration: state.pod.metadata.generation }),
  };
}

function computePhase(state: PodState): NonNullable<PodStatus['phase']> {
  if (state.failure) return 'Failed';
  const policy = state.pod.spec.restartPolicy ?? 'Always';
  if (!state.initialized) return 'Pending';
  let waiting = 0;
  let running = 0;
  let stopped = 0;
  let succeeded = 0;
  for (const { state: container, lastState } of state.statuses) {
    if ('running' in container) running++;
    else if ('terminated' in container) {
      stopped++;
      if (container.terminated.exitCode === 0) succeeded++;
    } else if ('terminated' in lastState) stopped++;
    else waiting++;
  }
  if (waiting > 0) return state.ended ? 'Failed' : 'Pending';
  if (running > 0) return 'Running';
  if (state.ended) return stopped === succeeded ? 'Succeeded' : 'Failed';
  if (policy === 'Always') return 'Running';
  if (stopped === succeeded) return 'Succeeded';
  return policy === 'Never' ? 'Failed' : 'Running';
}

const ours = ['PodReadyToStartContainers', 'Initialized', 'ContainersReady', 'Ready'];
/** The scheduler's, which a pod that was bound by hand does not have. */
const scheduled = 'PodScheduled';

function computeConditions(state: PodState, phase: string): PodCondition[] {
  const existing = state.pod.status?.conditions ?? [];
  const done: Partial<PodCondition> | undefined =
    phase === 'Succeeded'
      ? { reason: 'PodCompleted' }
      : phase === 'Failed'
        ? { reason: 'PodFailed' }
        : undefined;

  const uninitialized = state.initStatuses.filter((status) => !isInitialized(status)).map(({ name }) => name);
  const sidecars = state.initStatuses.filter((status) => isSidecar(state.pod, status.name));
  const unready = [...sidecars, ...state.statuses].filter((status) => !status.ready).map(({ name }) => name);
  const containersReady = state.initialized && unready.length === 0 && state.statuses.length > 0 && !done;
  const notReady = done ?? {
    reason: 'ContainersNotReady',
    message: `containers with unready status: [${unready.join(' ')}]`,
  };
  const gates = (state.pod.spec.readinessGates ?? []).filter(
    ({ conditionType }) => existing.find((condition) => condition.type === conditionType)?.status !== 'True',
  );

  const computed: Record<string, Partial<PodCondition>> = {
    PodReadyToStartContainers: { status: state.sandboxReady ? 'True' : 'False' },
    Initialized: state.initialized
      ? { status: 'True' }
      : {
          status: 'False',
          reason: 'ContainersNotInitialized',
          message: `containers with incomplete status: [${uninitialized.join(' ')}]`,
          ...(done ?? {}),
        },
    ContainersReady: containersReady ? { status: 'True' } : { status: 'False', ...notReady },
    Ready: !containersReady
      ? { status: 'False', ...notReady }
      : gates.length === 0
        ? { status: 'True' }
        : {
            status: 'False',
            reason: 'ReadinessGatesNotReady',
            message: gates
              .map(
                ({ conditionType }) =>
                  `corresponding condition of pod readiness gate "${conditionType}" is not True.`,
              )
              .join(' '),
          },
  };

  const result = existing.filter((condition) => !ours.includes(condition.type));
  if (!result.some(({ type }) => type === scheduled)) {
    result.push({ type: scheduled, status: 'True', lastProbeTime: null, lastTransitionTime: state.now });
  }
  for (const type of ours) {
    const before = existing.find((condition) => condition.type === type);
    const condition = computed[type]!;
    result.push({
      type,
      status: condition.status!,
      lastProbeTime: null,
      lastTransitionTime:
        before?.status === condition.status && before?.lastTransitionTime
          ? before.lastTransitionTime
          : state.now,
      ...(condition.reason === undefined ? {} : { reason: condition.reason }),
      ...(condition.message === undefined ? {} : { message: condition.message }),
      ...(state.pod.metadata.generation === undefined
        ? {}
        : { observedGeneration: state.pod.metadata.generation }),
    });
  }
  return result;
}

export function isSidecar(pod: Pod, containerName: string): boolean {
  return Boolean(
    pod.spec.initContainers?.some(
      ({ name, restartPolicy }) => name === containerName && restartPolicy === 'Always',
    ),
  );
}

function isInitialized(status: ContainerStatus): boolean {
  return 'terminated' in status.state
    ? status.state.terminated.exitCode === 0
    : status.started && status.ready;
}
