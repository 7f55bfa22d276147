/**
 * llama.cpp's tensor and metadata names, architecture by architecture, in the words of transformers.
 * Pure data and string work. Source: llama.cpp's gguf-py `constants.py`, `tensor_mapping.py` and `convert_hf_to_gguf.py`.
 */

export interface GgufArchitecture {
  /** transformers' class, as config.json's `architectures` has it. */
  readonly architecture: string;
  readonly modelType: string;
  /** Rows of q and k were permuted from transformers' half-split to the interleaved rotary layout. */
  readonly permutedRotary: boolean;
  /** The norms' weights are stored plus one. */
  readonly normsPlusOne: boolean;
  /** Names within a block that differ from the common ones. */
  readonly names: Readonly<Record<string, string>>;
}

const common: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_qkv: 'self_attn.qkv_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

const architecture = (
  name: string,
  modelType: string,
  options: Partial<Omit<GgufArchitecture, 'architecture' | 'modelType'>> = {},
): GgufArchitecture => ({
  architecture: name,
  modelType,
  permutedRotary: false,
  normsPlusOne: false,
  names: {},
  ...options,
});

/** `general.architecture` -> what it is. */
export const ggufArchitectures: Readonly<Record<string, GgufArchitecture>> = {
  llama: architecture('LlamaForCausalLM', 'llama', { permutedRotary: true }),
  qwen2: architecture('Qwen2ForCausalLM', 'qwen2'),
  qwen3: architecture('Qwen3ForCausalLM', 'qwen3'),
  phi3: architecture('Phi3ForCausalLM', 'phi3', { names: { ffn_up: 'mlp.gate_up_proj' } }),
  granite: architecture('GraniteForCausalLM', 'granite', { permutedRotary: true }),
  olmo: architecture('OlmoForCausalLM', 'olmo', { permutedRotary: true }),
  olmo2: architecture('Olmo2ForCausalLM', 'olmo2', {
    names: { post_attention_norm: 'post_attention_layernorm', post_ffw_norm: 'post_feedforward_layernorm' },
  }),
  gemma2: architecture('Gemma2ForCausalLM', 'gemma2', {
    normsPlusOne: true,
    names: {
      post_attention_norm: 'post_attention_layernorm',
      ffn_norm: 'pre_feedforward_layernorm',
      post_ffw_norm: 'post_feedforward_layernorm',
    },
  }),
};

/** transformers' name of a tensor; undefined for those that are not weights of the model (rotary factors). */
export function transformersName(kind: GgufArchitecture, name: string): string | undefined {
  if (name === 'token_embd.weight') return 'model.embed_tokens.weight';
  if (name === 'output_norm.weight') return 'model.norm.weight';
  if (name === 'output.weight') return 'lm_head.weight';
  const match = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
  if (!match) return undefined;
  const [, layer, part, suffix] = match;
  const own = kind.names[part!] ?? common[part!];
  return own === undefined ? undefined : `model.layers.${layer}.${own}.${suffix}`;
}
