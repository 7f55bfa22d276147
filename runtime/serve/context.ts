/** What every route of one server shares. */
import type { RuntimeConfig } from '../config.ts';
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
