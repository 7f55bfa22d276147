/**
 * How much memory a GPU of these nodes has, by what NVIDIA's feature discovery writes on them. Enters: nodes, the resource
 * that GPUs are counted by. Leaves: MiB, or undefined where a node does not say: then nothing may be concluded. Pure.
 */
import type { AnyObject } from '../api/objects.ts';
import { quantity } from './quantity.ts';

/** Products whose name does not tell; of two that match, the first. MiB, as nvidia-smi has them. */
const productMiB: readonly (readonly [RegExp, number])[] = [
  // The name's gigabytes are the processor's.
  [/\bGH200\b/, 97_871],
  [/\bT4\b/, 15_360],
  [/\bL4\b/, 23_034],
  [/\bA10G?\b/, 23_028],
  [/\bA30\b/, 24_576],
  [/\bA40\b/, 46_068],
  [/\bL40S?\b/, 46_068],
  [/\bA6000\b/, 49_140],
  [/\bRTX 4090\b/, 24_564],
  [/\bH100 NVL\b/, 95_830],
  [/\bH200\b/, 143_771],
  [/\bG?B200\b/, 183_359],
];

/** Of the nodes that have the resource, the most that one of its GPUs has; undefined unless all of them say. */
export function largestGpuMiB(nodes: readonly AnyObject[], resource: string): number | undefined {
  const having = nodes.filter((node) => (quantity(node.status?.allocatable?.[resource]) ?? 0) > 0);
  const sizes = having.map(({ metadata: { labels = {} } }) => gpuMiB(labels, resource));
  if (sizes.length === 0 || sizes.some((each) => each === undefined)) return undefined;
  return Math.max(...(sizes as number[]));
}

function gpuMiB(labels: Readonly<Record<string, string>>, resource: string): number | undefined {
  const memory = Number(labels[`${resource}.memory`]);
  if (Number.isFinite(memory) && memory > 0) return memory;
  // A slice of a GPU: nvidia.com/mig-1g.10gb.
  const [, slice] = /^nvidia\.com\/mig-\d+g\.(\d+)gb/.exec(resource) ?? [];
  if (slice !== undefined) return Number(slice) * 1024;
  if (resource !== 'nvidia.com/gpu') return undefined;
  const product = (labels['nvidia.com/gpu.product'] ?? '').replaceAll('-', ' ');
  const known = productMiB.find(([pattern]) => pattern.test(product))?.[1];
  if (known !== undefined) return known;
  const [, gigabytes] = /\b(\d+)GB\b/.exec(product) ?? [];
  return gigabytes === undefined ? undefined : Number(gigabytes) * 1024;
}
