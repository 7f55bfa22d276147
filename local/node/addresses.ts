/**
 * Addresses for pods. Where this program may add addresses to the loopback interface, one of its own for each pod
 * (10.244.x.y/32), which no other machine can reach; otherwise all pods have the machine's own address and must not
 * want the same port. The kernel decides who has an address, so that nodes of several programs do not collide.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import os from 'node:os';
import { promisify } from 'node:util';
import type { Guard } from '../guard.ts';

const run = promisify(execFile);
/** Pods of one node. */
export const podLimit = 200;

export interface PodAddressPool {
  /** False: every pod gets the machine's address. */
  readonly perPod: boolean;
  /** The node's own. Not a loopback address: endpoints may not have one. */
  readonly hostIP: string;
  take(): Promise<string>;
  release(address: string): Promise<void>;
  /** What is still taken, the node's own address included. */
  close(): Promise<void>;
}

/** `forceShared`: as if addresses could not be added. */
export async function createAddressPool(
  nodeName: string,
  guard: Guard,
  options: { readonly forceShared?: boolean } = {},
): Promise<PodAddressPool> {
  const taken = new Set<string>();
  const subnet = createHash('sha256').update(nodeName).digest()[0]!;
  let next = 1;
  const take = async () => {
    for (let attempt = 0; attempt < 256 * 254; attempt++) {
      const index = next++;
      const address = `10.244.${(subnet + Math.floor(index / 254)) % 256}.${(index % 254) + 1}`;
      if (taken.has(address)) continue;
      guard.add('address', `${address}/32`);
      try {
        await run('ip', ['address', 'add', `${address}/32`, 'dev', 'lo']);
        taken.add(address);
        return address;
      } catch (error) {
        // Before anything else: it is another's, or was never there, and must not be removed as ours.
        guard.remove('address', `${address}/32`);
        if (!String((error as { stderr?: string }).stderr ?? '').includes('File exists')) throw error;
      }
    }
    throw new Error('no free address in 10.244.0.0/16');
  };
  const release = async (address: string) => {
    if (!taken.delete(address)) return;
    await run('ip', ['address', 'delete', `${address}/32`, 'dev', 'lo']).catch(() => {});
    guard.remove('address', `${address}/32`);
  };
  const close = async () => {
    await Promise.all([...taken].map(release));
  };

  const own = machineAddress();
  if (options.forceShared !== true) {
    try {
      const trial = await take();
      // A machine without any network still has pods that talk to each other.
      if (own === undefined) return { perPod: true, hostIP: trial, take, release, close };
      await release(trial);
      return { perPod: true, hostIP: own, take, release, close };
    } catch {
      // Not root, or no `ip`.
    }
  }
  if (own === undefined) {
    throw new Error(
      'this machine has no address but 127.0.0.1, which a pod cannot have: run as root, or give an interface an address',
    );
  }
  return { perPod: false, hostIP: own, take: async () => own, release: async () => {}, close };
}

function machineAddress(): string | undefined {
  for (const addresses of Object.values(os.networkInterfaces())) {
    for (const { family, internal, address } of addresses ?? []) {
      if (
        family === 'IPv4' &&
        !internal &&
        !address.startsWith('169.254.') &&
        !address.startsWith('10.244.')
      ) {
        return address;
      }
    }
  }
  return undefined;
}
