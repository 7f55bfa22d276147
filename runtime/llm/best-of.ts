/**
 * Of `bestOf` choices the `n` with the highest mean log-probability a token, best first. Holds back everything until
 * all have ended, so it cannot stream. Pure.
 */
import type { GenerationEvent, GenerationRequest } from '../generation.ts';
import type { SamplingParameters } from '../sampling/parameters.ts';

type ChoiceEvent = Exclude<GenerationEvent, { type: 'prompt' }>;

/** The parameters to run with: choices can only be ranked with log-probabilities. */
export function rankable(sampling: SamplingParameters): SamplingParameters {
  return sampling.bestOf > sampling.n ? { ...sampling, logprobs: sampling.logprobs ?? 0 } : sampling;
}

export class BestOf {
  readonly #sampling: SamplingParameters;
  readonly #events: ChoiceEvent[][];
  #running: number;

  constructor({ sampling }: GenerationRequest) {
    this.#sampling = sampling;
    this.#events = Array.from({ length: sampling.bestOf }, () => []);
    this.#running = sampling.bestOf;
  }

  /** The events that may go out now that this one is known. */
  accept(event: GenerationEvent): GenerationEvent[] {
    if (event.type === 'prompt') return [event];
    this.#events[event.choice]!.push(event);
    if (event.type === 'finish') this.#running--;
    return this.#running === 0 ? this.#best() : [];
  }

  #best(): GenerationEvent[] {
    const ranked = this.#events
      .map((events) => ({ events, score: meanLogprob(events) }))
      .sort((a, b) => b.score - a.score)
      .slice(0, this.#sampling.n);
    return ranked.flatMap(({ events }, choice) => events.map((event) => this.#renumber(event, choice)));
  }

  #renumber(event: ChoiceEvent, choice: number): GenerationEvent {
    if (event.type === 'finish' || this.#sampling.logprobs !== undefined) return { ...event, choice };
    const { type, text, tokenIds } = event;
    return { type, choice, text, tokenIds };
  }
}

function meanLogprob(events: readonly ChoiceEvent[]): number {
  const logprobs = events.flatMap((event) => (event.type === 'delta' ? (event.logprobs ?? []) : []));
  return logprobs.reduce((sum, { logprob }) => sum + logprob, 0) / Math.max(1, logprobs.length);
}
