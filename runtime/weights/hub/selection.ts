/**
 * Which of a repository's files are downloaded. Names enter, names leave; the text of an index can be asked for.
 * Must not know networks or caches.
 */
import { SluiceError } from '../../errors.ts';
import { ggufPartNames } from '../gguf/parts.ts';
import { isPlainPath } from './client.ts';

/** Throws SluiceError when the repository has not what is wanted. */
export type FileSelection = (
  files: readonly string[],
  readText: (file: string) => Promise<string>,
) => Promise<readonly string[]>;

const companions =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|quantize_config|quant_config)\.json$|^chat_template\.jinja$|^additional_chat_templates\/[^/]+\.jinja$/;

const indexFile = 'model.safetensors.index.json';

/** Configuration and tokenizer, for weights that come from elsewhere. */
export const configurationFiles: FileSelection = async (files) => {
  requireFile(files, 'config.json');
  return files.filter((file) => companions.test(file));
};

/** What the runtime reads of a checkpoint: configuration, tokenizer, and the weights, which an index may name. */
export const checkpointFiles: FileSelection = async (files, readText) => {
  const wanted = files.filter((file) => companions.test(file));
  const weights = await weightsOf(files, readText);
  if (!weights.every((file) => file.endsWith('.gguf'))) requireFile(files, 'config.json');
  return [...wanted, ...weights];
};

/** One weight file by its path; all parts of a split GGUF. */
export const weightFile =
  (file: string): FileSelection =>
  async (files) => {
    const parts = ggufPartNames(file);
    for (const part of parts) requireFile(files, part);
    return parts;
  };

function requireFile(files: readonly string[], file: string): void {
  if (files.includes(file)) return;
  const alike = files.filter((each) => /\.(gguf|safetensors)$/.test(each) && /\./.test(file)).slice(0, 5);
  throw new SluiceError(
    'checkpoint_invalid',
    `the repository has no ${file}${alike.length > 0 ? `; it has ${alike.join(', ')}` : ''}`,
  );
}

async function weightsOf(
  files: readonly string[],
  readText: (file: string) => Promise<string>,
): Promise<readonly string[]> {
  if (files.includes('model.safetensors')) return ['model.safetensors'];
  if (files.includes(indexFile)) return [indexFile, ...shardsOf(await readText(indexFile))];
  const ggufs = files.filter((file) => /^[^/]+\.gguf$/.test(file));
  const first = ggufs[0];
  if (first === undefined) {
    throw new SluiceError(
      'checkpoint_unsupported',
      'the repository holds neither model.safetensors, its index of shards, nor a GGUF file',
    );
  }
  const parts = ggufPartNames(first);
  if (ggufs.every((file) => parts.includes(file))) return parts;
  throw new SluiceError(
    'checkpoint_unsupported',
    `the repository holds several GGUF files (${ggufs.slice(0, 5).join(', ')}): name one, for example --weight-path org/name/${first}`,
  );
}

function shardsOf(text: string): string[] {
  try {
    const index = JSON.parse(text) as { weight_map: Record<string, string> };
    return [...new Set(Object.values(index.weight_map))].filter(isPlainPath);
  } catch (cause) {
    throw new SluiceError('checkpoint_invalid', `${indexFile} of the repository is no index of shards`, {
      cause,
    });
  }
}
