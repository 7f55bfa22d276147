/**
 * What choosing a token depends on besides the logits: the request's parameters, which of its choices this is, and the
 * tokens so far. One per sequence; outlives preemption.
 */
import type { Weighing } from '../logits.ts';
import type { SamplingParameters } from './parameters.ts';

export interface ChoiceOptions {
  readonly parameters: SamplingParameters;
  readonly seed: number;
  readonly eosTokenIds: readonly number[];
  readonly prompt: ArrayLike<number>;
}

export interface Ending {
  readonly reason: 'stop' | 'length';
  /** The stop token that ended it; null for end of sequence and length. */
  readonly stopReason: number | null;
}

export class ChoiceState {
  readonly parameters: SamplingParameters;
  readonly seed: number;
  readonly choice: number;
  /** Of temperature and truncation; of no use at temperature 0. */
  readonly weighing: Weighing;
  /** New tokens so far. */
  generated = 0;
  readonly #options: ChoiceOptions;
  /** Ids that end the sequence, less those that the request ignores. */
  readonly #endings: ReadonlySet<number>;
  /** How often each new token occurred, kept for penalties. */
  readonly #counts = new Map<number, number>();
  readonly #promptIds: ReadonlySet<number>;

  constructor(options: ChoiceOptions, choice = 0) {
    const { parameters, seed, eosTokenIds, prompt } = options;
    this.#options = options;
    this.parameters = parameters;
    this.seed = seed;
    this.choice = choice;
    this.weighing = weighingOf(parameters);
    this.#endings = new Set([...parameters.stopTokenIds, ...(parameters.ignoreEos ? [] : eosTokenIds)]);
    this.#promptIds = new Set(parameters.repetitionPenalty === 1 ? [] : Array.from(prompt));
  }

  /** Another choice of the same request, before any token. */
  fork(choice: number): ChoiceState {
    return new ChoiceState(this.#options, choice);
  }

  /** Where the next token will stand in the sequence: its place in the random stream. */
  get position(): number {
    return this.#options.prompt.length + this.generated;
  }

  /** Whether `adjust` changes anything at the next token. */
  get adjusts(): boolean {
    const { logitBias, minTokens } = this.parameters;
    return logitBias.length > 0 || this.generated < minTokens || this.#penalizes;
  }

  /** Applies, in this order, bias, minimum length and penalties to a row of logits, in place. */
  adjust(logits: Float32Array): void {
    const { logitBias, minTokens, presencePenalty, frequencyPenalty, repetitionPenalty } = this.parameters;
    for (const [id, bias] of logitBias) logits[id]! += bias;
    if (this.generated < minTokens) for (const id of this.#endings) logits[id] = Number.NEGATIVE_INFINITY;
    if (!this.#penalizes) return;
    for (const id of this.#promptIds) if (!this.#counts.has(id)) repel(logits, id, repetitionPenalty);
    for (const [id, count] of this.#counts) {
      repel(logits, id, repetitionPenalty);
      logits[id]! -= presencePenalty + frequencyPenalty * count;
    }
  }

  /** Notes the token chosen; returns why the choice ends with it, if it does. */
  accept(id: number): Ending | undefined {
    this.generated++;
    if (this.#penalizes) this.#counts.set(id, (this.#counts.get(id) ?? 0) + 1);
    const { ignoreEos, maxTokens } = this.parameters;
    if (!ignoreEos && this.#options.eosTokenIds.includes(id)) return { reason: 'stop', stopReason: null };
    if (this.#endings.has(id)) return { reason: 'stop', stopReason: id };
    return this.generated >= maxTokens ? { reason: 'length', stopReason: null } : undefined;
  }

  get #penalizes(): boolean {
    const { presencePenalty, frequencyPenalty, repetitionPenalty } = this.parameters;
    return presencePenalty !== 0 || frequencyPenalty !== 0 || repetitionPenalty !== 1;
  }
}

const greatestScale = 3e38;

function weighingOf({ temperature, minP, topP }: SamplingParameters): Weighing {
  return {
    scale: Math.fround(Math.min(Math.LOG2E / temperature, greatestScale)),
    below: minP > 0 ? Math.fround(temperature * Math.log(minP)) : Number.NEGATIVE_INFINITY,
    nucleus: topP < 1,
  };
}

/** Repetition penalty as CTRL has it: what was positive is divided, what was negative multiplied. */
function repel(logits: Float32Array, id: number, penalty: number): void {
  const logit = logits[id]!;
  logits[id] = logit > 0 ? logit / penalty : logit * penalty;
}
