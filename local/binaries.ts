/**
 * Builds etcd and Kubernetes' programs from the modules pinned in go.mod, once per pin: the result lies in a cache
 * outside the checkout, under a name that hashes everything that goes in, so that a fresh clone finds it. In: nothing
 * but Go. Out: paths of programs. Must not know how they are run.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readdir, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { SluiceError } from '../runtime/errors.ts';
import { buildEnvironment, cacheDirectory } from './config.ts';

export const kubernetesVersion = '1.36.3';
export const goVersion = '1.26';

const packages = [
  'go.etcd.io/etcd/server/v3',
  'k8s.io/kubernetes/cmd/kube-apiserver',
  'k8s.io/kubernetes/cmd/kube-controller-manager',
  'k8s.io/kubernetes/cmd/kube-scheduler',
  'k8s.io/kubernetes/cmd/kubectl',
];
const version = 'k8s.io/component-base/version';
const [major, minor] = kubernetesVersion.split('.');
const flags = [
  '-trimpath',
  '-ldflags',
  `-s -w -X ${version}.gitVersion=v${kubernetesVersion} -X ${version}.gitMajor=${major} -X ${version}.gitMinor=${minor}`,
];
/** A lock whose holder has not touched it for so long belongs to a builder that was killed. */
const lockStaleMs = 15_000;
const lockTouchMs = 2_000;

export interface Binaries {
  readonly directory: string;
  readonly etcd: string;
  readonly kubeApiserver: string;
  readonly kubeControllerManager: string;
  readonly kubeScheduler: string;
  readonly kubectl: string;
}

export interface BuildOptions {
  /** One line of progress, several a minute while building. */
  readonly onProgress?: (line: string) => void;
  readonly signal?: AbortSignal;
  /** Where to keep the programs; the environment decides by default. */
  readonly cache?: string;
}

/** Throws SluiceError `config_invalid` when Go is missing or too old, `unavailable` when the build fails. */
export async function buildBinaries(options: BuildOptions = {}): Promise<Binaries> {
  const cache = options.cache ?? cacheDirectory();
  const directory = path.join(cache, cacheKey());
  if (!existsSync(directory)) {
    await checkGo();
    await mkdir(cache, { recursive: true });
    await withLock(`${directory}.lock`, options, async () => {
      if (!existsSync(directory)) await build(directory, options);
    });
  }
  return {
    directory,
    etcd: path.join(directory, 'etcd'),
    kubeApiserver: path.join(directory, 'kube-apiserver'),
    kubeControllerManager: path.join(directory, 'kube-controller-manager'),
    kubeScheduler: path.join(directory, 'kube-scheduler'),
    kubectl: path.join(directory, 'kubectl'),
  };
}

function cacheKey(): string {
  const hash = createHash('sha256');
  for (const file of ['go.mod', 'go.sum']) hash.update(readFileSync(path.join(import.meta.dirname, file)));
  hash.update(JSON.stringify({ packages, flags, platform: process.platform, arch: process.arch }));
  return `kubernetes-${kubernetesVersion}-${hash.digest('hex').slice(0, 12)}`;
}

async function checkGo(): Promise<void> {
  const advice =
    `npm start and npm test build the Kubernetes control plane with Go ${goVersion} or later. Install it from ` +
    'https://go.dev/dl/ and put its bin folder on PATH, for example: export PATH=$PATH:/usr/local/go/bin';
  let found: { code: number | null; output: string };
  try {
    found = await go(['env', 'GOVERSION'], () => {});
  } catch (cause) {
    throw new SluiceError('config_invalid', `Go was not found ("go": ${message(cause)}). ${advice}`, {
      cause,
    });
  }
  const [, foundMajor = '0', foundMinor = '0'] = /^go(\d+)\.(\d+)/.exec(found.output.trim()) ?? [];
  const [wantedMajor = '0', wantedMinor = '0'] = goVersion.split('.');
  const newEnough =
    Number(foundMajor) > Number(wantedMajor) ||
    (foundMajor === wantedMajor && Number(foundMinor) >= Number(wantedMinor));
  if (found.code !== 0 || !newEnough) {
    throw new SluiceError('config_invalid', `Go is too old: ${found.output.trim()}. ${advice}`);
  }
}

async function build(directory: string, options: BuildOptions): Promise<void> {
  const progress = options.onProgress ?? (() => {});
  await removeLeftovers(directory);
  const partial = `${directory}.partial-${process.pid}`;
  await mkdir(partial);
  try {
    progress(`building etcd and Kubernetes ${kubernetesVersion} with Go: some minutes, and only once`);
    const started = Date.now();
    const counts = { downloaded: 0, compiled: 0 };
    const report = () => {
      const seconds = Math.round((Date.now() - started) / 1000);
      const parts = [
        ...(counts.downloaded > 0 ? [`${counts.downloaded} modules downloaded`] : []),
        // Go says nothing while it links, nor about packages that it has compiled before.
        ...(counts.compiled > 0 ? [`${counts.compiled} packages of about 2,700 compiled`] : []),
        `${seconds} s`,
      ];
      progress(`building Kubernetes: ${parts.join(', ')}`);
    };
    const timer = setInterval(report, 5_000);
    try {
      const { code, output } = await go(
        ['build', '-v', ...flags, '-o', `${partial}/`, ...packages],
        (line) => {
          if (line.startsWith('go: downloading ')) counts.downloaded++;
          else if (!line.includes(' ')) counts.compiled++;
        },
        options.signal,
      );
      options.signal?.throwIfAborted();
      if (code !== 0) {
        const reason = lastProblem(output);
        throw new SluiceError(
          'unavailable',
          `go build of the Kubernetes control plane failed (exit code ${code}): ${reason}. ` +
            'It needs the Go module proxy (go env GOPROXY), about 2 GB of disk and 2 GB of memory.',
        );
      }
    } finally {
      clearInterval(timer);
    }
    await rename(path.join(partial, 'server'), path.join(partial, 'etcd'));
    await rename(partial, directory).catch((error) => {
      // Someone else was faster; its files are the same.
      if (!existsSync(directory)) throw error;
    });
    progress(`built Kubernetes ${kubernetesVersion} in ${Math.round((Date.now() - started) / 1000)} s`);
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
}

/** What killed builders left. Only called under the lock. */
async function removeLeftovers(directory: string): Promise<void> {
  const parent = path.dirname(directory);
  for (const name of await readdir(parent)) {
    if (name.startsWith(`${path.basename(directory)}.partial-`)) {
      await rm(path.join(parent, name), { recursive: true, force: true });
    }
  }
}

/** Runs go in this folder; resolves with everything it printed. */
function go(
  args: readonly string[],
  onLine: (line: string) => void,
  signal?: AbortSignal,
): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn('go', args, {
      cwd: import.meta.dirname,
      env: buildEnvironment(),
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    const lines: string[] = [];
    const onSpawned = () => {
      const abort = () => killGroup(child.pid);
      if (signal?.aborted) abort();
      signal?.addEventListener('abort', abort, { once: true });
      child.once('close', () => signal?.removeEventListener('abort', abort));
    };
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line);
        onLine(line);
      });
    }
    child.once('spawn', onSpawned);
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, output: lines.join('\n') }));
  });
}

/** go starts compilers and linkers of its own. */
function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // Already gone.
  }
}

function lastProblem(output: string): string {
  const problems = output
    .split('\n')
    .filter((line) => line.includes(' ') && !line.startsWith('go: downloading ') && !line.startsWith('#'));
  return problems.slice(-3).join('; ') || 'go said nothing';
}

/**
 * One builder at a time, across processes. The lock only saves work: two builders at once would be correct too, since
 * the result is renamed into place.
 */
async function withLock(file: string, options: BuildOptions, work: () => Promise<void>): Promise<void> {
  let announced = false;
  for (;;) {
    options.signal?.throwIfAborted();
    try {
      await writeFile(file, `${process.pid}\n`, { flag: 'wx' });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const touched = await stat(file).catch(() => undefined);
    if (touched !== undefined && Date.now() - touched.mtimeMs > lockStaleMs) {
      await rm(file, { force: true });
      continue;
    }
    if (!announced) options.onProgress?.('waiting for another build of the same programs');
    announced = true;
    await sleep(500, undefined, { signal: options.signal });
  }
  const touch = setInterval(() => {
    const now = new Date();
    utimes(file, now, now).catch(() => {});
  }, lockTouchMs);
  try {
    await work();
  } finally {
    clearInterval(touch);
    await rm(file, { force: true });
  }
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
