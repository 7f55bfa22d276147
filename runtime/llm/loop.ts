/**
 * The loop's one turn: schedule, run, sample, commit. Enters: requests of token ids; leaves: reports of tokens. Runs on
 * the engine's thread, but knows no threads and no text.
 */
import type { BlockCopy, Engine, StepSlice } from '../engine/engine.ts';
import { SluiceError } from '../errors.ts';
import type { TokenLogprob } from '../generation.ts';
import { BlockPool } from '../kv/block-pool.ts';
import { KvCache } from '../kv/kv-cache.ts';
import { TokenChain } from '../kv/token-chain.ts';
import type { LogitsRow } from '../logits.ts';
import { ChoiceState } from '../sampling/choice-state.ts';
import { type Sampled, Sampler } from '../sampling/sampler.ts';
import { Scheduler, type SchedulerOptions, type Slice } from '../scheduler/scheduler.ts';
import { Sequence } from '../scheduler/sequence.ts';
import type { LoopReport, LoopRequest } from './messages.ts';
import type { LoopStatistics } from './statistics.ts';

/** What the engine does not say itself about how to schedule. */
export type LoopOptions = Omit<SchedulerOptions, 'maxBatchSize' | 'stepTokens' | 'maxLength'> & {
  readonly prefixCaching: boolean;
};

/** A request in the loop. */
interface Job {
  readonly request: LoopRequest;
  readonly choices: Map<number, { readonly sequence: Sequence; readonly state: ChoiceState }>;
  /** [i] belongs to the prompt's token i; undefined when they are not wanted or have been reported. */
  promptLogprobs: (TokenLogprob | null)[] | undefined;
  prompted: boolean;
  startedAtMs: number | undefined;
}

export class GenerationLoop {
  readonly #engine: Engine;
  readonly #eosTokenIds: readonly number[];
  readonly #kv: KvCache;
  readonly #scheduler: Scheduler;
  readonly #sampler: Sampler;
  readonly #now: () => number;
  readonly #jobs = new Map<number, Job>();
  readonly #totals = { promptTokens: 0, generatedTokens: 0, steps: 0, stepSequences: 0, stepMs: 0 };
  #batch = { batchSize: 0, batchTokens: 0 };
  #arrivals = 0;

  constructor(engine: Engine, eosTokenIds: readonly number[], options: LoopOptions, now: () => number) {
    const { blockCount, blockTokens, maxBatchSize, maxStepTokens, maxLength, vocabulary } = engine.info;
    this.#engine = engine;
    this.#now = now;
    this.#eosTokenIds = eosTokenIds;
    this.#kv = new KvCache(new BlockPool(blockCount), { blockTokens, prefixCaching: options.prefixCaching });
    this.#scheduler = new Scheduler(this.#kv, {
      ...options,
      maxBatchSize,
      stepTokens: maxStepTokens,
      maxLength,
      ...(engine.rope === undefined ? {} : { rope: engine.rope }),
    });
    this.#sampler = new Sampler(vocabulary);
  }

  get idle(): boolean {
    return this.#scheduler.idle;
  }

  /** Whether the next step is as the last, one token for each sequence, unless something arrives. */
  get steady(): boolean {
    const { waiting, running } = this.#scheduler;
    return waiting.length === 0 && running.every(({ remaining }) => remaining === 1);
  }

  /** Takes a checked request (check-request.ts). Throws SluiceError when it can never run or too many wait. */
  submit(request: LoopRequest): void {
    const { handle, prompt, sampling, seed } = request;
    const sequence = new Sequence({
      request: handle,
      choice: 0,
      chain: new TokenChain(prompt, this.#kv.blockTokens, request.cacheSalt),
      maxLength: prompt.length + sampling.maxTokens,
      priority: request.priority,
      order: this.#arrivals++,
      choices: Math.max(sampling.n, sampling.bestOf),
      needsAllRows: sampling.promptLogprobs !== undefined,
    });
    this.#scheduler.add(sequence);
    const state = new ChoiceState({ parameters: sampling, seed, eosTokenIds: this.#eosTokenIds, prompt });
    this.#jobs.set(handle, {
      request,
      choices: new Map([[0, { sequence, state }]]),
      promptLogprobs: sampling.promptLogprobs === undefined ? undefined : [null],
      prompted: false,
      startedAtMs: undefined,
    });
  }

  /** Ends a request, or one choice of it once it has tokens; its blocks are free when this returns. */
  abort(handle: number, choice?: number): void {
    const job = this.#jobs.get(handle);
    if (job === undefined) return;
    for (const each of choice === undefined ? [...job.choices.keys()] : [choice]) this.#end(job, each);
  }

  /** One visit to the scheduler and the steps it allows; undefined when there was nothing to run. */
  turn(): LoopReport | undefined {
    const schedule = this.#scheduler.schedule();
    if (schedule === undefined) return undefined;
    const report: LoopReport = { prompts: [], tokens: [], failures: [] };
    this.#run(schedule.slices, schedule.copies, report);
    for (let step = 1; step < schedule.steps; step++) {
      const slices = schedule.slices.filter((slice) => slice.sequence.state === 'running');
      if (slices.length > 0) this.#run(slices, [], report);
    }
    return report;
  }

  statistics(): Omit<LoopStatistics, 'aliveAtMs'> {
    return {
      running: this.#scheduler.running.length,
      waiting: this.#scheduler.waiting.length,
      blocksUsed: this.#kv.used,
      blocksTotal: this.#kv.pool.size,
      preemptions: this.#scheduler.preemptions,
      prefixHitTokens: this.#scheduler.prefixHitTokens,
      ...this.#totals,
      ...this.#batch,
    };
  }

  #run(slices: readonly Slice[], copies: readonly BlockCopy[], report: LoopReport): void {
    const sampled = new Map<number, Sampled[] | SluiceError>();
    const batch = slices.map((slice) => this.#stepSlice(slice));
    const startedAtMs = this.#now();
    this.#engine.step({ slices: batch, copies }, (index, row, logits) => {
      const slice = slices[index]!;
      this.#rankPrompt(slice.sequence, row, logits);
      if (row === slice.tokens - 1 && slice.tokens === slice.sequence.remaining) {
        sampled.set(index, this.#sample(slice.sequence, logits));
      }
    });
    this.#totals.stepMs += this.#now() - startedAtMs;
    this.#count(slices);
    slices.forEach((slice, index) => {
      this.#scheduler.commit(slice);
      if (slice.sequence.remaining === 0) this.#advance(slice.sequence, sampled.get(index) ?? [], report);
    });
  }

  #stepSlice({ sequence, tokens }: Slice): StepSlice {
    const job = this.#jobOf(sequence);
    job.startedAtMs ??= this.#now();
    const { chain, table } = sequence;
    const position = table.length;
    const samples = tokens === sequence.remaining && job.request.sampling.maxTokens > 0;
    const state = job.choices.get(sequence.choice)!.state;
    return {
      tokens: chain.slice(position, position + tokens),
      position,
      blocks: table.blocks,
      logits: sequence.needsAllRows ? 'all' : samples ? 'last' : 'none',
      logSumExp: sequence.needsAllRows || state.parameters.logprobs !== undefined,
      weighing: samples ? this.#sampler.weighing(state) : undefined,
      ropeVariant: this.#engine.rope?.variant(chain.length) ?? 0,
    };
  }

  /** Row r of the prompt tells how likely its token r + 1 was. */
  #rankPrompt(sequence: Sequence, row: number, logits: LogitsRow): void {
    if (!sequence.needsAllRows) return;
    const { request, promptLogprobs } = this.#jobOf(sequence);
    const next = sequence.table.length + row + 1;
    if (promptLogprobs === undefined || next >= request.prompt.length) return;
    promptLogprobs[next] = this.#sampler.logprob(
      logits,
      request.prompt[next]!,
      request.sampling.promptLogprobs!,
    );
  }

  /** The next token of each choice that the sequence has or becomes. */
  #sample(sequence: Sequence, logits: LogitsRow): Sampled[] | SluiceError {
    const job = this.#jobOf(sequence);
    if (job.request.sampling.maxTokens === 0) return [];
    const { state } = job.choices.get(sequence.choice)!;
    try {
      return Array.from({ length: sequence.choices }, (_, choice) =>
        this.#sampler.sample(logits, choice === 0 ? state : state.fork(choice)),
      );
    } catch (error) {
      if (error instanceof SluiceError) return error;
      throw error;
    }
  }

  /** All tokens of the sequence have run: the prompt is reported, the sequence forks, new tokens are appended. */
  #advance(sequence: Sequence, sampled: readonly Sampled[] | SluiceError, report: LoopReport): void {
    const job = this.#jobOf(sequence);
    const { handle } = job.request;
    if (sampled instanceof SluiceError) {
      report.failures.push({ handle, code: sampled.code, message: sampled.message, param: sampled.param });
      this.abort(handle);
      return;
    }
    this.#reportPrompt(job, sequence, report);
    const choices = [sequence.choice, ...this.#fork(job, sequence)];
    choices.forEach((choice, index) => {
      const chosen = sampled[index];
      if (chosen !== undefined) {
        this.#append(job, choice, chosen, report);
      } else {
        report.tokens.push({ handle, choice, ending: { reason: 'length', stopReason: null } });
        this.#end(job, choice);
      }
    });
  }

  #reportPrompt(job: Job, sequence: Sequence, report: LoopReport): void {
    if (job.prompted) return;
    const { promptLogprobs } = job;
    const { handle, submittedAtMs } = job.request;
    const cachedTokens = sequence.cachedTokens ?? 0;
    const queuedMs = Math.max(0, job.startedAtMs! - submittedAtMs);
    const prompt = { handle, cachedTokens, queuedMs };
    report.prompts.push(promptLogprobs === undefined ? prompt : { ...prompt, promptLogprobs });
    job.prompted = true;
    job.promptLogprobs = undefined;
    sequence.needsAllRows = false;
  }

  #fork(job: Job, sequence: Sequence): number[] {
    const count = sequence.choices;
    sequence.choices = 1;
    const { state } = job.choices.get(sequence.choice)!;
    return Array.from({ length: count - 1 }, (_, i) => {
      const choice = i + 1;
      job.choices.set(choice, {
        sequence: this.#scheduler.fork(sequence, choice),
        state: state.fork(choice),
      });
      return choice;
    });
  }

  #append(job: Job, choice: number, { id, logprob }: Sampled, report: LoopReport): void {
    const { sequence, state } = job.choices.get(choice)!;
    sequence.chain.push(id);
    this.#totals.generatedTokens++;
    const full = sequence.chain.length >= sequence.maxLength;
    const ending = state.accept(id) ?? (full ? { reason: 'length' as const, stopReason: null } : undefined);
    report.tokens.push({
      handle: job.request.handle,
      choice,
      id,
      ...(logprob === undefined ? {} : { logprob }),
      ...(ending === undefined ? {} : { ending }),
    });
    if (ending !== undefined) this.#end(job, choice);
  }

  #end(job: Job, choice: number): void {
    const ended = job.choices.get(choice);
    if (ended === undefined) return;
    this.#scheduler.finish(ended.sequence);
    job.choices.delete(choice);
    if (job.choices.size === 0) this.#jobs.delete(job.request.handle);
  }

  #count(slices: readonly Slice[]): void {
    const batchTokens = slices.reduce((sum, slice) => sum + slice.tokens, 0);
    const prompt = slices.reduce(
      (sum, { sequence, tokens }) => sum + (sequence.remaining > 1 ? tokens : 0),
      0,
    );
    this.#totals.promptTokens += prompt;
    this.#totals.steps++;
    this.#totals.stepSequences += slices.length;
    this.#batch = { batchSize: slices.length, batchTokens };
  }

  #jobOf(sequence: Sequence): Job {
    return this.#jobs.get(sequence.request)!;
  }
}
