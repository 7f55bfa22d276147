/** A thread of the tokenizer pool: jobs in, ids or a user's error out. */
import { parentPort, workerData } from 'node:worker_threads';
import { type ErrorCode, SluiceError } from '../errors.ts';
import { type ChatMessage, loadChatTemplate, type RenderOptions } from './chat-template.ts';
import type { TokenizerSource } from './definition.ts';
import { loadTokenizer } from './hugging-face.ts';
import { withTimeLimit } from './time-limit.ts';

export type PoolJob =
  | { readonly kind: 'texts'; readonly texts: readonly string[]; readonly addSpecialTokens: boolean }
  | {
      readonly kind: 'chat';
      readonly messages: readonly ChatMessage[];
      readonly options: RenderOptions & { readonly addSpecialTokens: boolean };
    };

export type PoolAnswer =
  | { readonly ids: number[][] }
  | { readonly code: ErrorCode; readonly message: string; readonly param: string };

const source = workerData as TokenizerSource;
const tokenizer = loadTokenizer(source);
const template = loadChatTemplate(source);

function run(job: PoolJob): number[][] {
  if (job.kind === 'texts') {
    const length = job.texts.reduce((sum, text) => sum + text.length, 0);
    return withTimeLimit(length, () => job.texts.map((text) => tokenizer.encode(text, job)));
  }
  const { messages, options } = job;
  const length = messages.reduce((sum, message) => sum + message.content.length, 0);
  // Jobs of chats come only from a pool that has a template.
  return withTimeLimit(length, () => [tokenizer.encode(template!.render(messages, options), options)]);
}

parentPort!.on('message', ({ id, job }: { id: number; job: PoolJob }) => {
  let answer: PoolAnswer;
  try {
    answer = { ids: run(job) };
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    answer = { code: error.code, message: error.message, param: error.param ?? 'prompt' };
  }
  parentPort!.postMessage({ id, answer });
});
