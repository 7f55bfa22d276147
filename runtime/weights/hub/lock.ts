/**
 * A lock between processes that share a folder, on this machine or over a network file system: a file made with O_EXCL
 * whose time is renewed while its owner lives. A lock that was not renewed for `staleMs`, or whose process on this host is
 * gone, is taken over. Ours alone: other programs' lock files are neither read nor touched.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat, utimes } from 'node:fs/promises';
import { hostname } from 'node:os';
import path from 'node:path';

const renewMs = 2_000;
const staleMs = 20_000;
const pollMs = 200;

interface Owner {
  readonly host: string;
  readonly process: number;
  readonly id: string;
}

export interface FileLock {
  release(): Promise<void>;
}

function isGone(owner: Owner): boolean {
  if (owner.host !== hostname()) return false;
  try {
    process.kill(owner.process, 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH';
  }
}

async function isStale(file: string): Promise<boolean> {
  try {
    const [text, status] = await Promise.all([readFile(file, 'utf8'), stat(file)]);
    if (Date.now() - status.mtimeMs > staleMs) return true;
    return text !== '' && isGone(JSON.parse(text) as Owner);
  } catch {
    return false;
  }
}

/** Waits until the lock is ours. `onWait` is called now and then while it is somebody else's. */
export async function acquireLock(file: string, onWait: () => void, signal?: AbortSignal): Promise<FileLock> {
  await mkdir(path.dirname(file), { recursive: true });
  const owner: Owner = { host: hostname(), process: process.pid, id: randomUUID() };
  for (;;) {
    signal?.throwIfAborted();
    try {
      const handle = await open(file, 'wx');
      await handle.writeFile(JSON.stringify(owner));
      await handle.close();
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    if (await isStale(file)) {
      // Renaming picks one winner among those who saw it stale; the name is then free for all of them.
      const aside = `${file}.${owner.id}`;
      await rename(file, aside).catch(() => undefined);
      await rm(aside, { force: true });
      continue;
    }
    onWait();
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
  const timer = setInterval(() => {
    const now = new Date();
    utimes(file, now, now).catch(() => undefined);
  }, renewMs);
  timer.unref();
  return {
    async release() {
      clearInterval(timer);
      const text = await readFile(file, 'utf8').catch(() => '');
      if (text.includes(owner.id)) await rm(file, { force: true });
    },
  };
}
