/**
 * Tokenising off the event loop: short texts are done at once where they are, long ones by worker threads, so that one
 * long prompt delays nobody else. Enters: text or chats. Leaves: ids, in the tokenizer's own words and errors.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { SluiceError } from '../errors.ts';
import {
  type ChatMessage,
  type ChatTemplate,
  loadChatTemplate,
  type RenderOptions,
} from './chat-template.ts';
import type { TokenizerSource } from './definition.ts';
import { loadTokenizer } from './hugging-face.ts';
import type { PoolAnswer, PoolJob } from './pool-worker.ts';
import { withTimeLimit } from './time-limit.ts';
import type { Tokenizer } from './tokenizer.ts';

/** About 15 ms of work; sending it to a thread costs less than that. */
const shortCharacters = 8192;
const workerCount = 2;

interface Pending {
  resolve(ids: number[][]): void;
  reject(error: unknown): void;
}

interface PoolWorker {
  readonly thread: Worker;
  readonly pending: Map<number, Pending>;
}

export class TokenizerPool {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate | undefined;
  readonly #source: TokenizerSource;
  readonly #workers: PoolWorker[] = [];
  #nextJob = 0;

  /** Reads a checkpoint's tokenizer and template; throws SluiceError `checkpoint_invalid`. */
  constructor(source: TokenizerSource) {
    this.#source = source;
    this.tokenizer = loadTokenizer(source);
    this.template = loadChatTemplate(source);
  }

  async encode(text: string, options: { addSpecialTokens: boolean }): Promise<number[]> {
    return (await this.encodeAll([text], options))[0]!;
  }

  async encodeAll(texts: readonly string[], options: { addSpecialTokens: boolean }): Promise<number[][]> {
    const length = texts.reduce((sum, text) => sum + text.length, 0);
    if (length <= shortCharacters)
      return withTimeLimit(length, () => texts.map((text) => this.tokenizer.encode(text, options)));
    return this.#send({ kind: 'texts', texts, ...options });
  }

  /** The ids of a chat in the checkpoint's template. Throws SluiceError `request_invalid` when it has none. */
  async encodeChat(
    messages: readonly ChatMessage[],
    options: RenderOptions & { addSpecialTokens: boolean },
  ): Promise<number[]> {
    const { template } = this;
    if (template === undefined)
      throw new SluiceError(
        'request_invalid',
        'messages: this model has no chat template; use /v1/completions with a prompt',
        { param: 'messages' },
      );
    const length = messages.reduce((sum, message) => sum + message.content.length, 0);
    if (length <= shortCharacters)
      return withTimeLimit(length, () => this.tokenizer.encode(template.render(messages, options), options));
    return (await this.#send({ kind: 'chat', messages, options }))[0]!;
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.splice(0).map(({ thread }) => thread.terminate()));
  }

  #send(job: PoolJob): Promise<number[][]> {
    const worker = this.#leastBusy();
    const id = this.#nextJob++;
    return new Promise((resolve, reject) => {
      worker.pending.set(id, { resolve, reject });
      worker.thread.postMessage({ id, job });
    });
  }

  #leastBusy(): PoolWorker {
    const idlest = this.#workers.toSorted((a, b) => a.pending.size - b.pending.size)[0];
    if (idlest !== undefined && (idlest.pending.size === 0 || this.#workers.length >= workerCount))
      return idlest;
    return this.#start();
  }

  #start(): PoolWorker {
    // The extension differs between source and dist.
    const file = path.join(import.meta.dirname, `pool-worker${path.extname(import.meta.filename)}`);
    const thread = new Worker(file, { workerData: this.#source });
    const worker: PoolWorker = { thread, pending: new Map() };
    thread.unref();
    thread.on('message', ({ id, answer }: { id: number; answer: PoolAnswer }) => {
      const { resolve, reject } = worker.pending.get(id)!;
      worker.pending.delete(id);
      if ('ids' in answer) resolve(answer.ids);
      else reject(new SluiceError(answer.code, answer.message, { param: answer.param }));
    });
    const fail = (cause: unknown) => {
      const index = this.#workers.indexOf(worker);
      if (index >= 0) this.#workers.splice(index, 1);
      for (const { reject } of worker.pending.values())
        reject(new SluiceError('unavailable', 'a tokenizer thread ended', { cause }));
      worker.pending.clear();
    };
    thread.on('error', fail);
    thread.on('exit', fail);
    this.#workers.push(worker);
    return worker;
  }
}
