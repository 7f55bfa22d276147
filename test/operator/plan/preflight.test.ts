/** Which wishes are refused before a pod is made, and which are tried: by the checkpoint, its GPUs' memory and limits. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InferenceServiceSpec, ResolvedModel } from '../../../operator/api/inference-service.ts';
import type { AnyObject } from '../../../operator/api/objects.ts';
import { preflightProblems } from '../../../operator/plan/preflight.ts';
import { quantity } from '../../../operator/plan/quantity.ts';

const resolved = { source: 'x', commit: 'c', resolvedAt: '2026-01-01T00:00:00Z' };
/** Qwen3-8B, 16.4 GB. */
const bf16: ResolvedModel = {
  ...resolved,
  ...{ hidden: 4096, heads: 32, kvHeads: 8, headDim: 128, intermediate: 12288, layers: 36 },
  ...{ vocabulary: 151_936, quantization: 'bfloat16', bytes: 16_381_470_720 },
};
/** Its GPTQ form in 4 bits. */
const gptq: ResolvedModel = { ...bf16, quantization: 'gptq', bytes: 6_100_000_000 };
/** Llama-3.1-70B. */
const large: ResolvedModel = {
  ...resolved,
  ...{ hidden: 8192, heads: 64, kvHeads: 8, headDim: 128, intermediate: 28672, layers: 80 },
  ...{ vocabulary: 128_256, quantization: 'bfloat16', bytes: 141_107_412_992 },
};

const node = (labels: Record<string, string>, gpus = 8, resource = 'nvidia.com/gpu'): AnyObject => ({
  apiVersion: 'v1',
  kind: 'Node',
  metadata: { name: 'node-a', labels },
  status: { allocatable: { [resource]: String(gpus) } },
});
const product = (name: string, more: Record<string, string> = {}) =>
  node({ 'nvidia.com/gpu.product': name, ...more });
const memory = (mebibytes: number, more: Record<string, string> = {}) =>
  node({ 'nvidia.com/gpu.memory': String(mebibytes), ...more });

const limit = (amount: string): Partial<InferenceServiceSpec> => ({
  template: { spec: { containers: [{ name: 'runtime', resources: { limits: { memory: amount } } }] } },
});
const mayGrow: Partial<InferenceServiceSpec> = { rollout: { capacity: { mode: 'MayGrow' } } };

type Row = readonly [
  sentence: string,
  model: ResolvedModel,
  spec: Partial<InferenceServiceSpec>,
  nodes: readonly AnyObject[],
  says?: RegExp,
];
const t4 = product('Tesla-T4');
const a100 = product('NVIDIA-A100-SXM4-80GB');
const h200 = product('NVIDIA-H200');

// biome-ignore format: a table.
const rows: readonly Row[] = [
  ['half precision fits a GPU with room', bf16, { gpus: 1 }, [a100]],
  ['half precision does not fit one T4', bf16, { gpus: 1 }, [t4], /about \d+ MiB are needed .*15360 MiB are there \(1 GPU of 15360 MiB\)/],
  ['but two of them, each with half', bf16, { gpus: 2 }, [t4]],
  ['quantized it fits one T4', gptq, { gpus: 1 }, [t4]],
  ['quantized while it is loaded it fits one T4, in 4 bits', bf16, { gpus: 1, quantization: 'int4' }, [t4]],
  ['and in 8 bits', bf16, { gpus: 1, quantization: 'int8' }, [t4]],
  ['widened to float32 it needs twice as much', bf16, { gpus: 1, quantization: 'float32' }, [memory(24_564)], /weights 31\d\d\d MiB/],
  ['70B fits two H200 and not one', large, { gpus: 2 }, [h200]],
  ['70B on four T4', large, { gpus: 4 }, [t4], /61440 MiB are there \(4 GPUs of at most 15360 MiB\)/],
  ['the label of the memory goes before the product', bf16, { gpus: 1 }, [product('Tesla-T4', { 'nvidia.com/gpu.memory': '81559' })]],
  ['a product that is not known is tried', large, { gpus: 1 }, [product('NVIDIA-Z900')]],
  ['a node without labels is tried', large, { gpus: 1 }, [node({})]],
  ['one node that does not say is enough to try', large, { gpus: 1 }, [t4, node({})]],
  ['the largest GPUs of all nodes count', bf16, { gpus: 1 }, [t4, a100]],
  ['unless the template keeps to the small ones', bf16, { gpus: 1, template: { spec: { nodeSelector: { pool: 'small' } } } }, [a100, product('Tesla-T4', { pool: 'small' })], /15360 MiB are there/],
  ['a cordoned node comes back', bf16, { gpus: 1 }, [t4, { ...a100, spec: { unschedulable: true } }]],
  ['no node with such a GPU: others may come', large, { gpus: 1 }, []],
  ['nodes may grow: larger GPUs may come', large, { gpus: 1, ...mayGrow }, [t4]],
  ['the gigabytes in a name that are not the GPU\'s do not count', large, { gpus: 1 }, [product('NVIDIA-GH200-480GB')], /97871 MiB are there/],
  ['a slice of a GPU has its own memory', bf16, { gpus: 1, gpuResource: 'nvidia.com/mig-1g.10gb' }, [node({ 'nvidia.com/gpu.memory': '81559' }, 7, 'nvidia.com/mig-1g.10gb')], /10240 MiB are there/],
  ['a slice with a label of its own', bf16, { gpus: 1, gpuResource: 'nvidia.com/mig-3g.40gb' }, [node({ 'nvidia.com/mig-3g.40gb.memory': '40192' }, 2, 'nvidia.com/mig-3g.40gb')]],
  ['of other makers nothing is known', large, { gpus: 1, gpuResource: 'amd.com/gpu' }, [node({ 'nvidia.com/gpu.memory': '16384' }, 8, 'amd.com/gpu')]],
  ['a CPU without a limit is tried', large, {}, [t4]],
  ['a CPU widens half precision: 32 Gi are enough', bf16, limit('32Gi'), []],
  ['and 20 Gi are not', bf16, limit('20Gi'), [], /20480 MiB are there \(the limit of 20Gi\)/],
  ['quantized 8 Gi are enough', gptq, limit('8Gi'), []],
  ['a limit in decimal units', gptq, limit('5G'), [], /4769 MiB are there/],
  ['a limit that is no quantity is the API server\'s to refuse', gptq, limit('much'), []],
  ['the KV cache that is asked for counts', gptq, { ...limit('8Gi'), runtime: { kvCacheMemoryBytes: 4 * 2 ** 30 } }, [], /the KV cache asked for/],
  ['a limit of another container is its own', bf16, { template: { spec: { containers: [{ name: 'proxy', resources: { limits: { memory: '64Mi' } } }] } } }, []],
  ['a limit on the host says nothing of GPUs', bf16, { gpus: 1, ...limit('4Gi') }, [a100]],
  ['more ranks than the model can be cut for', bf16, { gpus: 769 }, [], /at most 768 ranks/],
  ['an encoding that the checkpoint does not have', bf16, { gpus: 1, quantization: 'gptq' }, [a100], /encoding gptq: the checkpoint is stored as bfloat16/],
  ['a checkpoint of which little is known is tried', { ...resolved, bytes: 1e15 }, { gpus: 1 }, [t4]],
];

for (const [sentence, model, spec, nodes, says] of rows) {
  test(sentence, () => {
    const problems = preflightProblems({ model: { path: 'org/model' }, replicas: 1, ...spec }, model, nodes);
    if (says === undefined) assert.deepEqual(problems, []);
    else assert.match(problems.join('; '), says);
  });
}

test('quantities in all of their forms', () => {
  const read = ['4', 4, '500m', '1.5Gi', '2e3', '1k', '.5', 'much', '', '1Zi', undefined, null];
  assert.deepEqual(read.map(quantity), [
    ...[4, 4, 0.5, 1.5 * 2 ** 30, 2000, 1000, 0.5],
    ...[undefined, undefined, undefined, undefined, undefined],
  ]);
});
