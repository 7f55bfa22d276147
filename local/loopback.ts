/**
 * Addresses of our own on the loopback device, one /32 each, for ClusterIPs and pod IPs. Needs root and iproute2. Each
 * carries a label with the id of the process that added it, so that what a killed process left is known as such.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { Guard } from './guard.ts';

const run = promisify(execFile);

function labelOf(pid: number): string {
  return `lo:s${pid}`;
}

/** Undefined when addresses can be added here; else why not, in words. */
export async function loopbackProblem(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'only root may add addresses';
  try {
    // Harmless: fails in the same ways as adding would, without adding.
    await run('ip', ['address', 'replace', '127.0.0.1/8', 'dev', 'lo']);
    return undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return 'the program "ip" is missing (apt-get install iproute2)';
    }
    return `"ip address" failed: ${reason(error)}`;
  }
}

/** Throws when it cannot be added, also when it is there already. */
export async function addLoopbackAddress(address: string, guard: Guard): Promise<void> {
  guard.add('address', `${address}/32`);
  try {
    await run('ip', ['address', 'add', `${address}/32`, 'dev', 'lo', 'label', labelOf(process.pid)]);
  } catch (error) {
    guard.remove('address', `${address}/32`);
    throw new Error(`the address ${address} could not be added to lo: ${reason(error)}`, { cause: error });
  }
}

export async function removeLoopbackAddress(address: string, guard: Guard): Promise<void> {
  // Already gone is as good.
  await run('ip', ['address', 'delete', `${address}/32`, 'dev', 'lo']).catch(() => {});
  guard.remove('address', `${address}/32`);
}

/** Removes what processes that no longer live have left, and returns it. */
export async function removeStaleLoopbackAddresses(): Promise<string[]> {
  const { stdout } = await run('ip', ['-oneline', '-family', 'inet', 'address', 'show', 'dev', 'lo']);
  const removed: string[] = [];
  for (const [, address, pid] of stdout.matchAll(/ inet (\S+) .*\blo:s(\d+)\b/g)) {
    if (isAlive(Number(pid))) continue;
    await run('ip', ['address', 'delete', address!, 'dev', 'lo']).catch(() => {});
    removed.push(address!);
  }
  return removed;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function reason(error: unknown): string {
  const { stderr, message } = error as { stderr?: string; message?: string };
  return stderr?.trim() || message || String(error);
}
