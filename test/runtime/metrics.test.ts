/** The names that dashboards and autoscalers depend on. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createMetrics, type LoadSnapshot } from '../../runtime/metrics.ts';

const load: LoadSnapshot = {
  requestsRunning: 1,
  requestsWaiting: 2,
  kvBlocksUsed: 3,
  kvBlocksTotal: 4,
  kvBlockTokens: 8,
  kvBytes: 9,
  weightBytes: 10,
  prefillWeightBytes: 11,
  prefixHitTokens: 12,
  preemptions: 13,
  steps: 14,
  stepSequences: 15,
  stepSeconds: 16,
  batchSize: 17,
};

test('every metric has its name, its kind and a help text', async () => {
  const text = await createMetrics(() => load, ['m']).text();
  const kinds = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, kind]) => [name, kind]));
  assert.deepEqual(Object.fromEntries([...kinds].filter(([name]) => name!.startsWith('sluice_'))), {
    sluice_requests_running: 'gauge',
    sluice_requests_waiting: 'gauge',
    sluice_kv_blocks_used: 'gauge',
    sluice_kv_blocks_total: 'gauge',
    sluice_kv_cache_usage_ratio: 'gauge',
    sluice_kv_cache_bytes: 'gauge',
    sluice_weight_bytes: 'gauge',
    sluice_prefill_weight_bytes: 'gauge',
    sluice_batch_size: 'gauge',
    sluice_cache_config_info: 'gauge',
    sluice_prefix_hit_tokens_total: 'counter',
    sluice_preemptions_total: 'counter',
    sluice_steps_total: 'counter',
    sluice_step_sequences_total: 'counter',
    sluice_step_seconds_total: 'counter',
    sluice_model_info: 'gauge',
    sluice_http_requests_total: 'counter',
    sluice_http_request_duration_seconds: 'histogram',
    sluice_prompt_tokens_total: 'counter',
    sluice_prompt_tokens_cached_total: 'counter',
    sluice_completion_tokens_total: 'counter',
    sluice_choices_finished_total: 'counter',
    sluice_request_queue_seconds: 'histogram',
    sluice_time_to_first_token_seconds: 'histogram',
    sluice_inter_token_latency_seconds: 'histogram',
    sluice_request_duration_seconds: 'histogram',
  });
  for (const [name, value] of Object.entries({
    sluice_requests_running: 1,
    sluice_requests_waiting: 2,
    sluice_kv_blocks_used: 3,
    sluice_kv_blocks_total: 4,
    sluice_kv_cache_usage_ratio: 0.75,
    sluice_kv_cache_bytes: 9,
    sluice_weight_bytes: 10,
    sluice_prefill_weight_bytes: 11,
    sluice_prefix_hit_tokens_total: 12,
    sluice_preemptions_total: 13,
    sluice_steps_total: 14,
    sluice_step_sequences_total: 15,
    sluice_step_seconds_total: 16,
    sluice_batch_size: 17,
  }))
    assert.match(text, new RegExp(`^${name} ${value}$`, 'm'));
  assert.match(text, /^sluice_cache_config_info\{block_size="8",num_gpu_blocks="4"\} 1$/m);
});

test('gauges are 0 while there is no engine', async () => {
  assert.match(await createMetrics(() => undefined, []).text(), /^sluice_kv_blocks_total 0$/m);
});

test('the dashboard asks for metrics that there are, and leaves out none of the latencies', async () => {
  const file = new URL('../../charts/sluice/dashboards/runtime.json', import.meta.url);
  const { panels } = JSON.parse(readFileSync(file, 'utf8')) as {
    panels: { targets: { expr: string }[] }[];
  };
  const asked = panels.flatMap(({ targets }) =>
    targets.flatMap(({ expr }) => expr.match(/(sluice|process)_\w+/g) ?? []),
  );
  const names = new Set((await createMetrics(() => load, ['m']).describe()).map(({ name }) => name));
  for (const name of asked) assert.ok(names.has(name.replace(/_bucket$/, '')), name);
  for (const latency of ['time_to_first_token', 'inter_token_latency', 'request_queue'])
    assert.ok(asked.includes(`sluice_${latency}_seconds_bucket`), latency);
});
