/**
 * A GGUF's tokenizer metadata as the contents of tokenizer.json and tokenizer_config.json.
 * Metadata goes in (`tokenizer.ggml.*`, `tokenizer.chat_template*`), plain objects leave; must not know files or models.
 * Sources: the GGUF specification; llama.cpp's llama-vocab.cpp for the pre-tokenizers by name; transformers'
 * convert_slow_tokenizer.py for merges made from SentencePiece scores.
 */
import { SluiceError } from '../errors.ts';
import type { TokenizerContents } from './definition.ts';

type Metadata = ReadonlyMap<string, unknown>;

const contractions = "'s|'t|'re|'ve|'m|'ll|'d";
const gpt2 = `${contractions}| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`;
const modern = (digits: string): string =>
  `(?i:${contractions})|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const tekken =
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|' +
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|' +
  '\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const gpt4o =
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+' +
  `(?i:${contractions})?|` +
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*' +
  `(?i:${contractions})?|` +
  '\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

interface PreTokenizer {
  /** Applied one after the other; what a pattern matches is a piece of its own. */
  readonly patterns: readonly string[];
  /** A whole piece that is a token is taken without looking at the merges. */
  readonly ignoreMerges?: boolean;
}

const singleDigits: PreTokenizer = { patterns: ['\\p{N}', gpt2] };

/** `tokenizer.ggml.pre` -> how text is cut before the merges. */
const preTokenizers: Readonly<Record<string, PreTokenizer>> = {
  default: { patterns: ['[\\p{P}\\$\\+<=>\\^~\\|]+', gpt2, '\\p{N}+', '[0-9][0-9][0-9]'] },
  'gpt-2': { patterns: [gpt2] },
  'phi-2': { patterns: [gpt2] },
  mpt: { patterns: [gpt2] },
  olmo: { patterns: [gpt2] },
  jais: { patterns: [gpt2] },
  'llama-bpe': { patterns: [modern('\\p{N}{1,3}')], ignoreMerges: true },
  llama3: { patterns: [modern('\\p{N}{1,3}')], ignoreMerges: true },
  'llama-v3': { patterns: [modern('\\p{N}{1,3}')], ignoreMerges: true },
  dbrx: { patterns: [modern('\\p{N}{1,3}')] },
  smaug: { patterns: [modern('\\p{N}{1,3}')] },
  'smaug-bpe': { patterns: [modern('\\p{N}{1,3}')] },
  qwen2: { patterns: [modern('\\p{N}')] },
  'deepseek-r1-qwen': { patterns: [modern('\\p{N}')] },
  stablelm2: { patterns: [modern('\\p{N}')] },
  tekken: { patterns: [tekken], ignoreMerges: true },
  'gpt-4o': { patterns: [gpt4o] },
  smollm: singleDigits,
  starcoder: singleDigits,
  refact: singleDigits,
  'command-r': singleDigits,
  codeshell: singleDigits,
  exaone: singleDigits,
};

const tokenTypes = { unknown: 2, control: 3, userDefined: 4 } as const;

const quote = (value: unknown): string => (JSON.stringify(value) ?? 'undefined').slice(0, 80);

function strings(metadata: Metadata, key: string): readonly string[] | undefined {
  const value = metadata.get(key);
  return Array.isArray(value) && value.every((item) => typeof item === 'string') ? value : undefined;
}

function numbers(metadata: Metadata, key: string): readonly number[] | undefined {
  const value = metadata.get(key);
  return Array.isArray(value) && value.every((item) => typeof item === 'number') ? value : undefined;
}

/** Pairs that make each token, most likely first; transformers' `generate_merges`. */
function mergesFromScores(
  tokens: readonly string[],
  scores: readonly number[],
  ids: ReadonlyMap<string, number>,
): [string, string][] {
  const merges: { left: string; right: string; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    const local: { left: string; right: string; score: number }[] = [];
    const characters = [...token];
    if (characters.length > 64) continue;
    let left = '';
    for (let i = 1; i < characters.length; i++) {
      left += characters[i - 1];
      const right = token.slice(left.length);
      if (ids.has(left) && ids.has(right)) local.push({ left, right, score: scores[id] ?? 0 });
    }
    local.sort((a, b) => ids.get(a.left)! - ids.get(b.left)! || ids.get(a.right)! - ids.get(b.right)!);
    merges.push(...local);
  }
  const length = (text: string): number => [...text].length;
  merges.sort(
    (a, b) => b.score - a.score || length(b.left) - length(a.left) || length(b.right) - length(a.right),
  );
  return merges.map(({ left, right }) => [left, right]);
}

function byteLevelModel(
  file: string,
  metadata: Metadata,
  vocabulary: Record<string, number>,
): Record<string, unknown> {
  const pre = String(metadata.get('tokenizer.ggml.pre') ?? 'default');
  const known = Object.hasOwn(preTokenizers, pre) ? preTokenizers[pre] : undefined;
  if (!known) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${file}: tokenizer.ggml.pre ${quote(pre)} is not known; known are ${Object.keys(preTokenizers).join(', ')}`,
    );
  }
  const merges = strings(metadata, 'tokenizer.ggml.merges');
  if (!merges)
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: tokenizer.ggml.merges is missing or no list of strings`,
    );
  return {
    model: {
      type: 'BPE',
      vocab: vocabulary,
      merges: merges.map((merge) => merge.split(' ')),
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: known.ignoreMerges ?? false,
    },
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        ...known.patterns.map((pattern) => ({
          type: 'Split',
          pattern: { Regex: pattern },
          behavior: 'Isolated',
          invert: false,
        })),
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
  };
}

function sentencePieceModel(
  file: string,
  metadata: Metadata,
  tokens: readonly string[],
  vocabulary: Record<string, number>,
  unknown: string | null,
): Record<string, unknown> {
  const scores = numbers(metadata, 'tokenizer.ggml.scores');
  if (scores?.length !== tokens.length) {
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: tokenizer.ggml.scores must hold ${tokens.length} numbers, one a token`,
    );
  }
  const prefix = metadata.get('tokenizer.ggml.add_space_prefix') !== false;
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  return {
    model: {
      type: 'BPE',
      vocab: vocabulary,
      merges: mergesFromScores(tokens, scores, new Map(tokens.map((token, id) => [token, id]))),
      dropout: null,
      unk_token: unknown,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
    },
    normalizer: prefix
      ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replace] }
      : replace,
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
  };
}

/** `file` is for messages. Throws SluiceError for a tokenizer that is broken or of a kind that is not known. */
export function tokenizerFromGguf(file: string, metadata: Metadata): TokenizerContents {
  const tokens = strings(metadata, 'tokenizer.ggml.tokens');
  if (!tokens)
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: tokenizer.ggml.tokens is missing or no list of strings`,
    );
  const types = numbers(metadata, 'tokenizer.ggml.token_type') ?? [];
  const vocabulary = Object.create(null) as Record<string, number>;
  for (const [id, token] of tokens.entries()) vocabulary[token] = id;
  const tokenAt = (key: string): string | undefined => {
    const id = metadata.get(`tokenizer.ggml.${key}`);
    return typeof id === 'number' ? tokens[id] : undefined;
  };
  const unknownIndex = types.indexOf(tokenTypes.unknown);
  const unknown = tokenAt('unknown_token_id') ?? tokens[unknownIndex] ?? null;
  const bos = tokenAt('bos_token_id');
  const eos = tokenAt('eos_token_id');

  const kind = metadata.get('tokenizer.ggml.model');
  let parts: Record<string, unknown>;
  if (kind === 'gpt2') parts = byteLevelModel(file, metadata, vocabulary);
  else if (kind === 'llama') parts = sentencePieceModel(file, metadata, tokens, vocabulary, unknown);
  else {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${file}: tokenizer.ggml.model ${quote(kind)} is not known; gpt2 and llama are`,
    );
  }

  const added = tokens.flatMap((content, id) => {
    const type = types[id];
    const special = type === tokenTypes.control || (type === tokenTypes.unknown && kind === 'llama');
    if (!special && type !== tokenTypes.userDefined) return [];
    return [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }];
  });
  const addBos =
    bos !== undefined && (metadata.get('tokenizer.ggml.add_bos_token') ?? kind === 'llama') === true;
  const addEos = eos !== undefined && metadata.get('tokenizer.ggml.add_eos_token') === true;
  const special = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
  const single = [
    ...(addBos ? [special(bos)] : []),
    { Sequence: { id: 'A', type_id: 0 } },
    ...(addEos ? [special(eos)] : []),
  ];
  const used = [...(addBos ? [bos] : []), ...(addEos ? [eos] : [])];
  const chatTemplate = metadata.get('tokenizer.chat_template');
  return {
    path: file,
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      ...parts,
      post_processor:
        used.length === 0
          ? null
          : {
              type: 'TemplateProcessing',
              single,
              pair: [...single, { Sequence: { id: 'B', type_id: 1 } }],
              special_tokens: Object.fromEntries(
                used.map((token) => [token, { id: token, ids: [vocabulary[token]!], tokens: [token] }]),
              ),
            },
    },
    config: {
      ...(bos === undefined ? {} : { bos_token: bos }),
      ...(eos === undefined ? {} : { eos_token: eos }),
      ...(unknown === null ? {} : { unk_token: unknown }),
      ...(typeof chatTemplate === 'string' ? { chat_template: chatTemplate } : {}),
      add_bos_token: addBos,
      add_eos_token: addEos,
      clean_up_tokenization_spaces: false,
    },
  };
}
