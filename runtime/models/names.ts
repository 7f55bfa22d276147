/** Where most checkpoints of transformers have a layer's tensors. Pure. */
import { type AttentionPlaces, type GatedMlpPlaces, type PreNormPlaces, projectionPlace } from './decoder.ts';
import type { ModelSpec } from './model.ts';

type Sizes = Pick<ModelSpec, 'hidden' | 'heads' | 'kvHeads' | 'headDim' | 'intermediate' | 'tiedEmbeddings'>;

export const embeddingTensor = 'model.embed_tokens.weight';
export const finalNormTensor = 'model.norm.weight';

export const headTensor = ({ tiedEmbeddings }: Pick<Sizes, 'tiedEmbeddings'>): string =>
  tiedEmbeddings ? embeddingTensor : 'lm_head.weight';

export const layerPrefix = (layer: number): string => `model.layers.${layer}`;

/** q, k, v and o as tensors of their own. */
export function usualAttention(
  layer: number,
  { hidden, heads, kvHeads, headDim }: Sizes,
  bias: { readonly qkv: boolean; readonly o: boolean },
): Omit<AttentionPlaces, 'layer'> {
  const own = `${layerPrefix(layer)}.self_attn`;
  return {
    q: projectionPlace(`${own}.q_proj`, heads * headDim, bias.qkv),
    k: projectionPlace(`${own}.k_proj`, kvHeads * headDim, bias.qkv),
    v: projectionPlace(`${own}.v_proj`, kvHeads * headDim, bias.qkv),
    o: projectionPlace(`${own}.o_proj`, hidden, bias.o),
  };
}

/** gate, up and down as tensors of their own. */
export function usualMlp(layer: number, { hidden, intermediate }: Sizes, bias = false): GatedMlpPlaces {
  const own = `${layerPrefix(layer)}.mlp`;
  return {
    gate: projectionPlace(`${own}.gate_proj`, intermediate, bias),
    up: projectionPlace(`${own}.up_proj`, intermediate, bias),
    down: projectionPlace(`${own}.down_proj`, hidden, bias),
  };
}

/** Embedding and norms of a pre-norm decoder. */
export const usualPreNorm: Pick<PreNormPlaces, 'embedding' | 'inputNorm' | 'mlpNorm' | 'finalNorm'> = {
  embedding: embeddingTensor,
  inputNorm: (layer) => `${layerPrefix(layer)}.input_layernorm.weight`,
  mlpNorm: (layer) => `${layerPrefix(layer)}.post_attention_layernorm.weight`,
  finalNorm: finalNormTensor,
};
