/**
 * What the server needs of a loaded model: the seam between HTTP and the loop that generates. runtime/cli/ makes one from
 * the LLM; tests may script one.
 */
import type { GenerationEvent, GenerationRequest } from '../generation.ts';
import type { LoadSnapshot } from '../metrics.ts';
import type { SamplingParameters } from '../sampling/parameters.ts';
import type { Words } from '../tokenizer/words.ts';
import type { Intake } from './prepare/intake.ts';

export interface Backend {
  readonly words: Words;
  /** Reads requests for this model. */
  readonly intake: Intake;
  /** Longest sequence in tokens, prompt and answer together. */
  readonly maxLength: number;
  /** The most bytes of text that one token can stand for; undefined where there is no such bound. */
  readonly longestTokenBytes: number | undefined;
  /** Ids below this are the model's. */
  readonly vocabulary: number;
  /** What generation_config.json says of sampling; used where a request is silent. */
  readonly samplingDefaults: Partial<SamplingParameters>;
  /** For /version: what runs. */
  readonly details: Readonly<Record<string, unknown>>;
  /** Ends at once, with `finish` events of reason abort or by throwing, when the signal fires. */
  generate(request: GenerationRequest, signal: AbortSignal): AsyncIterable<GenerationEvent>;
  load(): LoadSnapshot;
  /** The reason why the engine can never answer again; undefined while it lives. */
  failure(): Error | undefined;
  /** How long an engine with work has given no sign of life. */
  silentMs(): number;
  close(): Promise<void>;
}

export interface LoadingProgress {
  /** `download`, `weights`, `compile`, ... */
  readonly phase: string;
  readonly done: number;
  readonly total: number;
  /** Of a download, whose `done` and `total` are bytes. */
  readonly bytesPerSecond?: number;
  readonly secondsLeft?: number;
}
