/**
 * Can the revision that is asked for run at all? Enters: what a lookup found, the spec, the nodes. Leaves: what stands
 * against it, in words, before a pod is made. Pure; the judgement is the runtime's own.
 */
import { kvBytesPerToken, preflight } from '../../runtime/preflight.ts';
import type { InferenceServiceSpec, ResolvedModel } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';

/** Empty: nothing known stands against it. */
export function preflightProblems(
  spec: InferenceServiceSpec,
  model: ResolvedModel,
  nodes: readonly AnyObject[],
): string[] {
  const facts = factsOf(model);
  if (facts === undefined) return [];
  const { gpus = 0, quantization: encoding } = spec;
  const problems = preflight(facts, {
    ranks: Math.max(1, gpus),
    ...(encoding === undefined ? {} : { encoding }),
  }).map(({ message }) => message);
  const largest = largestGpuMiB(nodes, spec.gpuResource ?? 'nvidia.com/gpu');
  const neededMiB = Math.ceil((facts.weightBytes + kvBytesPerToken(facts) * minimalTokens) / 2 ** 20);
  if (gpus > 0 && largest !== undefined && neededMiB > gpus * largest)
    problems.push(
      `about ${neededMiB} MiB are needed for weights and a minimal KV cache, ${gpus} GPUs of at most ${largest} MiB are there`,
    );
  return problems;
}

const minimalTokens = 256;

function factsOf(model: ResolvedModel): Parameters<typeof preflight>[0] | undefined {
  const { hidden, heads, kvHeads, headDim, intermediate, layers, vocabulary, quantization, bytes } = model;
  if (
    hidden === undefined ||
    heads === undefined ||
    kvHeads === undefined ||
    intermediate === undefined ||
    layers === undefined ||
    vocabulary === undefined ||
    quantization === undefined ||
    bytes === undefined
  )
    return undefined;
  return {
    ...{
      hidden,
      heads,
      kvHeads,
      intermediate,
      layers,
      vocabulary,
      encoding: quantization,
      weightBytes: bytes,
    },
    ...(headDim === undefined ? {} : { headDim }),
  };
}

/** Of products whose name does not tell. MiB, as nvidia-smi has them. */
const productMiB: readonly (readonly [RegExp, number])[] = [
  [/\bT4\b/, 15_360],
  [/\bL4\b/, 23_034],
  [/\bA10G?\b/, 23_028],
  [/\bL40S?\b/, 46_068],
  [/\bA6000\b/, 49_140],
  [/\bGH200\b|\bH200\b/, 143_771],
  [/\bB200\b/, 183_359],
];

/** Of all nodes that have the resource; undefined where one of them does not say. */
function largestGpuMiB(nodes: readonly AnyObject[], resource: string): number | undefined {
  const having = nodes.filter((node) => Number(node.status?.allocatable?.[resource] ?? 0) > 0);
  const sizes = having.map(({ metadata: { labels = {} } }) => gpuMiB(labels));
  if (sizes.length === 0 || sizes.some((each) => each === undefined)) return undefined;
  return Math.max(...(sizes as number[]));
}

function gpuMiB(labels: Readonly<Record<string, string>>): number | undefined {
  const memory = Number(labels['nvidia.com/gpu.memory']);
  if (Number.isFinite(memory) && memory > 0) return memory;
  const product = (labels['nvidia.com/gpu.product'] ?? '').replaceAll('-', ' ');
  const [, gigabytes] = /\b(\d+)GB\b/.exec(product) ?? [];
  if (gigabytes !== undefined) return Number(gigabytes) * 1024;
  return productMiB.find(([pattern]) => pattern.test(product))?.[1];
}
