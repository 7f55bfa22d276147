/**
 * A checkpoint of a given geometry with random weights: linear layers in 4 bits, norms and embedding dense. What a step
 * costs does not depend on the values. Ranks open it by this module's name, as they open a folder by its path.
 */
import type {
  Checkpoint,
  DenseTensor,
  QuantizedTensor,
  StoredTensor,
} from '../runtime/weights/checkpoint.ts';

export interface Geometry {
  readonly layers: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabulary: number;
  /** Of the 4-bit weights. */
  readonly blockSize: number;
  readonly maxLength: number;
}

/** Cheap numbers that look random to a kernel. */
function fill(bytes: Uint8Array, seed: number): Uint8Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);
  let state = seed | 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return bytes;
}

function quantized(outputs: number, inputs: number, blockSize: number, seed: number): QuantizedTensor {
  const blocks = Math.ceil(inputs / blockSize);
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits: 4,
    blockSize,
    layout: () => ({ zeros: false, minima: false }),
    read: () => ({
      packed: fill(new Uint8Array((outputs * blocks * blockSize) / 2), seed),
      scales: new Float32Array(outputs * blocks).fill(0.25 / Math.sqrt(inputs)),
    }),
  };
}

function dense(shape: readonly number[], value: (index: number) => number): DenseTensor {
  const count = shape.reduce((product, size) => product * size, 1);
  return {
    kind: 'dense',
    dtype: 'float32',
    shape,
    read: () => new Uint8Array(Float32Array.from({ length: count }, (_, index) => value(index)).buffer),
  };
}

/** The form in which ranks ask for a checkpoint that a module makes. */
export function openCheckpoint(geometry: Geometry): Checkpoint {
  const { layers, hidden, intermediate, heads, kvHeads, headDim, vocabulary, blockSize } = geometry;
  const tensors = new Map<string, StoredTensor>();
  const linear = (name: string, outputs: number, inputs: number): void => {
    tensors.set(name, quantized(outputs, inputs, blockSize, tensors.size + 1));
  };
  const norm = (name: string): void =>
    void tensors.set(
      name,
      dense([hidden], () => 1),
    );
  tensors.set(
    'model.embed_tokens.weight',
    dense([vocabulary, hidden], (index) => Math.sin(index * 1.7)),
  );
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `model.layers.${layer}.`;
    norm(`${prefix}input_layernorm.weight`);
    norm(`${prefix}post_attention_layernorm.weight`);
    linear(`${prefix}self_attn.q_proj.weight`, heads * headDim, hidden);
    linear(`${prefix}self_attn.k_proj.weight`, kvHeads * headDim, hidden);
    linear(`${prefix}self_attn.v_proj.weight`, kvHeads * headDim, hidden);
    linear(`${prefix}self_attn.o_proj.weight`, hidden, heads * headDim);
    linear(`${prefix}mlp.gate_proj.weight`, intermediate, hidden);
    linear(`${prefix}mlp.up_proj.weight`, intermediate, hidden);
    linear(`${prefix}mlp.down_proj.weight`, hidden, intermediate);
  }
  norm('model.norm.weight');
  linear('lm_head.weight', vocabulary, hidden);
  const linearWeights = layers * (2 * hidden * headDim * (heads + kvHeads) + 3 * hidden * intermediate);
  const bytesPerWeight = 0.5 + 4 / blockSize;
  return {
    path: `random ${layers} x ${hidden}`,
    config: {
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_act: 'silu',
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      head_dim: headDim,
      vocab_size: vocabulary,
      max_position_embeddings: geometry.maxLength,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
      tie_word_embeddings: false,
    },
    generationConfig: {},
    tensors,
    encoding: 'int4',
    weightBytes: (linearWeights + vocabulary * hidden) * bytesPerWeight,
    identity: JSON.stringify(geometry),
  };
}
