/**
 * The device plugin's part: which of the node's GPUs belong to whom. Ids are exclusive and come back when their owner
 * is gone. There is no hardware behind them.
 */
import { createHash } from 'node:crypto';

export const gpuResource = 'nvidia.com/gpu';

export class GpuPool {
  readonly ids: readonly string[];
  readonly #owners = new Map<string, string>();

  constructor(nodeName: string, count: number) {
    this.ids = Array.from({ length: count }, (_, index) => gpuId(nodeName, index));
  }

  /** Undefined when not enough are free; nothing is taken then. */
  take(owner: string, count: number): readonly string[] | undefined {
    const free = this.ids.filter((id) => !this.#owners.has(id));
    if (free.length < count) return undefined;
    const taken = free.slice(0, count);
    for (const id of taken) this.#owners.set(id, owner);
    return taken;
  }

  get freeCount(): number {
    return this.ids.length - this.#owners.size;
  }

  release(owner: string): void {
    for (const [id, holder] of this.#owners) {
      if (holder === owner) this.#owners.delete(id);
    }
  }
}

/** What the device plugin and, in place of hardware, this node put into a container's environment. */
export function gpuEnvironment(ids: readonly string[]): Record<string, string> {
  if (ids.length === 0) return {};
  return {
    NVIDIA_VISIBLE_DEVICES: ids.join(','),
    SLUICE_DEVICES: `cpu:${ids.map((_, index) => index).join(',')}`,
  };
}

/** Of the form that NVIDIA's driver gives; the same after a restart of the node. */
function gpuId(nodeName: string, index: number): string {
  const hex = createHash('sha256').update(`${nodeName}/${index}`).digest('hex');
  return `GPU-${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`;
}
