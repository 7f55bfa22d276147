/**
 * How a container's program is started, entered and ended. Two ways: in namespaces of its own (mounts at their real
 * paths, writes to the root file system kept apart, every process ended with the first), or, where the machine does
 * not allow them, as a plain process group whose mount paths are rewritten in its command line and environment.
 * In: a command line, an environment, mounts; out: a running process. Must not know pods or the API.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Readable } from 'node:stream';
import type { Guard } from '../guard.ts';
import { removeTree } from './files.ts';
import { rewriteEnvironment, rewritePaths } from './rewrite-paths.ts';

export type SandboxKind = 'namespaces' | 'user-namespaces' | 'plain';

export interface Mount {
  /** A file or folder of this machine, free of symbolic links. */
  readonly source: string;
  readonly target: string;
  readonly readOnly: boolean;
}

export interface LaunchOptions {
  /** The container's own folder; made here, removed by the caller with removeTree. */
  readonly folder: string;
  readonly hostname: string;
  readonly commandLine: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly workingDirectory: string;
  readonly mounts: readonly Mount[];
  readonly readOnlyRoot: boolean;
  readonly user: { readonly uid: number; readonly gid: number } | undefined;
}

export interface ExecResult {
  /** Undefined: ended by the timeout. */
  readonly code: number | undefined;
  readonly output: string;
}

export interface SandboxedProcess {
  readonly stdout: Readable;
  readonly stderr: Readable;
  /**
   * The exit code, 128 + n for a program that signal n ended. Resolves when every process of the container is gone and
   * its output has been read.
   */
  readonly exited: Promise<number>;
  /** To the program itself. */
  signal(signal: 'SIGTERM' | 'SIGKILL'): void;
  /** Runs another program beside it, with its environment, user and files. */
  exec(command: readonly string[], timeoutMs: number): Promise<ExecResult>;
}

/** The program could not be started: no such program, no such mount. The message is for the pod's status. */
export class LaunchError extends Error {}

const script = path.join(import.meta.dirname, 'sandbox.sh');
/** A kubelet's, for a program that could not be started. */
const unknownExit = 128;
const execOutputLimit = 10_240;
/**
 * Outside: forks exactly once, for the first child of `unshare --pid` is process 1 in there and its end the end of all,
 * and passes on how it ended (unshare --fork cannot, for SIGKILL). Inside: ends with it, whatever kills it.
 */
const waiter = 'exec 4>&2 2>/dev/null; setpriv --pdeathsig=KILL sh "$@" 2>&4 4>&- & exec 3>&- 4>&-; wait $!';
/** For the tools of util-linux, whatever PATH the caller or the container has. */
const systemPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Tries the kinds in order of preference on this machine. `folder` is where containers will live. */
export async function detectSandbox(folder: string, guard: Guard): Promise<Sandbox> {
  for (const kind of ['namespaces', 'user-namespaces'] as const) {
    const sandbox = new Sandbox(kind, guard);
    const trial = await mkdtemp(path.join(folder, 'trial-'));
    try {
      const child = await sandbox.launch({
        folder: trial,
        hostname: 'trial',
        commandLine: ['true'],
        environment: { PATH: systemPath },
        workingDirectory: '/',
        mounts: [{ source: trial, target: '/sluice-trial/inner', readOnly: true }],
        readOnlyRoot: true,
        user: undefined,
      });
      child.stdout.resume();
      child.stderr.resume();
      if ((await child.exited) === 0) return sandbox;
    } catch (error) {
      if (!(error instanceof LaunchError)) throw error;
    } finally {
      await removeTree(trial);
    }
  }
  return new Sandbox('plain', guard);
}

export class Sandbox {
  readonly kind: SandboxKind;
  readonly #guard: Guard;

  constructor(kind: SandboxKind, guard: Guard) {
    this.kind = kind;
    this.#guard = guard;
  }

  /** Throws LaunchError. */
  async launch(options: LaunchOptions): Promise<SandboxedProcess> {
    await mkdir(options.folder, { recursive: true });
    return this.kind === 'plain' ? this.#launchPlain(options) : await this.#launchInNamespaces(options);
  }

  async #launchInNamespaces(options: LaunchOptions): Promise<SandboxedProcess> {
    const inUserNamespace = this.kind === 'user-namespaces';
    const mounts = options.mounts.map(
      ({ source, target, readOnly }) => `${readOnly ? 'ro' : 'rw'}\t${source}\t${path.normalize(target)}\n`,
    );
    await writeFile(path.join(options.folder, 'mounts'), mounts.join(''));
    // In files and pipes, not in arguments, which every user of the machine can list.
    const command = this.#inside(options, options.commandLine);
    await writeFile(path.join(options.folder, 'command'), command, { mode: 0o600 });
    const child = spawn(
      'unshare',
      [
        ...(inUserNamespace ? ['--user', '--map-root-user'] : []),
        '--mount',
        '--uts',
        '--pid',
        'sh',
        '-c',
        waiter,
        'sandbox',
        script,
        options.folder,
        options.hostname,
        options.workingDirectory,
        options.readOnlyRoot ? 'ro' : 'rw',
        options.environment.PATH ?? systemPath,
        options.commandLine[0]!,
      ],
      {
        stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
        detached: true,
        env: {
          PATH: systemPath,
          ...(inUserNamespace ? { SANDBOX_OVERLAY_OPTIONS: ',userxattr' } : {}),
        },
      },
    );
    const exited = this.#watch(child);
    const innerPid = await awaitStart(child);
    return {
      stdout: child.stdout as Readable,
      stderr: child.stderr as Readable,
      exited,
      signal: (signal) => {
        kill(innerPid, signal);
        // The whole group, in case the first process is already gone and something still holds on.
        if (signal === 'SIGKILL') kill(-child.pid!, signal);
      },
      exec: (execCommand, timeoutMs) =>
        runToEnd(
          'nsenter',
          [
            `--target=${innerPid}`,
            ...(inUserNamespace ? ['--user', '--preserve-credentials'] : []),
            '--mount',
            '--uts',
            '--pid',
            '--root',
            '--wd',
            'sh',
          ],
          {
            environment: { PATH: systemPath },
            input: `${this.#inside(options, execCommand)} </dev/null`,
            timeoutMs,
          },
        ),
    };
  }

  /** A shell's line that becomes the program, with its user and nothing but its own environment. */
  #inside(options: LaunchOptions, command: readonly string[]): string {
    const { user } = options;
    const asUser =
      user === undefined || this.kind !== 'namespaces'
        ? []
        : // A change of user forgets the signal of a parent's death.
          ['setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--pdeathsig=KILL'];
    const environment = Object.entries(options.environment).map(([name, value]) => `${name}=${value}`);
    return `exec ${[...asUser, 'env', '-i', ...environment, ...command].map(quote).join(' ')}`;
  }

  async #launchPlain(options: LaunchOptions): Promise<SandboxedProcess> {
    const isRoot = process.getuid?.() === 0;
    const common = {
      env: rewriteEnvironment(options.environment, options.mounts),
      cwd: rewritePaths(options.workingDirectory, options.mounts),
      ...(isRoot && options.user ? options.user : {}),
    };
    const [command, ...args] = options.commandLine.map((word) => rewritePaths(word, options.mounts));
    const child = spawn(command!, args, { ...common, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    const exited = this.#watch(child);
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (cause) =>
        reject(new LaunchError(`exec: "${command}": ${cause.message}`, { cause })),
      );
    });
    return {
      stdout: child.stdout,
      stderr: child.stderr,
      exited,
      signal: (signal) => kill(-child.pid!, signal),
      exec: (execCommand, timeoutMs) => {
        const [execProgram, ...execArgs] = execCommand.map((word) => rewritePaths(word, options.mounts));
        return runToEnd(execProgram ?? '', execArgs, {
          environment: common.env,
          directory: common.cwd,
          timeoutMs,
        });
      },
    };
  }

  #watch(child: ChildProcess): Promise<number> {
    const pid = child.pid;
    if (pid !== undefined) this.#guard.add('group', pid);
    return new Promise((resolve) => {
      let exit = unknownExit;
      child.once('exit', (code, signal) => {
        exit = exitCode(code, signal);
        // In namespaces nothing is left; a plain group may have stragglers that hold the pipes open.
        if (pid !== undefined) {
          kill(-pid, 'SIGKILL');
          this.#guard.remove('group', pid);
        }
      });
      child.once('close', () => resolve(exit));
      child.once('error', () => resolve(exit));
    });
  }
}

/** Reads what sandbox.sh says on descriptor 3; the program's pid as this process counts. Throws LaunchError. */
async function awaitStart(child: ChildProcess): Promise<number> {
  const report = child.stdio[3] as Readable;
  let text = '';
  let stderr = '';
  const collect = (chunk: Buffer) => {
    stderr = (stderr + chunk).slice(-2_000);
  };
  child.stderr!.on('data', collect);
  const innerPid = await new Promise<number>((resolve, reject) => {
    child.once('error', (cause) => reject(new LaunchError(`unshare: ${cause.message}`, { cause })));
    report.on('data', (chunk) => {
      text += chunk;
      if (/^started$/m.test(text)) resolve(Number(/^pid (\d+)$/m.exec(text)?.[1]));
    });
    report.once('close', () =>
      reject(
        new LaunchError(/^error (.*)$/m.exec(text)?.[1] ?? (stderr.trim() || 'the sandbox ended early')),
      ),
    );
    report.on('error', () => {});
  });
  // Nothing of the program's own output may be lost: what came so far goes back to the stream's front.
  child.stderr!.off('data', collect);
  child.stderr!.pause();
  if (stderr !== '') child.stderr!.unshift(stderr);
  return innerPid;
}

interface RunOptions {
  readonly environment: Readonly<Record<string, string>>;
  readonly directory?: string;
  readonly input?: string;
  readonly timeoutMs: number;
}

function runToEnd(command: string, args: readonly string[], options: RunOptions): Promise<ExecResult> {
  const { environment, directory, input = '', timeoutMs } = options;
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      stdio: 'pipe',
      env: environment,
      detached: true,
      ...(directory === undefined ? {} : { cwd: directory }),
    });
    // It need not read what it gets.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    let output = '';
    let timedOut = false;
    const collect = (chunk: Buffer) => {
      if (output.length < execOutputLimit) output += chunk;
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    const timer = setTimeout(() => {
      timedOut = true;
      if (child.pid !== undefined) kill(-child.pid, 'SIGKILL');
    }, timeoutMs);
    child.once('error', (error) => {
      clearTimeout(timer);
      resolve({ code: 126, output: error.message });
    });
    child.once('exit', (code, signal) => {
      clearTimeout(timer);
      // What it left in the background must not be waited for.
      setTimeout(() => {
        child.stdout.destroy();
        child.stderr.destroy();
      }, 100).unref();
      const finish = () =>
        resolve({
          code: timedOut ? undefined : exitCode(code, signal),
          output: output.slice(0, execOutputLimit),
        });
      child.once('close', finish);
    });
  });
}

/** One word of a shell's command line. */
function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

function exitCode(code: number | null, signal: NodeJS.Signals | null): number {
  if (signal !== null) return 128 + os.constants.signals[signal];
  return code ?? unknownExit;
}

function kill(pid: number, signal: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already.
  }
}
