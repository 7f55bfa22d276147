/**
 * Addresses for pods. Where this program may add addresses to the loopback interface, one of its own for each pod
 * (10.244.x.y/32), which no other machine can reach; otherwise all pods have the machine's own address and must not
 * want the same port. The kernel decides who has an address, so that nodes of several programs do not collide.
 */
import { createHash, randomInt } from 'node:crypto';
import os from 'node:os';
import { SluiceError } from '../../runtime/errors.ts';
import type { Guard } from '../guard.ts';
import {
  addLoopbackAddress,
  loopbackProblem,
  removeLoopbackAddress,
  removeStaleLoopbackAddresses,
} from '../loopback.ts';

/** Pods of one node. */
export const podLimit = 200;

export interface PodAddressPool {
  /** Why every pod gets the machine's address; undefined when each has its own. */
  readonly sharedBecause: string | undefined;
  /** The node's own. Not a loopback address: endpoints may not have one. */
  readonly hostIP: string;
  take(): Promise<string>;
  release(address: string): Promise<void>;
  /** What is still taken, the node's own address included. */
  close(): Promise<void>;
}

/** `sharedBecause`: do not even try to add addresses, for this reason. */
export async function createAddressPool(
  nodeName: string,
  guard: Guard,
  options: { readonly sharedBecause?: string } = {},
): Promise<PodAddressPool> {
  const own = machineAddress();
  const sharedBecause = options.sharedBecause ?? (await loopbackProblem());
  if (sharedBecause !== undefined) {
    if (own === undefined) {
      throw new SluiceError(
        'config_invalid',
        `this machine has no address but 127.0.0.1, which a pod cannot have, and none can be added (${sharedBecause}): ` +
          'run as root, or give an interface an address',
      );
    }
    return {
      sharedBecause,
      hostIP: own,
      take: async () => own,
      release: async () => {},
      close: async () => {},
    };
  }

  await removeStaleLoopbackAddresses();
  const taken = new Set<string>();
  const subnet = createHash('sha256').update(nodeName).digest()[0]!;
  // Not where a node of the same name, killed a moment ago, began: its guard may be cleaning up.
  let next = randomInt(254);
  const take = async () => {
    for (let attempt = 0; attempt < 256 * 254; attempt++) {
      const index = next++;
      const address = `10.244.${(subnet + Math.floor(index / 254)) % 256}.${(index % 254) + 1}`;
      if (taken.has(address)) continue;
      try {
        await addLoopbackAddress(address, guard);
        taken.add(address);
        return address;
      } catch (error) {
        // Another program's.
        if (!(error as Error).message.includes('File exists')) throw error;
      }
    }
    throw new Error('no free address in 10.244.0.0/16');
  };
  const release = async (address: string) => {
    if (taken.delete(address)) await removeLoopbackAddress(address, guard);
  };
  return {
    sharedBecause: undefined,
    // A machine without any network still has pods that reach each other.
    hostIP: own ?? (await take()),
    take,
    release,
    async close() {
      await Promise.all([...taken].map(release));
    },
  };
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
