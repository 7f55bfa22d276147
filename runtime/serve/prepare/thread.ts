/** A thread that prepares long bodies: jobs in, what the routes go on with or a user's error out. */
import { readlinkSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { type ErrorCode, SluiceError } from '../../errors.ts';
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

/** The event loop and the engine's threads come first where there are too few cores for all. */
const niceness = 5;

function yieldToOthers(): void {
  // Linux gives each thread a priority of its own; elsewhere there is no such file.
  try {
    os.setPriority(Number(path.basename(readlinkSync('/proc/thread-self'))), niceness);
  } catch {
    // A container may forbid it, and then all threads are equal.
  }
}

const words = loadWords(workerData as TokenizerSource);
yieldToOthers();

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
