/**
 * A checkpoint's tokenizer files as one definition: tokenizer.json, completed by tokenizer_config.json as transformers
 * does, and corrected where the library that encodes departs from Hugging Face's own.
 * Enters: a folder, or the contents of the two files where a checkpoint has them elsewhere. Leaves: plain JSON, or SluiceError `checkpoint_invalid`. Must not know encoding itself.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../errors.ts';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  readonly single_word?: boolean;
  readonly normalized?: boolean;
}

export interface Component {
  readonly type: string;
  readonly [key: string]: unknown;
}

export interface TokenizerDefinition {
  readonly file: string;
  readonly model: Component & {
    readonly vocab: Readonly<Record<string, number>> | readonly [string, number][];
  };
  readonly normalizer: Component | null;
  readonly pre_tokenizer: Component | null;
  readonly post_processor: Component | null;
  readonly decoder: Component | null;
  readonly added_tokens: readonly AddedToken[];
}

export type TokenizerConfig = Readonly<Record<string, unknown>>;

/** What tokenizer.json and tokenizer_config.json would hold; plain data, so that other threads can be sent it. */
export interface TokenizerContents {
  /** Where it comes from, for messages. */
  readonly path: string;
  readonly tokenizer: Readonly<Record<string, unknown>>;
  readonly config: TokenizerConfig;
}

/** A checkpoint's folder, or what was read of another form. */
export type TokenizerSource = string | TokenizerContents;

function readTokenizerJson(folder: string): { file: string; json: Readonly<Record<string, unknown>> } {
  const file = path.join(folder, 'tokenizer.json');
  if (!existsSync(file)) {
    const sentencePiece = existsSync(path.join(folder, 'tokenizer.model'));
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: missing; the tokenizer is read from this file${sentencePiece ? ' (tokenizer.model alone is not enough; transformers writes tokenizer.json by save_pretrained)' : ''}`,
    );
  }
  return { file, json: readJsonObject(file) };
}

/** Tokenizer and its configuration ({} where there is none). */
export function readDefinition(source: TokenizerSource): {
  definition: TokenizerDefinition;
  config: TokenizerConfig;
} {
  const { file, json } =
    typeof source === 'string' ? readTokenizerJson(source) : { file: source.path, json: source.tokenizer };
  const config = readTokenizerConfig(source);
  const model = json.model as TokenizerDefinition['model'] | undefined;
  if (typeof model !== 'object' || model === null || typeof model.vocab !== 'object' || model.vocab === null)
    throw new SluiceError(
      'checkpoint_invalid',
      `${file}: holds no model with a vocab; is it a tokenizer.json?`,
    );
  const definition: TokenizerDefinition = {
    file,
    // Files written before tokenizers 0.9 carry no type; only BPE has merges.
    model: { ...model, type: model.type ?? ('merges' in model ? 'BPE' : 'WordPiece') },
    normalizer: (json.normalizer ?? null) as Component | null,
    pre_tokenizer: correctPreTokenizer((json.pre_tokenizer ?? null) as Component | null),
    post_processor: (json.post_processor ?? null) as Component | null,
    decoder: (json.decoder ?? null) as Component | null,
    added_tokens: mergeAddedTokens((json.added_tokens ?? []) as AddedToken[], config),
  };
  return { definition: { ...definition, post_processor: postProcessor(definition, config) }, config };
}

export function readTokenizerConfig(source: TokenizerSource): TokenizerConfig {
  if (typeof source !== 'string') return source.config;
  const file = path.join(source, 'tokenizer_config.json');
  return existsSync(file) ? readJsonObject(file) : {};
}

function readJsonObject(file: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    const reason = (cause instanceof Error ? cause.message : String(cause)).split('\n')[0];
    throw new SluiceError('checkpoint_invalid', `${file}: is not JSON: ${reason}`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new SluiceError('checkpoint_invalid', `${file}: holds no JSON object`);
  return value as Record<string, unknown>;
}

/** A token of tokenizer_config.json: its text, or an object that holds it. */
export function tokenText(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (typeof value === 'object' && value !== null && 'content' in value && typeof value.content === 'string')
    return value.content;
  return undefined;
}

const namedTokens = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
];

/** The special tokens by their names, as chat templates know them: `bos_token`, `eos_token`, ... */
export function specialTokens(config: TokenizerConfig): Readonly<Record<string, string>> {
  const entries = namedTokens.flatMap((name) => {
    const text = tokenText(config[name]);
    return text === undefined ? [] : [[name, text] as const];
  });
  return Object.fromEntries(entries);
}

function mergeAddedTokens(fromFile: readonly AddedToken[], config: TokenizerConfig): AddedToken[] {
  const byId = new Map(fromFile.map((token) => [token.id, token]));
  const extra = (config.added_tokens_decoder ?? {}) as Readonly<Record<string, AddedToken>>;
  for (const [id, token] of Object.entries(extra)) {
    const known = byId.get(Number(id));
    if (known === undefined) byId.set(Number(id), { ...token, id: Number(id) });
    else if (token.special === true) byId.set(known.id, { ...known, special: true });
  }
  const additional = Array.isArray(config.additional_special_tokens) ? config.additional_special_tokens : [];
  const special = new Set([...Object.values(specialTokens(config)), ...additional.map(tokenText)]);
  return [...byId.values()].map((token) =>
    special.has(token.content) ? { ...token, special: true } : token,
  );
}

const gpt2Pattern = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/**
 * Two departures of the library: its own patterns for digits and for GPT-2's words use JavaScript's \d (ASCII only) and
 * \s (has U+FEFF, lacks U+0085). Patterns given as text are translated rightly, so these are given as text.
 */
function correctPreTokenizer(component: Component | null): Component | null {
  if (component === null) return null;
  const split = (regex: string) => ({
    type: 'Split',
    pattern: { Regex: regex },
    behavior: 'Isolated',
    invert: false,
  });
  switch (component.type) {
    case 'Sequence':
      return {
        ...component,
        pretokenizers: (component.pretokenizers as Component[]).map(correctPreTokenizer),
      };
    case 'Digits':
      return split(component.individual_digits === true ? String.raw`\p{N}` : String.raw`\p{N}+`);
    case 'ByteLevel': {
      if (component.use_regex === false) return component;
      const words = [split(gpt2Pattern), { ...component, add_prefix_space: false, use_regex: false }];
      // The space goes before the words are cut; this replacement is the library's own component.
      const prefix = { type: 'Replace', pattern: { Regex: String.raw`\A([^ ])` }, content: ' $1' };
      return {
        type: 'Sequence',
        pretokenizers: component.add_prefix_space === true ? [prefix, ...words] : words,
      };
    }
    default:
      return component;
  }
}

/** transformers' classes that build their own post-processor from `add_bos_token` and `add_eos_token`. */
const ownPostProcessor = /^(Code)?(Llama|Gemma)Tokenizer(Fast)?$/;

function postProcessor(definition: TokenizerDefinition, config: TokenizerConfig): Component | null {
  if (!ownPostProcessor.test(String(config.tokenizer_class))) return definition.post_processor;
  const { bos_token: bos, eos_token: eos } = specialTokens(config);
  const before = config.add_bos_token !== false && bos !== undefined ? [bos] : [];
  const after = config.add_eos_token === true && eos !== undefined ? [eos] : [];
  const item = (content: string) => ({ SpecialToken: { id: content, type_id: 0 } });
  const single = [...before.map(item), { Sequence: { id: 'A', type_id: 0 } }, ...after.map(item)];
  return { type: 'TemplateProcessing', single, pair: single, special_tokens: {} };
}
