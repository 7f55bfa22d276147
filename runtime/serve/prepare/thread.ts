/** A thread that prepares long bodies: jobs in, what the routes go on with or a user's error out. */
import { parentPort, workerData } from 'node:worker_threads';
import { type ErrorCode, SluiceError } from '../../errors.ts';
import { giveWay } from '../../thread-priority.ts';
import type { TokenizerSource } from '../../tokenizer/definition.ts';
import { loadWords } from '../../tokenizer/words.ts';
import type { ModelFacts } from './model-facts.ts';
import { type BodyKind, type Prepared, prepare } from './prepare.ts';

export interface PrepareJob {
  readonly kind: BodyKind;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly model: ModelFacts;
}

export type PrepareAnswer =
  | { readonly prepared: Prepared }
  | { readonly code: ErrorCode; readonly message: string; readonly param: string | null }
  /** A bug of ours. */
  | { readonly stack: string };

giveWay('reading');
const words = loadWords(workerData as TokenizerSource);

function run({ kind, bytes, model }: PrepareJob): PrepareAnswer {
  try {
    return { prepared: prepare(kind, bytes, model, words) };
  } catch (error) {
    if (error instanceof SluiceError) return { code: error.code, message: error.message, param: error.param };
    return { stack: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
}

/** What goes to the other thread without a copy. */
function transfers(answer: PrepareAnswer): ArrayBuffer[] {
  if (!('prepared' in answer)) return [];
  const { value } = answer.prepared;
  if (value instanceof Uint8Array) return [value.buffer];
  const requests = 'requests' in value ? value.requests : [value.request];
  return requests.map(({ prompt }) => (prompt as Int32Array<ArrayBuffer>).buffer);
}

parentPort!.on('message', (job: PrepareJob) => {
  const answer = run(job);
  parentPort!.postMessage(answer, transfers(answer));
});
