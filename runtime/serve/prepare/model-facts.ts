/** What checking a request needs to know of the model: plain data, so that other threads can be sent it. */
import { SluiceError } from '../../errors.ts';
import type { SamplingParameters } from '../../sampling/parameters.ts';
import { clip } from '../request-schema.ts';

export interface ModelFacts {
  /** Names that clients may ask for; the first is the one in answers. */
  readonly servedNames: readonly string[];
  /** Longest sequence in tokens, prompt and answer together. */
  readonly maxLength: number;
  /** The most bytes of text that one token can stand for; undefined where there is no such bound. */
  readonly longestTokenBytes: number | undefined;
  /** Ids below this are the model's. */
  readonly vocabulary: number;
  /** What generation_config.json says of sampling; used where a request is silent. */
  readonly samplingDefaults: Partial<SamplingParameters>;
}

/** Throws SluiceError `model_not_found`. */
export function checkModel({ servedNames }: Pick<ModelFacts, 'servedNames'>, name: string): void {
  if (servedNames.includes(name)) return;
  throw new SluiceError(
    'model_not_found',
    `The model \`${clip(name)}\` does not exist; this server has ${servedNames.map((each) => `\`${each}\``).join(', ')}`,
    { param: 'model' },
  );
}
