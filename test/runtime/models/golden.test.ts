/**
 * Each architecture's graphs against transformers: logits and prompt log-probabilities of the golden checkpoints, whole
 * and cut for several ranks, with attention in plain loops.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { openCheckpoint } from '../../../runtime/weights/open.ts';
import { ReferenceRanks } from '../../support/reference-ranks.ts';

const goldens = path.resolve(import.meta.dirname, '../../goldens');
const cacheDir = mkdtempSync(path.join(tmpdir(), 'sluice-models-'));
after(() => rmSync(cacheDir, { recursive: true }));

interface Golden {
  readonly prompts: readonly {
    readonly ids: readonly number[];
    readonly logits_full: readonly number[];
    readonly logprobs_all: readonly number[];
    readonly greedy: readonly number[];
  }[];
}

const cases = [
  'llama-basic',
  'llama3-rope',
  'llama-sharded',
  'mistral',
  'qwen2',
  'qwen2-window',
  'qwen3',
  'phi3',
  'phi3-longrope',
  'granite',
  'exaone',
  'olmo',
  'olmo2',
  'gemma2',
  'gptq-4bit',
  'gptq-8bit',
  'gptq-act',
  'awq',
];

for (const name of cases) {
  const folder = path.join(goldens, name);
  const golden = JSON.parse(readFileSync(path.join(folder, 'golden.json'), 'utf8')) as Golden;
  // Blocks of 32 leave the quantized ones' MLP in four pieces.
  for (const ranks of /gptq|awq/.test(name) ? [1, 2, 3] : [1, 2, 3, 5]) {
    test(`${name} on ${ranks} ranks gives transformers' logits`, () => {
      using reference = new ReferenceRanks(openCheckpoint(folder), {
        ranks,
        cacheDir: ranks === 2 ? null : cacheDir,
        quantizedCompute: 'float32',
      });
      for (const prompt of golden.prompts) {
        const logits = reference.logits(prompt.ids);
        const range = Math.max(...prompt.logits_full) - Math.min(...prompt.logits_full);
        const last = logits.at(-1)!;
        assert.equal(last.length, prompt.logits_full.length);
        assert.ok(worst(last, prompt.logits_full) < 5e-4 * range, 'logits');
        const logprobs = prompt.logprobs_all.map((_, row) => logprob(logits[row]!, prompt.ids[row + 1]!));
        assert.ok(worst(logprobs, prompt.logprobs_all) < 5e-4 * range, 'log-probabilities');
        assert.equal(last.indexOf(Math.max(...last)), prompt.greedy[0], 'the first greedy token');
      }
    });
  }
}

function worst(actual: ArrayLike<number>, expected: readonly number[]): number {
  return Math.max(...expected.map((value, index) => Math.abs(value - actual[index]!)));
}

function logprob(logits: Float32Array, token: number): number {
  const peak = Math.max(...logits);
  const total = logits.reduce((sum, value) => sum + Math.exp(value - peak), 0);
  return logits[token]! - peak - Math.log(total);
}
