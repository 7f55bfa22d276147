/**
 * Every metric of the runtime, named once. Enters: observations. Leaves: Prometheus text. Must not know who observes.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

/** What the engine's gauges show at the moment of a scrape. */
export interface LoadSnapshot {
  readonly requestsRunning: number;
  /** Of the engine's queue, and those whose prompts are being read. */
  readonly requestsWaiting: number;
  readonly kvBlocksUsed: number;
  readonly kvBlocksTotal: number;
  readonly kvBlockTokens: number;
  readonly kvBytes: number;
  readonly weightBytes: number;
  readonly prefillWeightBytes: number;
  /** Since the start, as those that follow but the last. */
  readonly prefixHitTokens: number;
  readonly preemptions: number;
  readonly steps: number;
  readonly stepSequences: number;
  readonly stepSeconds: number;
  /** Sequences in the last step. */
  readonly batchSize: number;
}

export interface Metrics {
  readonly httpRequests: Counter<'route' | 'status'>;
  readonly httpSeconds: Histogram<'route'>;
  readonly promptTokens: Counter;
  readonly cachedPromptTokens: Counter;
  readonly completionTokens: Counter;
  readonly finished: Counter<'reason'>;
  readonly queueSeconds: Histogram;
  readonly timeToFirstToken: Histogram;
  readonly interTokenLatency: Histogram;
  readonly requestSeconds: Histogram;
  readonly contentType: string;
  text(): Promise<string>;
  /** Name, type and help of each, for the documentation. */
  describe(): Promise<readonly MetricDescription[]>;
}

export interface MetricDescription {
  readonly name: string;
  readonly type: string;
  readonly help: string;
}

const stepBuckets = [0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5];
const waitBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const requestBuckets = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

/** `snapshot` is asked at each scrape; undefined while there is no engine: the gauges are then 0. */
export function createMetrics(
  snapshot: () => LoadSnapshot | undefined,
  modelNames: readonly string[],
): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const processGauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });
  // The names that Prometheus' own libraries use.
  processGauge('process_resident_memory_bytes', 'Resident memory', () => process.memoryUsage.rss());
  processGauge('process_cpu_seconds_total', 'CPU time, user and system', () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
  processGauge('process_start_time_seconds', 'Start of the process, Unix time', () =>
    Math.round(performance.timeOrigin / 1000),
  );
  const gauge = (name: string, help: string, read: (load: LoadSnapshot) => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        const load = snapshot();
        this.set(load === undefined ? 0 : read(load));
      },
    });
  const counter = (name: string, help: string, read: (load: LoadSnapshot) => number) =>
    new Counter({
      name,
      help,
      registers,
      collect() {
        const load = snapshot();
        this.reset();
        if (load !== undefined) this.inc(read(load));
      },
    });
  gauge('sluice_requests_running', 'Sequences that are being run', (load) => load.requestsRunning);
  gauge(
    'sluice_requests_waiting',
    'Prompts that wait to be read and sequences that wait for their turn',
    (load) => load.requestsWaiting,
  );
  gauge(
    'sluice_kv_blocks_used',
    'Blocks of the KV cache that running sequences hold',
    (load) => load.kvBlocksUsed,
  );
  gauge('sluice_kv_blocks_total', 'Blocks of the KV cache', (load) => load.kvBlocksTotal);
  gauge('sluice_kv_cache_usage_ratio', 'Part of the KV cache that running sequences hold, 0 to 1', (load) =>
    load.kvBlocksTotal === 0 ? 0 : load.kvBlocksUsed / load.kvBlocksTotal,
  );
  gauge('sluice_kv_cache_bytes', 'Size of the KV cache', (load) => load.kvBytes);
  gauge('sluice_weight_bytes', 'Weights as the checkpoint stores them', (load) => load.weightBytes);
  gauge(
    'sluice_prefill_weight_bytes',
    'A copy of the weights for steps of many rows; 0 without one',
    (load) => load.prefillWeightBytes,
  );
  gauge('sluice_batch_size', 'Sequences in the last step', (load) => load.batchSize);
  counter(
    'sluice_prefix_hit_tokens_total',
    'Tokens of prompts that sequences found in the KV cache',
    (load) => load.prefixHitTokens,
  );
  counter(
    'sluice_preemptions_total',
    'Sequences that gave up their blocks and were recomputed later',
    (load) => load.preemptions,
  );
  counter('sluice_steps_total', 'Steps of the engine', (load) => load.steps);
  counter(
    'sluice_step_sequences_total',
    'Sequences over all steps; divided by sluice_steps_total, the mean batch size',
    (load) => load.stepSequences,
  );
  counter(
    'sluice_step_seconds_total',
    'Time spent in steps; divided by sluice_steps_total, the mean time of one',
    (load) => load.stepSeconds,
  );
  const cacheInfo = new Gauge({
    name: 'sluice_cache_config_info',
    help: 'The KV cache, as labels: tokens in a block, and blocks',
    labelNames: ['block_size', 'num_gpu_blocks'],
    registers,
    collect() {
      const load = snapshot();
      if (load === undefined) return;
      cacheInfo.set({ block_size: load.kvBlockTokens, num_gpu_blocks: load.kvBlocksTotal }, 1);
    },
  });
  new Gauge({ name: 'sluice_model_info', help: 'The served model', labelNames: ['model'], registers }).set(
    { model: modelNames[0] ?? '' },
    1,
  );
  return {
    httpRequests: new Counter({
      name: 'sluice_http_requests_total',
      help: 'HTTP requests answered; 499: the client went away',
      labelNames: ['route', 'status'],
      registers,
    }),
    httpSeconds: new Histogram({
      name: 'sluice_http_request_duration_seconds',
      help: 'From the request to the end of its answer',
      labelNames: ['route'],
      buckets: requestBuckets,
      registers,
    }),
    promptTokens: new Counter({ name: 'sluice_prompt_tokens_total', help: 'Tokens of prompts', registers }),
    cachedPromptTokens: new Counter({
      name: 'sluice_prompt_tokens_cached_total',
      help: 'Tokens of prompts that were taken from the KV cache',
      registers,
    }),
    completionTokens: new Counter({
      name: 'sluice_completion_tokens_total',
      help: 'Tokens generated',
      registers,
    }),
    finished: new Counter({
      name: 'sluice_choices_finished_total',
      help: 'Answers ended, by reason; abort: the client went away or the server stopped',
      labelNames: ['reason'],
      registers,
    }),
    queueSeconds: new Histogram({
      name: 'sluice_request_queue_seconds',
      help: 'From the request to the first step that ran some of it',
      buckets: waitBuckets,
      registers,
    }),
    timeToFirstToken: new Histogram({
      name: 'sluice_time_to_first_token_seconds',
      help: 'From the request to its first token',
      buckets: waitBuckets,
      registers,
    }),
    interTokenLatency: new Histogram({
      name: 'sluice_inter_token_latency_seconds',
      help: 'Between two tokens of an answer',
      buckets: stepBuckets,
      registers,
    }),
    requestSeconds: new Histogram({
      name: 'sluice_request_duration_seconds',
      help: 'From the request to its last token',
      buckets: requestBuckets,
      registers,
    }),
    contentType: registry.contentType,
    text: () => registry.metrics(),
    describe: async () =>
      (await registry.getMetricsAsJSON()).map(({ name, type, help }) => ({ name, type: String(type), help })),
  };
}
