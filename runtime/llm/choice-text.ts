/**
 * One choice on the caller's side: ids become text, and text is watched for stop strings. Enters: the loop's reports;
 * leaves: generation events. Must not know threads or other choices.
 */
import type { GenerationEvent, GenerationRequest, TokenLogprob } from '../generation.ts';
import type { Ending } from '../sampling/choice-state.ts';
import type { TokenStream } from '../tokenizer/tokenizer.ts';
import type { TokenReport } from './messages.ts';
import { StopStrings } from './stop-strings.ts';

export class ChoiceText {
  readonly choice: number;
  #ended = false;
  #tokens = 0;
  readonly #stream: TokenStream;
  readonly #stops: StopStrings;
  readonly #minTokens: number;

  constructor(choice: number, request: GenerationRequest, stream: TokenStream) {
    this.choice = choice;
    this.#stream = stream;
    this.#stops = new StopStrings(request.stop);
    this.#minTokens = request.sampling.minTokens;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** The events of one report. Nothing may be accepted once the choice has ended. */
  accept({ id, logprob, ending }: TokenReport): GenerationEvent[] {
    if (id === undefined) return this.#end([], ending!, '');
    this.#tokens++;
    // The token that stopped the choice is reported and counted; its text is no part of the answer.
    const piece = ending?.reason === 'stop' ? '' : this.#stream.push(id);
    const { text, stop } = this.#watch(piece);
    if (stop !== null) {
      this.#ended = true;
      return [this.#delta(text, id, logprob), this.#finish('stop', stop)];
    }
    if (ending === undefined) return [this.#delta(text, id, logprob)];
    return this.#end([{ id, logprob }], ending, text);
  }

  abort(): GenerationEvent[] {
    if (this.#ended) return [];
    this.#ended = true;
    return [this.#finish('abort', null)];
  }

  /** Nothing is waited for any more: what the decoder and the stop strings hold back comes out. */
  #end(
    last: { id: number; logprob: TokenLogprob | undefined }[],
    ending: Ending,
    before: string,
  ): GenerationEvent[] {
    this.#ended = true;
    const { text, stop } = this.#watch(this.#stream.flush());
    const rest = before + text + (stop === null ? this.#stops.flush() : '');
    const deltas = last.map(({ id, logprob }) => this.#delta(rest, id, logprob));
    const finish =
      stop === null ? this.#finish(ending.reason, ending.stopReason) : this.#finish('stop', stop);
    return [...deltas, finish];
  }

  /** Text of the first `minTokens` tokens cannot stop the choice. */
  #watch(piece: string): { text: string; stop: string | null } {
    return this.#tokens <= this.#minTokens ? { text: piece, stop: null } : this.#stops.push(piece);
  }

  #delta(text: string, id: number, logprob: TokenLogprob | undefined): GenerationEvent {
    const { choice } = this;
    const delta = { type: 'delta' as const, choice, text, tokenIds: [id] };
    return logprob === undefined ? delta : { ...delta, logprobs: [logprob] };
  }

  #finish(reason: 'stop' | 'length' | 'abort', stopReason: string | number | null): GenerationEvent {
    return { type: 'finish', choice: this.choice, reason, stopReason, completionTokens: this.#tokens };
  }
}
