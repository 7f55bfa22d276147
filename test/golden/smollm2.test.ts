/**
 * SmolLM2-135M-Instruct from its published Q4_1 GGUF, against HF transformers on the same values: answers to ten chats in
 * float32, perplexity with int8 activations.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { createEngine, type EngineOptions } from '../../runtime/engine/create-engine.ts';
import type { Engine } from '../../runtime/engine/engine.ts';
import { loadChatTemplate } from '../../runtime/tokenizer/chat-template.ts';
import { tokenizerFromGguf } from '../../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../../runtime/tokenizer/hugging-face.ts';
import { openCheckpoint } from '../../runtime/weights/open.ts';
import { skipWithoutSmolLm2 as skip, smolLm2 } from '../support/smollm2.ts';

const root = path.resolve(import.meta.dirname, '../..');

interface Chat {
  readonly user: string;
  readonly text: string;
  readonly ids: readonly number[];
  readonly greedy: readonly number[];
}

const { prompts } = JSON.parse(
  readFileSync(path.join(import.meta.dirname, '../goldens/smollm2-chats.json'), 'utf8'),
) as { prompts: readonly Chat[] };

function openEngine(
  quantizedCompute: 'int8' | 'float32',
  options: Pick<EngineOptions, 'prefillWeights'> = {},
): Promise<Engine> {
  return createEngine({
    checkpoint: { path: smolLm2! },
    devices: { kind: 'cpu', indices: [0, 1] },
    maxBatchSize: prompts.length,
    maxStepTokens: 512,
    blockTokens: 16,
    maxLength: 512,
    quantizedCompute,
    ...options,
  });
}

test('its chats and their ids, from the tokenizer and the template in its metadata', { skip }, () => {
  const { path: file, metadata } = openCheckpoint(smolLm2!);
  const source = tokenizerFromGguf(file, metadata!);
  const tokenizer = loadTokenizer(source);
  const template = loadChatTemplate(source)!;
  for (const { user, text, ids } of prompts) {
    assert.equal(template.render([{ role: 'user', content: user }]), text);
    assert.deepEqual(tokenizer.encode(text, { addSpecialTokens: false }), ids);
  }
});

test('greedy answers equal the reference in float32, all chats at once', { skip }, async () => {
  const engine = await openEngine('float32');
  try {
    const blocks = prompts.map((_, chat) => Array.from({ length: 32 }, (_, block) => chat * 32 + block));
    const answers = prompts.map((): number[] => []);
    const take = (chats: readonly number[], tokens: (chat: number) => readonly number[]): void => {
      const slices = chats.map((chat) => ({
        tokens: tokens(chat),
        position: answers[chat]!.length === 0 ? 0 : prompts[chat]!.ids.length + answers[chat]!.length - 1,
        blocks: blocks[chat]!,
        logits: 'last' as const,
      }));
      engine.step({ slices, copies: [] }, (slice, _, logits) => {
        answers[chats[slice]!]!.push(logits.greatest());
      });
    };
    for (const chat of prompts.keys()) take([chat], () => prompts[chat]!.ids);
    for (;;) {
      const open = [...prompts.keys()].filter((chat) => answers[chat]!.length < prompts[chat]!.greedy.length);
      if (open.length === 0) break;
      take(open, (chat) => [answers[chat]!.at(-1)!]);
    }
    for (const [chat, { user, greedy }] of prompts.entries()) assert.deepEqual(answers[chat], greedy, user);
  } finally {
    engine.close();
  }
});

test('the perplexity of a fixed text stays within what each way to compute promises of that in float32', {
  skip,
}, async () => {
  const { path: file, metadata } = openCheckpoint(smolLm2!);
  const text = readFileSync(path.join(root, 'LICENSE'), 'utf8');
  const ids = loadTokenizer(tokenizerFromGguf(file, metadata!)).encode(text).slice(0, 512);
  const perplexity = async (...run: Parameters<typeof openEngine>): Promise<number> => {
    const engine = await openEngine(...run);
    try {
      let sum = 0;
      const blocks = Array.from({ length: 32 }, (_, block) => block);
      engine.step(
        { slices: [{ tokens: ids, position: 0, blocks, logits: 'all' }], copies: [] },
        (_, row, logits) => {
          if (row < ids.length - 1) sum -= logProbability(logits.copy().values, ids[row + 1]!);
        },
      );
      return Math.exp(sum / (ids.length - 1));
    } finally {
      engine.close();
    }
  };
  const exact = await perplexity('float32');
  const promises: readonly [number, ...Parameters<typeof openEngine>][] = [
    [0.01, 'int8', { prefillWeights: 'none' }],
    [0.03, 'int8', { prefillWeights: 'int8' }],
  ];
  for (const [share, ...run] of promises) {
    const near = await perplexity(...run);
    assert.ok(Math.abs(near / exact - 1) < share, `float32 ${exact}, ${JSON.stringify(run)} ${near}`);
  }
});

function logProbability(logits: Float32Array, id: number): number {
  const peak = Math.max(...logits);
  const total = logits.reduce((sum, logit) => sum + Math.exp(logit - peak), 0);
  return logits[id]! - peak - Math.log(total);
}
