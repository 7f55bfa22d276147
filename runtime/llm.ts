/**
 * A loaded model: requests in, events out. The engine and its loop run on a thread of their own; text (decoding, stop
 * strings) is made on the caller's. Must not know HTTP.
 */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { EngineOptions } from './engine/create-engine.ts';
import type { EngineInfo, LoadProgress } from './engine/engine.ts';
import { SluiceError } from './errors.ts';
import type { FinishReason, GenerationEvent, GenerationRequest, TokenLogprob } from './generation.ts';
import { rankable } from './llm/best-of.ts';
import { checkRequest } from './llm/check-request.ts';
import { GenerationStream } from './llm/generation-stream.ts';
import type { LoopOptions } from './llm/loop.ts';
import type { EngineReady, FromEngine, LoopReport, ThreadData, ToEngine } from './llm/messages.ts';
import { type LoopStatistics, monotonicMs, SharedStatistics } from './llm/statistics.ts';
import { defaultSampling, type SamplingParameters } from './sampling/parameters.ts';
import type { Tokenizer } from './tokenizer/tokenizer.ts';

/** A step that takes longer than this when the engine is closed is not waited for. */
const closeLimitMs = 5000;

/** What the loop allocates in a step lives no longer: more room would only be filled with garbage. */
const maxYoungGenerationSizeMb = 12;

/** Plain data: it is sent to the engine's thread. */
export type LlmOptions = Omit<EngineOptions, 'onProgress' | 'onWarning'> & Partial<LoopOptions>;

export const defaultLoopOptions: LoopOptions = {
  prefixCaching: true,
  inFlightBatching: true,
  chunkedPrefill: true,
  prefixAware: true,
  maxNumSteps: 1,
  maxQueueSize: Number.POSITIVE_INFINITY,
};

export interface LoadHooks {
  onProgress?(progress: LoadProgress): void;
  onWarning?(message: string): void;
  /** The engine died: whoever waits has got the error already. */
  onFailure?(error: SluiceError): void;
  /** Ends the loading. */
  signal?: AbortSignal;
}

interface Completion {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly logprobs: readonly TokenLogprob[];
  readonly reason: FinishReason;
  readonly stopReason: string | number | null;
}

export interface CompletionResult {
  readonly cachedTokens: number;
  readonly promptLogprobs: readonly (TokenLogprob | null)[];
  readonly choices: readonly Completion[];
}

export class LLM {
  readonly info: EngineInfo;
  /** Ids that end a sequence. */
  readonly eosTokenIds: readonly number[];
  readonly tokenizer: Tokenizer;
  readonly #worker: Worker;
  readonly #statistics: SharedStatistics;
  readonly #streams = new Map<number, GenerationStream>();
  readonly #onFailure: LoadHooks['onFailure'];
  readonly #exited: Promise<void>;
  #nextHandle = 0;
  #state: 'open' | 'draining' | 'closed' = 'open';
  #failure: SluiceError | undefined;
  #drained = Promise.withResolvers<void>();
  /** When the engine was last given work after having none. */
  #busySinceMs = 0;

  /** Loads a model. Throws SluiceError: what is wrong with the checkpoint, the devices or the memory. */
  static async load(tokenizer: Tokenizer, options: LlmOptions, hooks: LoadHooks = {}): Promise<LLM> {
    // The extension is .ts in the checkout and .js in the package.
    const thread = new URL(`./llm-thread${path.extname(import.meta.filename)}`, import.meta.url);
    return LLM.start(thread, tokenizer, options, hooks);
  }

  /** Starts the engine's thread from any entry that ends in `runEngineThread`. */
  static async start<Options extends Partial<LoopOptions>>(
    thread: URL,
    tokenizer: Tokenizer,
    options: Options,
    hooks: LoadHooks = {},
  ): Promise<LLM> {
    hooks.signal?.throwIfAborted();
    const statistics = new SharedStatistics();
    const loop = { ...defaultLoopOptions, ...pickLoopOptions(options) };
    const workerData: ThreadData<Options> = { options, loop, statistics: statistics.memory };
    const resourceLimits = { maxYoungGenerationSizeMb };
    const worker = new Worker(thread, { workerData, name: 'sluice-engine', resourceLimits });
    const ready = await loaded(worker, hooks);
    return new LLM(worker, ready, tokenizer, statistics, hooks.onFailure);
  }

  private constructor(
    worker: Worker,
    ready: EngineReady,
    tokenizer: Tokenizer,
    statistics: SharedStatistics,
    onFailure: LoadHooks['onFailure'],
  ) {
    this.info = ready.info;
    this.eosTokenIds = ready.eosTokenIds;
    this.tokenizer = tokenizer;
    this.#worker = worker;
    this.#statistics = statistics;
    this.#onFailure = onFailure;
    this.#exited = new Promise((resolve) => worker.once('exit', () => resolve()));
    worker.on('message', (message: FromEngine) => this.#receive(message));
    worker.on('error', (error) => this.#fail(`the engine's thread died: ${error.message}`, error));
    worker.on('exit', (code) => this.#fail(`the engine's thread ended with code ${code}`));
  }

  /**
   * Runs a request; the events come at the reader's pace. Returning early or firing the signal frees its sequences at
   * once; after the signal every choice that still ran finishes with `abort`. Errors come from the iterator.
   */
  generate(request: GenerationRequest, signal?: AbortSignal): AsyncIterableIterator<GenerationEvent> {
    const handle = this.#nextHandle++;
    const abort = () => stream.abort();
    const stream = new GenerationStream(request, this.tokenizer, {
      stop: (choice) => this.#send({ type: 'abort', handle, ...(choice === undefined ? {} : { choice }) }),
      ended: () => {
        signal?.removeEventListener('abort', abort);
        this.#leave(handle);
      },
    });
    const refusal = this.#refusal(request);
    if (refusal !== undefined) {
      stream.fail(refusal);
      return stream;
    }
    const submittedAtMs = monotonicMs();
    if (this.#streams.size === 0) this.#busySinceMs = submittedAtMs;
    this.#streams.set(handle, stream);
    const { sampling, priority = 0, cacheSalt = '' } = request;
    this.#send({
      type: 'submit',
      request: {
        handle,
        prompt: Int32Array.from(request.prompt),
        sampling: rankable(sampling),
        seed: sampling.seed ?? Math.floor(Math.random() * Number.MAX_SAFE_INTEGER),
        submittedAtMs,
        priority,
        cacheSalt,
      },
    });
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted) stream.abort();
    return stream;
  }

  /** The same, whole. */
  async complete(
    prompt: ArrayLike<number>,
    sampling: Partial<SamplingParameters> = {},
    request: Partial<Omit<GenerationRequest, 'prompt' | 'sampling'>> = {},
  ): Promise<CompletionResult> {
    const full = {
      id: `complete-${this.#nextHandle}`,
      stop: [],
      ...request,
      prompt,
      sampling: { ...defaultSampling, ...sampling },
    };
    return collect(this.generate(full), full.sampling.n);
  }

  statistics(): LoopStatistics {
    return this.#statistics.read();
  }

  /** Why the engine can never answer again; undefined while it can. */
  get failure(): SluiceError | undefined {
    return this.#failure;
  }

  /** How long an engine that has work has given no sign of life; a step in progress counts. 0 without work. */
  silentMs(): number {
    if (this.#streams.size === 0) return 0;
    return Math.max(0, monotonicMs() - Math.max(this.#busySinceMs, this.#statistics.read().aliveAtMs));
  }

  /** Refuses new requests; resolves when those in flight have ended. */
  async drain(): Promise<void> {
    if (this.#state === 'open') this.#state = 'draining';
    if (this.#streams.size > 0) await this.#drained.promise;
  }

  /** Ends what is in flight with an error, and the engine. */
  async close(): Promise<void> {
    if (this.#state === 'closed') return this.#exited;
    this.#state = 'closed';
    this.#failStreams(new SluiceError('unavailable', 'the engine is closed'));
    this.#send({ type: 'close' });
    await Promise.race([this.#exited, sleep(closeLimitMs, undefined, { ref: false })]);
    await this.#worker.terminate();
  }

  #refusal(request: GenerationRequest): Error | undefined {
    if (this.#failure !== undefined) return this.#failure;
    if (this.#state !== 'open') return new SluiceError('unavailable', 'the engine takes no more requests');
    try {
      checkRequest(request, this.info.vocabulary);
    } catch (error) {
      return error as Error;
    }
    return undefined;
  }

  #receive(message: FromEngine): void {
    if (message.type === 'report') this.#deliver(message);
    if (message.type === 'failed') this.#fail(message.message, message.stack);
  }

  #deliver({ prompts, tokens, failures }: LoopReport): void {
    // A stream leaves the map with its last token.
    const told = new Set([...prompts, ...tokens].map(({ handle }) => this.#streams.get(handle)));
    for (const prompt of prompts) this.#streams.get(prompt.handle)?.prompt(prompt);
    for (const token of tokens) this.#streams.get(token.handle)?.token(token);
    for (const stream of told) stream?.deliver();
    for (const { handle, code, message, param } of failures) {
      const options = param === null ? {} : { param };
      this.#streams.get(handle)?.fail(new SluiceError(code, message, options));
    }
  }

  #fail(message: string, cause?: unknown): void {
    if (this.#state === 'closed' || this.#failure !== undefined) return;
    this.#failure = new SluiceError('engine_failed', message, { cause });
    this.#failStreams(this.#failure);
    this.#onFailure?.(this.#failure);
  }

  #failStreams(error: SluiceError): void {
    for (const stream of [...this.#streams.values()]) stream.fail(error);
  }

  #leave(handle: number): void {
    if (!this.#streams.delete(handle) || this.#streams.size > 0) return;
    this.#drained.resolve();
    this.#drained = Promise.withResolvers();
  }

  #send(message: ToEngine): void {
    this.#worker.postMessage(message);
  }
}

/** Resolves when the thread says it is ready; rejects with what it says instead, or with its death. */
function loaded(worker: Worker, hooks: LoadHooks): Promise<EngineReady> {
  const { promise, resolve, reject } = Promise.withResolvers<EngineReady>();
  const abort = () => {
    reject(hooks.signal?.reason);
  };
  const receive = (message: FromEngine) => {
    if (message.type === 'progress') hooks.onProgress?.(message.progress);
    if (message.type === 'warning') hooks.onWarning?.(message.message);
    if (message.type === 'ready') resolve(message);
    if (message.type === 'failed')
      reject(new SluiceError(message.code, message.message, { cause: message.stack }));
  };
  const died = (cause: unknown) =>
    reject(new SluiceError('engine_failed', `the engine's thread died while loading: ${cause}`, { cause }));
  worker.on('message', receive).on('error', died).on('exit', died);
  promise.catch(() => worker.terminate());
  hooks.signal?.addEventListener('abort', abort, { once: true });
  return promise.finally(() => {
    worker.off('message', receive).off('error', died).off('exit', died);
    hooks.signal?.removeEventListener('abort', abort);
  });
}

function pickLoopOptions(options: Partial<LoopOptions>): Partial<LoopOptions> {
  const keys = Object.keys(defaultLoopOptions) as (keyof LoopOptions)[];
  return Object.fromEntries(
    keys.filter((key) => options[key] !== undefined).map((key) => [key, options[key]]),
  );
}

async function collect(events: AsyncIterable<GenerationEvent>, n: number): Promise<CompletionResult> {
  const choices = Array.from({ length: n }, () => ({
    text: '',
    tokenIds: [] as number[],
    logprobs: [] as TokenLogprob[],
    reason: 'abort' as FinishReason,
    stopReason: null as string | number | null,
  }));
  let cachedTokens = 0;
  let promptLogprobs: readonly (TokenLogprob | null)[] = [];
  for await (const event of events) {
    if (event.type === 'prompt') {
      cachedTokens = event.cachedTokens;
      promptLogprobs = event.promptLogprobs ?? [];
      continue;
    }
    const choice = choices[event.choice]!;
    if (event.type === 'delta') {
      choice.text += event.text;
      choice.tokenIds.push(...event.tokenIds);
      choice.logprobs.push(...(event.logprobs ?? []));
    } else {
      choice.reason = event.reason;
      choice.stopReason = event.stopReason;
    }
  }
  return { cachedTokens, promptLogprobs, choices };
}
