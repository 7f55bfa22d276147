/**
 * Cleans up after us when we cannot: a small process of its own that holds a list of process groups, addresses and
 * folders, and removes what is still on the list when the pipe to us closes, however we died. What was removed in
 * order is taken off the list first. Must not know what the things on the list are for.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import { childEnvironment } from './config.ts';

/** A process group by its leader's id, an address on lo (10.96.0.7/32), a folder. */
export type GuardedKind = 'group' | 'address' | 'folder';

export interface Guard {
  add(kind: GuardedKind, name: string | number): void;
  /** Takes it off the list; it is gone already. */
  remove(kind: GuardedKind, name: string | number): void;
  /** Lets the guard do its work, on what is still listed, and waits for its end. */
  close(): Promise<void>;
}

export function startGuard(): Guard {
  const extension = path.extname(import.meta.filename);
  const child: ChildProcess = spawn(
    process.execPath,
    [path.join(import.meta.dirname, `guard-main${extension}`)],
    {
      stdio: ['pipe', 'ignore', 'inherit'],
      // Its own session: neither Ctrl-C nor the terminal's end may reach it.
      detached: true,
      env: childEnvironment(),
    },
  );
  const pipe = child.stdin!;
  // A guard that was killed can no longer help; that alone must not end the program.
  pipe.on('error', () => {});
  child.on('error', () => {});
  child.unref();
  (pipe as unknown as { unref(): void }).unref();
  const exited = new Promise<void>((resolve) => {
    child.once('exit', () => resolve());
    child.once('error', () => resolve());
  });
  const send = (verb: string, kind: GuardedKind, name: string | number) => {
    if (pipe.writable) pipe.write(`${JSON.stringify([verb, kind, String(name)])}\n`);
  };
  return {
    add: (kind, name) => send('add', kind, name),
    remove: (kind, name) => send('remove', kind, name),
    async close() {
      child.ref();
      pipe.end();
      await exited;
    },
  };
}
