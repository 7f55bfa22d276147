/**
 * Writes a checkpoint folder of a given geometry with random weights: plain in bfloat16, or as GPTQ publishes them, 4 bits
 * in groups, embedding and head in float16. Only sizes matter: what it says is noise.
 */
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs';
import path from 'node:path';

export interface FolderGeometry {
  readonly layers: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabulary: number;
  readonly tied: boolean;
  /** Of GPTQ's weights; null: they are plain. */
  readonly groupSize: number | null;
}

export const folderGeometries = {
  'SmolLM2-135M': {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    heads: 9,
    kvHeads: 3,
    headDim: 64,
    vocabulary: 49152,
    tied: true,
    groupSize: null,
  },
  'TinyLlama-1.1B': {
    layers: 22,
    hidden: 2048,
    intermediate: 5632,
    heads: 32,
    kvHeads: 4,
    headDim: 64,
    vocabulary: 32000,
    tied: false,
    groupSize: 128,
  },
  'Llama-3.2-1B': {
    layers: 16,
    hidden: 2048,
    intermediate: 8192,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    vocabulary: 128256,
    tied: true,
    groupSize: 128,
  },
} as const satisfies Readonly<Record<string, FolderGeometry>>;

interface Part {
  readonly name: string;
  readonly dtype: keyof typeof elementBytes;
  readonly shape: readonly number[];
}

const elementBytes = { I32: 4, F16: 2, BF16: 2 } as const;

function partsOf(geometry: FolderGeometry): Part[] {
  const { layers, hidden, intermediate, heads, kvHeads, headDim, vocabulary, groupSize } = geometry;
  const plain = groupSize === null ? 'BF16' : 'F16';
  const linear = (name: string, outputs: number, inputs: number): Part[] =>
    groupSize === null
      ? [{ name: `${name}.weight`, dtype: plain, shape: [outputs, inputs] }]
      : [
          { name: `${name}.qweight`, dtype: 'I32', shape: [inputs / 8, outputs] },
          { name: `${name}.qzeros`, dtype: 'I32', shape: [inputs / groupSize, outputs / 8] },
          { name: `${name}.scales`, dtype: 'F16', shape: [inputs / groupSize, outputs] },
        ];
  const table = (name: string): Part => ({ name, dtype: plain, shape: [vocabulary, hidden] });
  const norm = (name: string): Part => ({ name, dtype: plain, shape: [hidden] });
  const layer = (index: number): Part[] => {
    const prefix = `model.layers.${index}`;
    return [
      norm(`${prefix}.input_layernorm.weight`),
      norm(`${prefix}.post_attention_layernorm.weight`),
      ...linear(`${prefix}.self_attn.q_proj`, heads * headDim, hidden),
      ...linear(`${prefix}.self_attn.k_proj`, kvHeads * headDim, hidden),
      ...linear(`${prefix}.self_attn.v_proj`, kvHeads * headDim, hidden),
      ...linear(`${prefix}.self_attn.o_proj`, hidden, heads * headDim),
      ...linear(`${prefix}.mlp.gate_proj`, intermediate, hidden),
      ...linear(`${prefix}.mlp.up_proj`, intermediate, hidden),
      ...linear(`${prefix}.mlp.down_proj`, hidden, intermediate),
    ];
  };
  return [
    table('model.embed_tokens.weight'),
    ...(geometry.tied ? [] : [table('lm_head.weight')]),
    norm('model.norm.weight'),
    ...Array.from({ length: layers }, (_, index) => layer(index)).flat(),
  ];
}

/** What stays of random words, and what is set in them: halves are small positive numbers, so that nothing overflows. */
const randomBits = {
  I32: [0xffffffff, 0],
  // 2^-7 and a little more.
  F16: [0x00ff00ff, 0x20002000],
  BF16: [0x007f007f, 0x3c003c00],
} as const;

function fill(part: Part, words: Uint32Array, seed: number): void {
  const [mask, base] = randomBits[part.dtype];
  // Never twice the same: ONNX Runtime would keep one.
  let state = seed;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = (state & mask) | base;
  }
}

/** Makes the folder and returns the bytes of its weights. */
export function writeCheckpointFolder(folder: string, geometry: FolderGeometry): number {
  mkdirSync(folder, { recursive: true });
  const { hidden, intermediate, vocabulary, groupSize } = geometry;
  writeFileSync(
    path.join(folder, 'config.json'),
    JSON.stringify({
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_act: 'silu',
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: geometry.layers,
      num_attention_heads: geometry.heads,
      num_key_value_heads: geometry.kvHeads,
      head_dim: geometry.headDim,
      vocab_size: vocabulary,
      max_position_embeddings: 2048,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
      tie_word_embeddings: geometry.tied,
      ...(groupSize === null
        ? {}
        : {
            quantization_config: {
              quant_method: 'gptq',
              bits: 4,
              group_size: groupSize,
              desc_act: false,
              sym: true,
            },
          }),
    }),
  );
  const parts = partsOf(geometry);
  let end = 0;
  const header: Record<string, unknown> = {};
  for (const { name, dtype, shape } of parts) {
    const bytes = shape.reduce((product, size) => product * size, elementBytes[dtype]);
    header[name] = { dtype, shape, data_offsets: [end, end + bytes] };
    end += bytes;
  }
  const json = Buffer.from(JSON.stringify(header));
  const size = Math.ceil(json.length / 8) * 8;
  const head = Buffer.alloc(8 + size, 0x20);
  head.writeBigUInt64LE(BigInt(size));
  json.copy(head, 8);
  const fd = openSync(path.join(folder, 'model.safetensors'), 'w');
  try {
    writeSync(fd, head);
    for (const [index, part] of parts.entries()) {
      const words = new Uint32Array(
        part.shape.reduce((product, n) => product * n, elementBytes[part.dtype]) / 4,
      );
      fill(part, words, Math.imul(index + 1, 0x9e3779b9));
      // Symmetric: version 1 of the format stores zero points minus one.
      if (part.name.endsWith('.qzeros')) words.fill(0x77777777);
      writeSync(fd, words);
    }
  } finally {
    closeSync(fd);
  }
  return end;
}
