/**
 * A long-running program with its log in a file: started in its own process group, its death noticed, its end waited
 * for. Must not know what the program is.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, fstatSync, openSync, readSync } from 'node:fs';
import type { Guard } from './guard.ts';

export interface ChildOptions {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly logFile: string;
  readonly directory?: string;
  readonly guard: Guard;
}

export interface Child {
  readonly name: string;
  readonly pid: number;
  readonly logFile: string;
  /** How it ended, in words: "exited with code 1", "was killed by SIGKILL". Never rejects. */
  readonly exited: Promise<string>;
  readonly running: boolean;
  kill(signal: NodeJS.Signals): void;
  /** SIGTERM, and SIGKILL to the whole group after the grace. Resolves when it is gone. */
  stop(graceMs?: number): Promise<void>;
}

/** Rejects when the program cannot be started at all. */
export async function startChild(options: ChildOptions): Promise<Child> {
  const { guard, name } = options;
  const log = openSync(options.logFile, 'a');
  const child = spawn(options.command, options.args, {
    stdio: ['ignore', log, log],
    env: options.environment,
    detached: true,
    ...(options.directory === undefined ? {} : { cwd: options.directory }),
  });
  closeSync(log);
  if (child.pid !== undefined) guard.add('group', child.pid);
  let ended: string | undefined;
  const exited = new Promise<string>((resolve) => {
    child.once('exit', (code, signal) => {
      ended = signal === null ? `exited with code ${code}` : `was killed by ${signal}`;
      // A straggler of its group, if there is one.
      killGroup(child.pid, 'SIGKILL');
      guard.remove('group', child.pid!);
      resolve(ended);
    });
  });
  await once(child, 'spawn');
  const pid = child.pid!;
  return {
    name,
    pid,
    logFile: options.logFile,
    exited,
    get running() {
      return ended === undefined;
    },
    kill: (signal) => {
      child.kill(signal);
    },
    async stop(graceMs = 5_000) {
      if (ended !== undefined) return;
      child.kill('SIGTERM');
      const timer = setTimeout(() => killGroup(pid, 'SIGKILL'), graceMs);
      await exited;
      clearTimeout(timer);
    },
  };
}

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // No such group any more.
  }
}

/** The last lines of a log, for a message. */
export function lastLines(file: string, count = 12): string {
  if (!existsSync(file)) return '';
  const descriptor = openSync(file, 'r');
  try {
    const { size } = fstatSync(descriptor);
    const buffer = Buffer.alloc(Math.min(size, 16_384));
    readSync(descriptor, buffer, 0, buffer.length, size - buffer.length);
    return buffer.toString('utf8').trimEnd().split('\n').slice(-count).join('\n');
  } finally {
    closeSync(descriptor);
  }
}
