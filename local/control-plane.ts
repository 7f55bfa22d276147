/**
 * A real Kubernetes control plane on 127.0.0.1: etcd, kube-apiserver and, unless left out, kube-controller-manager and
 * kube-scheduler, with a throw-away certificate authority and an audit log. In: where to keep its files. Out: a
 * kubeconfig, and the means to stop it. Must not know Sluice: it is the cluster that Sluice runs on.
 */
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import https from 'node:https';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { stringify } from 'yaml';
import { SluiceError } from '../runtime/errors.ts';
import { type Binaries, buildBinaries } from './binaries.ts';
import { type CertificateAuthority, createCertificateAuthority, createSigningKey } from './certificates.ts';
import { type Child, lastLines, startChild } from './child.ts';
import { childEnvironment } from './config.ts';
import { type Guard, startGuard } from './guard.ts';
import { freePort } from './ports.ts';

export const serviceClusterIpRange = '10.96.0.0/16';

export interface ControlPlaneOptions {
  /** Kept at the end; without one a temporary folder is made, and removed by stop(). */
  readonly directory?: string;
  readonly controllerManager?: boolean;
  readonly scheduler?: boolean;
  readonly guard?: Guard;
  readonly onProgress?: (line: string) => void;
  readonly signal?: AbortSignal;
  /** Each part must come up within this time. */
  readonly timeoutMs?: number;
}

export interface User {
  readonly name: string;
  readonly groups?: readonly string[];
}

export interface ControlPlane {
  readonly url: string;
  readonly directory: string;
  /** Of a cluster administrator. */
  readonly kubeconfig: string;
  /** One JSON object of audit.k8s.io/v1 a line. */
  readonly auditLog: string;
  /** A kubectl of the server's own version. */
  readonly kubectl: string;
  readonly authority: CertificateAuthority;
  readonly guard: Guard;
  /** By program name: etcd, kube-apiserver, kube-controller-manager, kube-scheduler. */
  readonly processes: Readonly<Record<string, Child>>;
  /** Resolves when a part dies without having been asked to, never rejects. */
  readonly failure: Promise<SluiceError>;
  /** Writes a kubeconfig for another user, and returns its path. */
  kubeconfigFor(user: User): string;
  /** Ends everything in order and removes the temporary folder. May be called again. */
  stop(): Promise<void>;
}

/** Throws SluiceError `unavailable` with the last lines of the log of what did not come up. */
export async function startControlPlane(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
  const binaries = await buildBinaries(options);
  // Between finding a free port and listening on it, another program may take it.
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(binaries, options);
    } catch (error) {
      const taken = error instanceof Error && error.message.includes('address already in use');
      if (!taken || attempt === 3) throw error;
    }
  }
}

async function startOnce(binaries: Binaries, options: ControlPlaneOptions): Promise<ControlPlane> {
  const progress = options.onProgress ?? (() => {});
  const temporary = options.directory === undefined;
  const directory = options.directory ?? mkdtempSync(path.join(os.tmpdir(), 'sluice-'));
  const guard = options.guard ?? startGuard();
  if (temporary) guard.add('folder', directory);
  mkdirSync(path.join(directory, 'logs'), { recursive: true });
  const processes: Record<string, Child> = {};
  let stopping = false;
  let reportFailure: (error: SluiceError) => void = () => {};
  const failure = new Promise<SluiceError>((resolve) => {
    reportFailure = resolve;
  });

  const start = async (name: string, command: string, args: readonly string[]) => {
    const logFile = path.join(directory, 'logs', `${name}.log`);
    const child = await startChild({
      name,
      command,
      args,
      directory,
      environment: childEnvironment(),
      logFile,
      guard,
    });
    processes[name] = child;
    child.exited.then((how) => {
      if (!stopping) reportFailure(partFailed(child, how));
    });
  };

  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= (async () => {
      stopping = true;
      await Promise.all([processes['kube-scheduler']?.stop(), processes['kube-controller-manager']?.stop()]);
      // Open watches would hold its graceful end for a minute, and nothing here is worth that.
      await processes['kube-apiserver']?.stop(2_000);
      await processes.etcd?.stop();
      if (temporary) {
        await rm(directory, { recursive: true, force: true, maxRetries: 5 });
        guard.remove('folder', directory);
      }
      if (options.guard === undefined) await guard.close();
    })();
    return stopped;
  };

  const until = (what: string, name: string, ready: () => Promise<boolean>) =>
    waitUntil({ what, logFile: () => processes[name]!.logFile, ready, failure, ...options });

  try {
    const files = writeCredentials(directory, await freePort());
    progress('starting etcd');
    await start('etcd', binaries.etcd, etcdArguments(directory));
    progress('starting kube-apiserver');
    await start('kube-apiserver', binaries.kubeApiserver, apiserverArguments(directory, files.port));
    const request = requester(files);
    await until('kube-apiserver', 'kube-apiserver', async () => (await request('/readyz')) === 200);
    const kubeconfigFor = (user: User) => writeKubeconfig(directory, files, user);
    if (options.controllerManager !== false) {
      progress('starting kube-controller-manager');
      const kubeconfig = kubeconfigFor({ name: 'system:kube-controller-manager' });
      await start(
        'kube-controller-manager',
        binaries.kubeControllerManager,
        controllerManagerArguments(directory, kubeconfig),
      );
    }
    if (options.scheduler !== false) {
      progress('starting kube-scheduler');
      const kubeconfig = kubeconfigFor({ name: 'system:kube-scheduler' });
      await start('kube-scheduler', binaries.kubeScheduler, schedulerArguments(kubeconfig));
    }
    if (options.controllerManager !== false) {
      // Pods are refused before this exists; that it does shows that controllers work.
      const account = '/api/v1/namespaces/default/serviceaccounts/default';
      const name = 'kube-controller-manager';
      await until('the default service account', name, async () => (await request(account)) === 200);
    }
    return {
      url: files.url,
      directory,
      kubeconfig: kubeconfigFor(administrator),
      auditLog: path.join(directory, 'logs', 'audit.log'),
      kubectl: binaries.kubectl,
      authority: files.authority,
      guard,
      processes,
      failure,
      kubeconfigFor,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

const administrator: User = { name: 'admin', groups: ['system:masters'] };

interface Credentials {
  readonly authority: CertificateAuthority;
  readonly port: number;
  readonly url: string;
}

function writeCredentials(directory: string, port: number): Credentials {
  const pki = path.join(directory, 'pki');
  mkdirSync(pki, { recursive: true });
  const write = (name: string, text: string) => writeFileSync(path.join(pki, name), text, { mode: 0o600 });
  const authority = createCertificateAuthority('sluice-local');
  write('ca.crt', authority.certificatePem);
  // For further nodes.
  write('ca.key', authority.keyPem);
  const server = authority.issue({
    commonName: 'kube-apiserver',
    hosts: [
      'localhost',
      '127.0.0.1',
      '10.96.0.1',
      'kubernetes',
      'kubernetes.default',
      'kubernetes.default.svc',
    ],
  });
  write('apiserver.crt', server.certificatePem);
  write('apiserver.key', server.keyPem);
  const kubeletClient = authority.issue({ commonName: 'kube-apiserver', organizations: ['system:masters'] });
  write('kubelet-client.crt', kubeletClient.certificatePem);
  write('kubelet-client.key', kubeletClient.keyPem);
  const signing = createSigningKey();
  write('service-account.key', signing.privateKeyPem);
  write('service-account.pub', signing.publicKeyPem);
  writeFileSync(path.join(directory, 'audit-policy.yaml'), stringify(auditPolicy));
  return { authority, port, url: `https://127.0.0.1:${port}` };
}

/** Who did what, always; and the bodies of writes where Sluice's own work shows. */
const auditPolicy = {
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['RequestReceived'],
  rules: [
    { level: 'None', nonResourceURLs: ['/livez*', '/readyz*', '/healthz*', '/version', '/openapi/*'] },
    {
      level: 'RequestResponse',
      verbs: ['create', 'update', 'patch', 'delete', 'deletecollection'],
      resources: [{ group: 'sluice.dev' }, { group: 'apps' }],
    },
    { level: 'Metadata' },
  ],
};

// Sockets in the folder where both programs run: no ports to find, no one else may connect, and no path too long for a
// socket. etcd wants the form host:port, and makes a file of that name.
const etcdUrl = 'unix://etcd.sock:0';
const etcdPeerUrl = 'unix://etcd-peer.sock:0';

function etcdArguments(directory: string): string[] {
  return [
    '--name=local',
    `--data-dir=${path.join(directory, 'etcd')}`,
    `--listen-client-urls=${etcdUrl}`,
    `--advertise-client-urls=${etcdUrl}`,
    `--listen-peer-urls=${etcdPeerUrl}`,
    `--initial-advertise-peer-urls=${etcdPeerUrl}`,
    `--initial-cluster=local=${etcdPeerUrl}`,
    // Nothing here outlives the machine.
    '--unsafe-no-fsync',
    '--log-level=warn',
  ];
}

function apiserverArguments(directory: string, port: number): string[] {
  const pki = (name: string) => path.join(directory, 'pki', name);
  return [
    `--etcd-servers=${etcdUrl}`,
    '--bind-address=127.0.0.1',
    `--secure-port=${port}`,
    // An endpoint may not be a loopback address; the service proxy knows where the server is.
    '--endpoint-reconciler-type=none',
    '--advertise-address=192.0.2.1',
    `--tls-cert-file=${pki('apiserver.crt')}`,
    `--tls-private-key-file=${pki('apiserver.key')}`,
    `--client-ca-file=${pki('ca.crt')}`,
    `--kubelet-certificate-authority=${pki('ca.crt')}`,
    `--kubelet-client-certificate=${pki('kubelet-client.crt')}`,
    `--kubelet-client-key=${pki('kubelet-client.key')}`,
    '--service-account-issuer=https://kubernetes.default.svc',
    `--service-account-signing-key-file=${pki('service-account.key')}`,
    `--service-account-key-file=${pki('service-account.pub')}`,
    '--authorization-mode=Node,RBAC',
    '--enable-admission-plugins=NodeRestriction',
    '--allow-privileged=true',
    `--service-cluster-ip-range=${serviceClusterIpRange}`,
    `--audit-policy-file=${path.join(directory, 'audit-policy.yaml')}`,
    `--audit-log-path=${path.join(directory, 'logs', 'audit.log')}`,
    '--audit-log-maxsize=200',
    '--audit-log-maxbackup=2',
    '--profiling=false',
  ];
}

function controllerManagerArguments(directory: string, kubeconfig: string): string[] {
  const pki = (name: string) => path.join(directory, 'pki', name);
  return [
    `--kubeconfig=${kubeconfig}`,
    '--use-service-account-credentials',
    `--service-account-private-key-file=${pki('service-account.key')}`,
    `--root-ca-file=${pki('ca.crt')}`,
    '--leader-elect=false',
    '--secure-port=0',
    '--kube-api-qps=200',
    '--kube-api-burst=400',
    '--profiling=false',
  ];
}

function schedulerArguments(kubeconfig: string): string[] {
  return [
    `--kubeconfig=${kubeconfig}`,
    '--leader-elect=false',
    '--secure-port=0',
    '--kube-api-qps=200',
    '--kube-api-burst=400',
    '--profiling=false',
  ];
}

function writeKubeconfig(directory: string, { authority, url }: Credentials, user: User): string {
  const { certificatePem, keyPem } = authority.issue({
    commonName: user.name,
    ...(user.groups === undefined ? {} : { organizations: user.groups }),
  });
  const base64 = (text: string) => Buffer.from(text).toString('base64');
  const file = path.join(directory, `${user.name.replace(/[^A-Za-z0-9.-]/g, '-')}.kubeconfig`);
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      {
        name: 'sluice-local',
        cluster: { server: url, 'certificate-authority-data': base64(authority.certificatePem) },
      },
    ],
    users: [
      {
        name: user.name,
        user: { 'client-certificate-data': base64(certificatePem), 'client-key-data': base64(keyPem) },
      },
    ],
    contexts: [{ name: 'sluice-local', context: { cluster: 'sluice-local', user: user.name } }],
    'current-context': 'sluice-local',
  };
  writeFileSync(file, stringify(config), { mode: 0o600 });
  return file;
}

/** GETs as an administrator; gives the HTTP status, 0 when there was no answer. */
function requester({ authority, url }: Credentials): (path: string) => Promise<number> {
  const { certificatePem, keyPem } = authority.issue({
    commonName: administrator.name,
    organizations: administrator.groups!,
  });
  return (pathname) =>
    new Promise((resolve) => {
      const request = https.get(
        `${url}${pathname}`,
        { ca: authority.certificatePem, cert: certificatePem, key: keyPem, agent: false, timeout: 5_000 },
        (response) => {
          response.resume();
          resolve(response.statusCode ?? 0);
        },
      );
      request.once('timeout', () => request.destroy());
      request.once('error', () => resolve(0));
    });
}

interface Wait {
  readonly what: string;
  readonly logFile: () => string;
  readonly ready: () => Promise<boolean>;
  readonly failure: Promise<SluiceError>;
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

async function waitUntil({
  what,
  logFile,
  ready,
  failure,
  signal,
  timeoutMs = 120_000,
}: Wait): Promise<void> {
  let failed: SluiceError | undefined;
  failure.then((error) => {
    failed = error;
  });
  const deadline = Date.now() + timeoutMs;
  while (!(await ready())) {
    signal?.throwIfAborted();
    if (failed !== undefined) throw failed;
    if (Date.now() > deadline) {
      throw new SluiceError(
        'unavailable',
        `${what} was not ready after ${timeoutMs / 1000} s. The end of ${logFile()}:\n${lastLines(logFile())}`,
      );
    }
    await sleep(100);
  }
}

function partFailed(child: Child, how: string): SluiceError {
  return new SluiceError(
    'unavailable',
    `${child.name} ${how}. The end of ${child.logFile}:\n${lastLines(child.logFile)}`,
  );
}
