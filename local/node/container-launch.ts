/**
 * What a container's program is started with: its command line, environment, mounts and user, from the pod's spec and
 * the objects it names. In: the pod as it is now; out: options for the sandbox.
 */
import os from 'node:os';
import type { PodAddresses } from './downward.ts';
import { buildEnvironment, ContainerConfigError, expand, type KeyedReader } from './environment.ts';
import { gpuEnvironment } from './gpus.ts';
import { commandLine, type Image } from './images.ts';
import type { ContainerSpec, Pod } from './pod-types.ts';
import type { LaunchOptions } from './sandbox.ts';
import type { PodVolumes } from './volumes.ts';

export interface LaunchContext {
  readonly pod: Pod;
  readonly addresses: PodAddresses;
  readonly allocatable: Readonly<Record<string, string>>;
  readonly read: KeyedReader;
  /** The node's. */
  readonly environment: Readonly<Record<string, string>>;
  readonly gpuIds: readonly string[];
  readonly volumes: PodVolumes;
}

/** Throws ContainerConfigError. */
export async function prepareLaunch(
  container: ContainerSpec,
  image: Image,
  context: LaunchContext,
): Promise<Omit<LaunchOptions, 'folder'>> {
  const { pod, addresses, allocatable, read } = context;
  const hostname = pod.spec.hostname || pod.metadata.name;
  const user = container.securityContext?.runAsUser ?? pod.spec.securityContext?.runAsUser;
  const group = container.securityContext?.runAsGroup ?? pod.spec.securityContext?.runAsGroup;
  const environment = await buildEnvironment(container, {
    pod,
    addresses,
    allocatable,
    read,
    base: {
      HOME: user === undefined || user === 0 ? os.homedir() : '/',
      ...image.environment,
      HOSTNAME: hostname,
      ...context.environment,
      // The runtime would listen on every address of the machine, where another pod wants the same port.
      SLUICE_HOST: addresses.podIP,
      ...gpuEnvironment(context.gpuIds),
    },
  });
  const expanded = (words: readonly string[] | undefined) => words?.map((word) => expand(word, environment));
  let mounts: LaunchOptions['mounts'];
  try {
    mounts = await context.volumes.mounts(container, environment);
  } catch (cause) {
    throw new ContainerConfigError((cause as Error).message, { cause });
  }
  return {
    hostname,
    environment,
    mounts,
    commandLine: commandLine(image, expanded(container.command), expanded(container.args)),
    workingDirectory: container.workingDir || image.workingDirectory || '/',
    readOnlyRoot: container.securityContext?.readOnlyRootFilesystem === true,
    user: user === undefined && group === undefined ? undefined : { uid: user ?? 0, gid: group ?? 0 },
  };
}
