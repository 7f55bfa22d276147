/**
 * A cluster with Sluice in it: the control plane, the CRDs, a process node, the service proxy and the operator, started
 * from this checkout, each after what it needs. In: how many GPUs to pretend. Out: a client, and the means to stop it.
 * Must not know the terminal.
 */
import { globSync, mkdtempSync, openSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ConnectedKubeClient, createKubeClient } from '../operator/kube/rest-client.ts';
import { SluiceError } from '../runtime/errors.ts';
import { kubernetesVersion } from './binaries.ts';
import { type Child, lastLines, startChild } from './child.ts';
import { childEnvironment } from './config.ts';
import { type ControlPlane, startControlPlane } from './control-plane.ts';
import { startGuard } from './guard.ts';
import { kubectlApply, readManifests, waitForDefinitions } from './manifests.ts';
import { runtimeImage } from './node/images.ts';
import { type ProcessNode, startProcessNode } from './node/process-node.ts';
import { createOperatorAccount } from './operator-account.ts';
import { freePort } from './ports.ts';
import { type ServiceProxy, startServiceProxy } from './service-proxy.ts';

const checkout = path.resolve(import.meta.dirname, '..');
const operatorNamespace = 'sluice-system';
/** The one image that the node has, and that the operator gives to services which name none. */
const runtimeImageName = 'sluice-runtime:local';
/** For pods when all is stopped: their clients are going too. */
const podGraceSeconds = 2;
const operatorTimeoutMs = 60_000;

/** Runs one step; `now` tells what it is at. */
export type RunStep = <T>(title: string, work: (now: (detail: string) => void) => Promise<T>) => Promise<T>;

export interface ClusterOptions {
  readonly gpus: number;
  /** Services by ports of 127.0.0.1, also where they could have their own addresses. */
  readonly hostPorts: boolean;
  readonly step: RunStep;
  readonly onMessage: (line: string) => void;
  readonly signal: AbortSignal;
}

export interface Cluster {
  readonly plane: ControlPlane;
  readonly client: ConnectedKubeClient;
  readonly node: ProcessNode;
  readonly proxy: ServiceProxy;
  readonly operator: Child;
  /** Resolves when a program dies that should not, never rejects. */
  readonly failure: Promise<SluiceError>;
  /** Ends everything, in the order that lets each part say goodbye, and leaves nothing behind. */
  stop(): Promise<void>;
}

/** Throws SluiceError when a part does not come up; what was started is stopped again. */
export async function startCluster(options: ClusterOptions): Promise<Cluster> {
  const { step, onMessage, signal, gpus } = options;
  const guard = startGuard();
  const directory = mkdtempSync(path.join(os.tmpdir(), 'sluice-'));
  guard.add('folder', directory);
  /** What to do at the end, the last first. */
  const undo: (() => Promise<void>)[] = [
    () => guard.close(),
    async () => {
      await rm(directory, { recursive: true, force: true, maxRetries: 5 });
      guard.remove('folder', directory);
    },
  ];
  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= (async () => {
      let problem: unknown;
      for (const each of undo.reverse()) {
        // What fails to end in order, the guard ends: it comes last.
        await each().catch((error: unknown) => {
          problem ??= error;
        });
      }
      if (problem !== undefined) throw problem;
    })();
    return stopped;
  };

  try {
    const plane = await step(`Kubernetes ${kubernetesVersion} control plane`, (now) =>
      startControlPlane({ directory, guard, signal, onProgress: now }),
    );
    undo.push(() => plane.stop());
    const client = createKubeClient({ kubeconfig: plane.kubeconfig, userAgent: 'npm-start' });
    undo.push(async () => client.close());

    await step('CustomResourceDefinitions from crds/', async () => {
      const files = globSync('crds/*.yaml', { cwd: checkout }).sort();
      const definitions = files.flatMap((file) => readManifests(path.join(checkout, file)));
      await kubectlApply(plane, path.join(checkout, 'crds'), '--server-side');
      await waitForDefinitions(client, definitions, signal);
    });

    const nodeUser = plane.kubeconfigFor({ name: 'process-node', groups: ['system:masters'] });
    const nodeClient = createKubeClient({ kubeconfig: nodeUser, userAgent: 'process-node' });
    undo.push(async () => nodeClient.close());
    const node = await step(`node "local": pods as processes, nvidia.com/gpu: ${gpus} (pretended)`, () =>
      startProcessNode({
        client: nodeClient,
        name: 'local',
        gpus,
        guard,
        authority: plane.authority,
        apiServer: plane.url,
        images: { [runtimeImageName]: runtimeImage() },
        rootDir: path.join(directory, 'node'),
        onMessage,
        onFailure: logTo(path.join(directory, 'logs', 'process-node.log')),
      }),
    );
    undo.push(() => node.stop({ graceSeconds: podGraceSeconds }));

    const proxy = await startServiceProxy({
      client: nodeClient,
      guard,
      onMessage,
      ...(options.hostPorts ? { clusterIps: false } : {}),
    });
    undo.push(() => proxy.stop());
    if (proxy.hostPortsBecause !== undefined) {
      onMessage(
        `Services are reached by ports of 127.0.0.1, not by their cluster IPs: ${proxy.hostPortsBecause}`,
      );
    }

    const operator = await step('operator', (now) =>
      startOperator(plane, client, directory, signal, now, (child) => {
        undo.push(() => child.stop());
      }),
    );
    const operatorEnded = operator.exited.then((how) => programEnded(operator, how));
    return {
      plane,
      client,
      node,
      proxy,
      operator,
      failure: Promise.race([plane.failure, operatorEnded]),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function startOperator(
  plane: ControlPlane,
  client: ConnectedKubeClient,
  directory: string,
  signal: AbortSignal,
  now: (detail: string) => void,
  onStarted: (child: Child) => void,
): Promise<Child> {
  const account = await createOperatorAccount(client, operatorNamespace, 'npm-start');
  const healthPort = await freePort();
  const metricsPort = await freePort();
  const extension = path.extname(import.meta.filename);
  const child = await startChild({
    name: 'sluice-operator',
    command: process.execPath,
    args: [
      path.join(checkout, `operator/cli/sluice-operator${extension}`),
      `--kubeconfig=${plane.kubeconfigFor(account)}`,
      `--namespace=${operatorNamespace}`,
      `--runtime-image=${runtimeImageName}`,
      '--host=127.0.0.1',
      `--health-port=${healthPort}`,
      `--metrics-port=${metricsPort}`,
    ],
    environment: childEnvironment(),
    logFile: path.join(directory, 'logs', 'sluice-operator.log'),
    directory: checkout,
    guard: plane.guard,
  });
  onStarted(child);
  let ended: string | undefined;
  child.exited.then((how) => {
    ended = how;
  });
  const deadline = Date.now() + operatorTimeoutMs;
  for (;;) {
    const problem = await readinessProblem(healthPort);
    if (problem === undefined) return child;
    signal.throwIfAborted();
    if (ended !== undefined) throw programEnded(child, ended);
    now(problem);
    if (Date.now() > deadline) {
      throw new SluiceError(
        'unavailable',
        `sluice-operator was not ready after ${operatorTimeoutMs / 1000} s: ${problem}. ${logEnd(child)}`,
      );
    }
    await sleep(100);
  }
}

async function readinessProblem(port: number): Promise<string | undefined> {
  try {
    const answer = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(2_000) });
    const text = (await answer.text()).trim();
    return answer.ok ? undefined : text;
  } catch {
    return 'it does not answer yet';
  }
}

function programEnded(child: Child, how: string): SluiceError {
  return new SluiceError('unavailable', `${child.name} ${how}. ${logEnd(child)}`);
}

function logEnd({ logFile }: Child): string {
  return `The end of ${logFile}:\n${lastLines(logFile)}`;
}

function logTo(file: string): (error: unknown) => void {
  const descriptor = openSync(file, 'a');
  return (error) => {
    const text = error instanceof Error ? error.message : String(error);
    writeSync(descriptor, `${new Date().toISOString()} ${text}\n`);
  };
}
