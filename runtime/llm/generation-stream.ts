/**
 * One request on the caller's side: what the loop reports becomes events that the caller takes at its own pace. Events
 * not taken yet are merged, so a slow reader holds up nobody and holds no more than its own text.
 */
import type { GenerationEvent, GenerationRequest } from '../generation.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { BestOf } from './best-of.ts';
import { ChoiceText } from './choice-text.ts';
import type { PromptReport, TokenReport } from './messages.ts';

/** What a stream asks of whoever made it. */
export interface StreamOwner {
  /** The loop need not go on with a choice, or with all of them. */
  stop(choice?: number): void;
  /** No more reports are wanted. */
  ended(): void;
}

export class GenerationStream implements AsyncIterableIterator<GenerationEvent> {
  readonly request: GenerationRequest;
  readonly #owner: StreamOwner;
  readonly #choices: ChoiceText[];
  readonly #bestOf: BestOf | undefined;
  readonly #events: GenerationEvent[] = [];
  readonly #readers: PromiseWithResolvers<IteratorResult<GenerationEvent, undefined>>[] = [];
  #state: 'open' | 'ended' = 'open';
  #error: Error | undefined;

  constructor(request: GenerationRequest, tokenizer: Tokenizer, owner: StreamOwner) {
    const { sampling, skipSpecialTokens = true } = request;
    this.request = request;
    this.#owner = owner;
    this.#choices = Array.from(
      { length: Math.max(sampling.n, sampling.bestOf) },
      (_, choice) =>
        new ChoiceText(choice, request, tokenizer.stream({ skipSpecialTokens, continues: true })),
    );
    this.#bestOf = sampling.bestOf > sampling.n ? new BestOf(request) : undefined;
  }

  prompt({ cachedTokens, queuedMs, promptLogprobs }: PromptReport): void {
    const event = { type: 'prompt' as const, cachedTokens, queuedMs };
    this.#emit(promptLogprobs === undefined ? event : { ...event, promptLogprobs });
  }

  /** As `prompt`: what is reported together reaches the reader when `deliver` is called, tokens as one event. */
  token(report: TokenReport): void {
    const choice = this.#choices[report.choice]!;
    if (this.#state === 'ended' || choice.ended) return;
    for (const event of choice.accept(report)) this.#emit(event);
    // A stop string is found on this side only: the loop must be told.
    if (choice.ended && report.ending === undefined) this.#owner.stop(report.choice);
    this.#settle();
  }

  /** Ends the answer where it is: every choice that runs finishes with `abort`. */
  abort(): void {
    if (this.#state === 'ended') return;
    this.#owner.stop();
    for (const choice of this.#choices) for (const event of choice.abort()) this.#emit(event);
    this.#settle();
    this.deliver();
  }

  /** The reader gets the error after the events before it. */
  fail(error: Error): void {
    if (this.#state === 'ended') return;
    this.#error = error;
    this.#close();
    this.deliver();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<GenerationEvent, undefined>> {
    const event = this.#events.shift();
    if (event !== undefined) return { done: false, value: event };
    if (this.#state === 'open') {
      const reader = Promise.withResolvers<IteratorResult<GenerationEvent, undefined>>();
      this.#readers.push(reader);
      return reader.promise;
    }
    const error = this.#error;
    this.#error = undefined;
    if (error !== undefined) throw error;
    return { done: true, value: undefined };
  }

  /** The reader wants no more: the sequences are freed at once. */
  async return(): Promise<IteratorResult<GenerationEvent, undefined>> {
    if (this.#state === 'open') {
      this.#owner.stop();
      this.#close();
    }
    this.#events.length = 0;
    this.deliver();
    return { done: true, value: undefined };
  }

  /** Gives the readers that wait what there is. */
  deliver(): void {
    while (this.#readers.length > 0 && (this.#events.length > 0 || this.#state === 'ended')) {
      const reader = this.#readers.shift()!;
      this.next().then(reader.resolve, reader.reject);
    }
  }

  #emit(event: GenerationEvent): void {
    for (const each of this.#bestOf?.accept(event) ?? [event]) {
      const last = this.#events.at(-1);
      const merged = last === undefined ? undefined : merge(last, each);
      if (merged === undefined) this.#events.push(each);
      else this.#events[this.#events.length - 1] = merged;
    }
  }

  #settle(): void {
    if (this.#choices.every((choice) => choice.ended)) this.#close();
  }

  #close(): void {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    this.#owner.ended();
  }
}

/** Two deltas of a choice as one. */
function merge(first: GenerationEvent, second: GenerationEvent): GenerationEvent | undefined {
  if (first.type !== 'delta' || second.type !== 'delta' || first.choice !== second.choice) return undefined;
  const merged = {
    type: 'delta' as const,
    choice: first.choice,
    text: first.text + second.text,
    tokenIds: [...first.tokenIds, ...second.tokenIds],
  };
  if (first.logprobs === undefined || second.logprobs === undefined) return merged;
  return { ...merged, logprobs: [...first.logprobs, ...second.logprobs] };
}
