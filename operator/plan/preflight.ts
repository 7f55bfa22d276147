/**
 * Can the revision that is asked for run at all? Enters: what a lookup found, the spec, the nodes. Leaves: what stands
 * against it, in words, before a pod is made. Pure; the judgement is the runtime's own. What is not known stands against
 * nothing: then it is tried.
 */
import { type CheckpointFacts, kvElementBytes, preflight, type RunWish } from '../../runtime/preflight.ts';
import type { InferenceServiceSpec, ResolvedModel } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';
import { runtimeContainer } from '../resources/pod-template.ts';
import { misplacement, type PodSpec } from './capacity.ts';
import { largestGpuMiB } from './gpu-memory.ts';
import { quantity } from './quantity.ts';

/** Empty: nothing known stands against it. */
export function preflightProblems(
  spec: InferenceServiceSpec,
  model: ResolvedModel,
  nodes: readonly AnyObject[],
): string[] {
  const facts = factsOf(model);
  if (facts === undefined) return [];
  const { gpus = 0, quantization: encoding, runtime = {} } = spec;
  const { kvCacheMemoryBytes: kvBytes, kvCacheDtype } = runtime;
  const wish: RunWish = {
    ranks: Math.max(1, gpus),
    ...(encoding === undefined ? {} : { encoding }),
    ...(kvBytes === undefined ? {} : { kvBytes }),
    ...(kvCacheDtype === undefined ? {} : { kvElementBytes: kvElementBytes[kvCacheDtype] }),
    ...(gpus === 0 ? hostMemory(spec) : gpuMemory(spec, nodes)),
  };
  return preflight(facts, wish).map(({ message }) => message);
}

type Memory = Pick<RunWish, 'memoryBytes' | 'memorySource' | 'device'>;

/** Without a limit it is the node's, which others share: that is found out. */
function hostMemory(spec: InferenceServiceSpec): Memory {
  const containers = templateSpec(spec).containers ?? [];
  const limit = containers.find(({ name }) => name === runtimeContainer)?.resources?.limits?.memory;
  const memoryBytes = quantity(limit);
  return memoryBytes === undefined ? {} : { memoryBytes, memorySource: `the limit of ${limit}` };
}

/** Of the nodes where the pods may be, the largest GPUs; further nodes may have larger ones. */
function gpuMemory(spec: InferenceServiceSpec, nodes: readonly AnyObject[]): Memory {
  const { gpus = 0, gpuResource = 'nvidia.com/gpu', rollout } = spec;
  if (rollout?.capacity?.mode === 'MayGrow') return {};
  const podSpec = templateSpec(spec);
  const possible = nodes.filter((node) => misplacement(node, podSpec) === undefined);
  const each = largestGpuMiB(possible, gpuResource);
  if (each === undefined) return {};
  const memorySource = `${gpus} GPU${gpus === 1 ? '' : 's'} of ${gpus === 1 ? '' : 'at most '}${each} MiB`;
  return { device: 'gpu', memoryBytes: gpus * each * 2 ** 20, memorySource };
}

function templateSpec({ template }: InferenceServiceSpec): PodSpec {
  return (template?.spec ?? {}) as PodSpec;
}

function factsOf(model: ResolvedModel): CheckpointFacts | undefined {
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
    ...{ hidden, heads, kvHeads, intermediate, layers, vocabulary },
    ...{ encoding: quantization, weightBytes: bytes },
    ...(headDim === undefined ? {} : { headDim }),
  };
}
