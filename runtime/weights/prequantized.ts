/**
 * Weights that a checkpoint's author quantized: reads `quantization_config` and joins each layer's packed tensors into one
 * QuantizedTensor under the layer's `.weight`. What cannot be run is refused by name, never misread.
 */
import { SluiceError } from '../errors.ts';
import { awqTensor } from './awq.ts';
import type { DenseTensor, StoredTensor } from './checkpoint.ts';
import { gptqTensor } from './gptq.ts';

export interface Prequantized {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly encoding: 'gptq' | 'awq';
}

type Config = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Config =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const show = (value: unknown): string => (JSON.stringify(value) ?? 'undefined').slice(0, 80);

/**
 * `config` is config.json, `separate` quantize_config.json where there is one (older GPTQ checkpoints).
 * Undefined when the checkpoint is not quantized. Throws `checkpoint_unsupported` or `checkpoint_invalid`.
 */
export function joinPrequantized(
  folder: string,
  config: Config,
  separate: Config | undefined,
  tensors: ReadonlyMap<string, DenseTensor>,
): Prequantized | undefined {
  const found = config.quantization_config ?? config.compression_config ?? separate;
  if (found === undefined || found === null) return undefined;
  if (!isObject(found)) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder}: quantization_config is ${show(found)}, an object is expected`,
    );
  }
  const method = found.quant_method ?? (found === separate ? 'gptq' : undefined);
  if (method === 'gptq') return joinGptq(folder, found, tensors);
  if (method === 'awq') return joinAwq(folder, found, tensors);
  throw new SluiceError(
    'checkpoint_unsupported',
    `${folder}: weights quantized by ${show(method)} are not supported; gptq, awq and GGUF files are`,
  );
}

function joinGptq(folder: string, config: Config, tensors: ReadonlyMap<string, DenseTensor>): Prequantized {
  const refuse = (what: string): SluiceError =>
    new SluiceError('checkpoint_unsupported', `${folder}: ${what}`);
  const { bits } = config;
  const groupSize = config.group_size ?? -1;
  const format = config.checkpoint_format ?? 'gptq';
  if (isObject(config.dynamic) && Object.keys(config.dynamic).length > 0) {
    throw refuse(
      'GPTQ with "dynamic" overrides for some layers is not supported; one setting for all layers is',
    );
  }
  if (bits !== 4 && bits !== 8) throw refuse(`GPTQ with ${show(bits)} bits is not supported; 4 and 8 are`);
  if (format !== 'gptq' && format !== 'gptq_v2') {
    throw refuse(`the GPTQ checkpoint_format ${show(format)} is not supported; "gptq" and "gptq_v2" are`);
  }
  if (typeof groupSize !== 'number' || !Number.isInteger(groupSize) || groupSize === 0 || groupSize < -1) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder}: the GPTQ group_size is ${show(groupSize)}; -1 or a positive integer is expected, for example 128`,
    );
  }
  const joined = join(folder, tensors, ['qweight', 'qzeros', 'scales'], ['g_idx'], (name, parts) =>
    gptqTensor(
      name,
      {
        qweight: parts.qweight!,
        qzeros: parts.qzeros!,
        scales: parts.scales!,
        ...(parts.g_idx ? { gIdx: parts.g_idx } : {}),
      },
      { bits, groupSize, trueZeros: format === 'gptq_v2' },
    ),
  );
  return { tensors: joined, encoding: 'gptq' };
}

function joinAwq(folder: string, config: Config, tensors: ReadonlyMap<string, DenseTensor>): Prequantized {
  const refuse = (what: string): SluiceError =>
    new SluiceError('checkpoint_unsupported', `${folder}: ${what}`);
  const bits = config.bits ?? config.w_bit;
  const groupSize = config.group_size ?? config.q_group_size ?? 128;
  const version = String(config.version ?? 'gemm').toLowerCase();
  if (bits !== 4) throw refuse(`AWQ with ${show(bits)} bits is not supported; 4 is`);
  if (version !== 'gemm') throw refuse(`the AWQ layout "${version}" is not supported; "gemm" is`);
  if (typeof groupSize !== 'number' || !Number.isInteger(groupSize) || groupSize === 0 || groupSize < -1) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder}: the AWQ group_size is ${show(groupSize)}; -1 or a positive integer is expected, for example 128`,
    );
  }
  const joined = join(folder, tensors, ['qweight', 'qzeros', 'scales'], [], (name, parts) =>
    awqTensor(name, { qweight: parts.qweight!, qzeros: parts.qzeros!, scales: parts.scales! }, { groupSize }),
  );
  return { tensors: joined, encoding: 'awq' };
}

const partTypes: Readonly<Record<string, readonly string[]>> = {
  qweight: ['int32'],
  qzeros: ['int32'],
  g_idx: ['int32'],
  scales: ['float16', 'bfloat16', 'float32'],
};

/** Replaces `layer.qweight` and its companions by `layer.weight`; everything else stays. */
function join(
  folder: string,
  tensors: ReadonlyMap<string, DenseTensor>,
  required: readonly string[],
  optional: readonly string[],
  make: (name: string, parts: Readonly<Record<string, DenseTensor>>) => StoredTensor,
): ReadonlyMap<string, StoredTensor> {
  const joined = new Map<string, StoredTensor>();
  const known = [...required, ...optional];
  const layers = new Set<string>();
  for (const [name, tensor] of tensors) {
    const dot = name.lastIndexOf('.');
    const layer = name.slice(0, dot);
    if (dot > 0 && known.includes(name.slice(dot + 1)) && tensors.has(`${layer}.qweight`)) layers.add(layer);
    else joined.set(name, tensor);
  }
  if (layers.size === 0) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${folder}: config.json announces quantized weights, but no tensor "*.qweight" is there`,
    );
  }
  for (const layer of layers) {
    const parts: Record<string, DenseTensor> = {};
    for (const part of known) {
      const tensor = tensors.get(`${layer}.${part}`);
      if (tensor === undefined) {
        if (optional.includes(part)) continue;
        throw new SluiceError(
          'checkpoint_invalid',
          `${folder}: the tensor "${layer}.${part}" is missing beside "${layer}.qweight"`,
        );
      }
      if (!partTypes[part]!.includes(tensor.dtype)) {
        throw new SluiceError(
          'checkpoint_invalid',
          `${folder}: the tensor "${layer}.${part}" is ${tensor.dtype}; ${partTypes[part]!.join(' or ')} is expected`,
        );
      }
      parts[part] = tensor;
    }
    joined.set(`${layer}.weight`, make(layer, parts));
  }
  return joined;
}
