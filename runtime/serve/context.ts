/** What every route of one server shares. */
import type { RuntimeConfig } from '../config.ts';
import { SluiceError } from '../errors.ts';
import type { Metrics } from '../metrics.ts';
import type { Lifecycle } from './lifecycle.ts';

export interface ServerContext {
  readonly config: RuntimeConfig;
  /** Names that clients may ask for; the first is the one in answers. */
  readonly servedNames: readonly string[];
  readonly modelPath: string;
  readonly version: string;
  readonly lifecycle: Lifecycle;
  readonly metrics: Metrics;
  /** Unix seconds; `created` of the models. */
  readonly startedAt: number;
}

/** Throws SluiceError `model_not_found`. */
export function checkModel({ servedNames }: ServerContext, name: string): void {
  if (servedNames.includes(name)) return;
  throw new SluiceError(
    'model_not_found',
    `The model \`${name}\` does not exist; this server has ${servedNames.map((each) => `\`${each}\``).join(', ')}`,
    { param: 'model' },
  );
}
