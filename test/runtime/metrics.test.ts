/** The names that dashboards and autoscalers depend on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMetrics } from '../../runtime/metrics.ts';

test('every metric has its name, its kind and a help text', async () => {
  const load = { requestsRunning: 1, requestsWaiting: 2, kvBlocksUsed: 3, kvBlocksTotal: 4 };
  const text = await createMetrics(() => load, ['m']).text();
  const kinds = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, kind]) => [name, kind]));
  assert.deepEqual(Object.fromEntries([...kinds].filter(([name]) => name!.startsWith('sluice_'))), {
    sluice_requests_running: 'gauge',
    sluice_requests_waiting: 'gauge',
    sluice_kv_blocks_used: 'gauge',
    sluice_kv_blocks_total: 'gauge',
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
  }))
    assert.match(text, new RegExp(`^${name} ${value}$`, 'm'));
});

test('gauges are 0 while there is no engine', async () => {
  assert.match(await createMetrics(() => undefined, []).text(), /^sluice_kv_blocks_total 0$/m);
});
