/** The model that the configuration names -> a backend that the server and `generate` can use. */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import type { RuntimeConfig } from '../config.ts';
import { planRanks } from '../driver/device.ts';
import { availableBytes } from '../engine/kv-size.ts';
import { SluiceError } from '../errors.ts';
import { LLM } from '../llm.ts';
import { parseModel } from '../models/registry.ts';
import { kvElementBytes, preflight } from '../preflight.ts';
import type { SamplingParameters } from '../sampling/parameters.ts';
import type { Backend, LoadingProgress } from '../serve/backend.ts';
import { Intake } from '../serve/prepare/intake.ts';
import type { TokenizerSource } from '../tokenizer/definition.ts';
import { tokenizerFromGguf } from '../tokenizer/gguf.ts';
import { longestTokenBytes } from '../tokenizer/token-bound.ts';
import { loadWords, type Words } from '../tokenizer/words.ts';
import type { Checkpoint } from '../weights/checkpoint.ts';
import { openCheckpoint } from '../weights/open.ts';
import type { WeightQuantization } from '../weights/quantize.ts';
import { locateModel } from './locate-model.ts';

export interface LoadModelHooks {
  onProgress(progress: LoadingProgress): void;
  onWarning(message: string): void;
  /** The engine has died, after it was loaded. */
  onFailure?(error: SluiceError): void;
}

/** Throws SluiceError: whatever is wrong with the checkpoint, the devices or the memory. */
export async function loadModel(config: RuntimeConfig, hooks: LoadModelHooks): Promise<Backend> {
  const source = { ...(await locateModel(config, hooks)), ...weightQuantization(config) };
  const checkpoint = openCheckpoint(source.path, source);
  checkWish(checkpoint, config);
  const words = loadWords(tokenizerSource(source.path, checkpoint));
  const llm = await LLM.load(
    words.tokenizer,
    {
      checkpoint: source,
      devices: config.devices,
      threads: config.threads,
      maxBatchSize: config.maxBatchSize,
      maxStepTokens: config.maxBatchInputTokens,
      maxLength: config.maxLength,
      blockTokens: config.kvCachePageSize,
      cacheDir: config.cacheDir,
      quantizedCompute: config.quantizedCompute,
      prefillWeights: config.prefillWeights,
      cpuKernels: config.cpuKernels,
      kvBytes: config.kvCacheMemory,
      kvDType: config.kvCacheDType,
      prefixCaching: config.enablePrefixCaching,
      prefixAware: config.enablePrefixAwareScheduling,
      inFlightBatching: config.enableInFlightBatch,
      chunkedPrefill: config.enableChunkedPrefill,
      maxNumSteps: config.maxNumSteps,
      maxQueueSize: config.maxQueueSize,
    },
    hooks,
  );
  return new LlmBackend(llm, words, longestTokenBytes(words.source), samplingDefaults(checkpoint));
}

/** tokenizer.json where there is one; else what the GGUF's metadata says. */
function tokenizerSource(place: string, { path: file, metadata }: Checkpoint): TokenizerSource {
  if (metadata === undefined || existsSync(path.join(place, 'tokenizer.json'))) return place;
  return tokenizerFromGguf(file, metadata);
}

class LlmBackend implements Backend {
  readonly words: Words;
  readonly intake: Intake;
  readonly longestTokenBytes: number | undefined;
  readonly samplingDefaults: Partial<SamplingParameters>;
  readonly #llm: LLM;

  constructor(llm: LLM, words: Words, longest: number | undefined, defaults: Partial<SamplingParameters>) {
    this.#llm = llm;
    this.words = words;
    this.intake = new Intake(words);
    this.longestTokenBytes = longest;
    this.samplingDefaults = defaults;
  }

  get maxLength() {
    return this.#llm.info.maxLength;
  }

  get vocabulary() {
    return this.#llm.info.vocabulary;
  }

  get details() {
    const { architecture, ranks, maxLength, blockCount, kvBytes, kvDType, weightBytes } = this.#llm.info;
    return { architecture, ranks, maxLength, kvBlocks: blockCount, kvBytes, kvDType, weightBytes };
  }

  generate: Backend['generate'] = (request, signal) => this.#llm.generate(request, signal);

  load() {
    const { kvBytes, weightBytes, prefillWeightBytes, blockTokens } = this.#llm.info;
    const { running, waiting, blocksUsed, blocksTotal, stepMs, ...counts } = this.#llm.statistics();
    return {
      requestsRunning: running,
      requestsWaiting: waiting + this.intake.pending,
      kvBlocksUsed: blocksUsed,
      kvBlocksTotal: blocksTotal,
      kvBlockTokens: blockTokens,
      kvBytes,
      weightBytes,
      prefillWeightBytes,
      stepSeconds: stepMs / 1000,
      prefixHitTokens: counts.prefixHitTokens,
      preemptions: counts.preemptions,
      steps: counts.steps,
      stepSequences: counts.stepSequences,
      batchSize: counts.batchSize,
    };
  }

  failure() {
    return this.#llm.failure;
  }

  silentMs() {
    return this.#llm.silentMs();
  }

  async close() {
    await Promise.all([this.#llm.close(), this.intake.close()]);
  }
}

/** What int8 and int4 ask for. Throws SluiceError `config_invalid` for a block size without them. */
function weightQuantization({
  quantizationEncoding: encoding,
  quantizationBlockSize: blockSize,
}: RuntimeConfig): { readonly quantization?: WeightQuantization } {
  if (encoding === 'int8' || encoding === 'int4') {
    return { quantization: { bits: encoding === 'int8' ? 8 : 4, blockSize: blockSize ?? 32 } };
  }
  if (blockSize === undefined) return {};
  throw new SluiceError(
    'config_invalid',
    `--quantization-block-size ${blockSize}: only with --quantization-encoding int8 or int4, which quantize when loading`,
    { param: 'quantization-block-size' },
  );
}

/**
 * Throws `checkpoint_unsupported` with everything that stands against running the checkpoint as asked, or
 * `memory_insufficient` where only memory does: before it is loaded, for a container that takes more is killed unheard.
 */
function checkWish(checkpoint: Checkpoint, config: RuntimeConfig): void {
  const { spec } = parseModel(checkpoint);
  const { quantizationEncoding: encoding, kvCacheMemory: kvBytes } = config;
  const ranks = planRanks(config.devices, config.threads, spec.kvHeads, availableParallelism()).devices
    .length;
  const facts = { ...spec, encoding: checkpoint.encoding, weightBytes: checkpoint.weightBytes };
  const problems = preflight(facts, {
    ranks,
    memoryBytes: availableBytes(),
    memorySource: 'what this machine or container has left',
    kvElementBytes: kvElementBytes[config.kvCacheDType ?? 'float32'],
    ...(encoding === undefined ? {} : { encoding }),
    ...(kvBytes === undefined ? {} : { kvBytes }),
  });
  if (problems.length === 0) return;
  const wishes = encoding === undefined ? '' : ` with --quantization-encoding ${encoding}`;
  throw new SluiceError(
    problems.every(({ code }) => code === 'memory') ? 'memory_insufficient' : 'checkpoint_unsupported',
    `${checkpoint.path} cannot be run${wishes}: ${problems.map(({ message }) => message).join('; ')}`,
  );
}

/** generation_config.json's names for what a request may leave open. */
const samplingNames = {
  temperature: 'temperature',
  top_p: 'topP',
  top_k: 'topK',
  min_p: 'minP',
  repetition_penalty: 'repetitionPenalty',
} as const;

function samplingDefaults({ generationConfig }: Checkpoint): Partial<SamplingParameters> {
  const entries = Object.entries(samplingNames).flatMap(([name, ours]) => {
    const value = generationConfig[name];
    return typeof value === 'number' ? [[ours, value] as const] : [];
  });
  return Object.fromEntries(entries);
}
