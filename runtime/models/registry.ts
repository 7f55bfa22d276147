/** The architectures that can be served, found by config.json's `architectures`. To add one: a file and a line here. */
import { SluiceError } from '../errors.ts';
import type { CheckpointConfig } from './config.ts';
import { exaone } from './exaone.ts';
import { gemma2 } from './gemma2.ts';
import { granite } from './granite.ts';
import { llama } from './llama.ts';
import { mistral } from './mistral.ts';
import type { Architecture, Model } from './model.ts';
import { olmo } from './olmo.ts';
import { olmo2 } from './olmo2.ts';
import { phi3 } from './phi3.ts';
import { qwen2 } from './qwen2.ts';
import { qwen3 } from './qwen3.ts';

export const architectures: readonly Architecture[] = [
  llama,
  mistral,
  phi3,
  olmo,
  olmo2,
  granite,
  exaone,
  qwen2,
  qwen3,
  gemma2,
];

/** Keys by which configurations count the experts of a layer. */
const expertKeys = ['num_local_experts', 'num_experts', 'n_routed_experts', 'moe_num_experts'];

/** A dense model's builder would misread, or not find, the layers of a mixture of experts. */
function refuseExperts({ path, config, tensors }: CheckpointConfig): void {
  const key = expertKeys.find((name) => typeof config[name] === 'number' && config[name] > 1);
  const tensor = [...tensors.keys()].find((name) => /\.experts\.|\.block_sparse_moe\./.test(name));
  if (key === undefined && tensor === undefined) return;
  const sign = key === undefined ? `it has the tensor "${tensor}"` : `${key} is ${config[key]}`;
  throw new SluiceError(
    'checkpoint_unsupported',
    `${path}: mixtures of experts are not supported (${sign}); dense models are`,
  );
}

/** Throws SluiceError `checkpoint_unsupported` for an unknown architecture, `checkpoint_invalid` for a wrong one. */
export function parseModel(checkpoint: CheckpointConfig): Model {
  refuseExperts(checkpoint);
  const names = checkpoint.config.architectures;
  const known = architectures.map(({ name }) => name).join(', ');
  if (!Array.isArray(names) || typeof names[0] !== 'string') {
    throw new SluiceError(
      'checkpoint_invalid',
      `${checkpoint.path}: config.json has no architectures: expected a list with one of ${known}`,
    );
  }
  const architecture = architectures.find(({ name }) => name === names[0]);
  if (architecture === undefined) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${checkpoint.path}: the architecture ${names[0].slice(0, 80)} is not known; known are ${known}`,
    );
  }
  return architecture.parse(checkpoint);
}
