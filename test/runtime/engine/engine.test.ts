import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { createEngine, type EngineOptions } from '../../../runtime/engine/create-engine.ts';
import type { Engine, StepBatch } from '../../../runtime/engine/engine.ts';
import { type ErrorCode, SluiceError } from '../../../runtime/errors.ts';
import type { Fault } from './faulty-checkpoint.ts';

const golden = path.resolve(import.meta.dirname, '../../goldens/llama-basic');
const cpu = (count: number) => ({
  kind: 'cpu' as const,
  indices: Array.from({ length: count }, (_, i) => i),
});

function open(options: Partial<EngineOptions> = {}): Promise<Engine> {
  return createEngine({
    checkpoint: { path: golden },
    devices: cpu(2),
    maxBatchSize: 8,
    maxStepTokens: 64,
    blockTokens: 16,
    maxLength: 128,
    ...options,
  });
}

function faulty(
  fault: Pick<Fault, 'when' | 'how'>,
  armed = new SharedArrayBuffer(4),
): EngineOptions['checkpoint'] {
  const argument: Fault = { path: golden, armed, ...fault };
  return { module: new URL('./faulty-checkpoint.ts', import.meta.url).href, argument };
}

const hasCode =
  (code: ErrorCode, message: RegExp) =>
  (error: unknown): boolean =>
    error instanceof SluiceError && error.code === code && message.test(error.message);

const batch = (...slices: StepBatch['slices']): StepBatch => ({ slices, copies: [] });
const ids = (count: number, first = 3): number[] =>
  Array.from({ length: count }, (_, i) => (first + 7 * i) % 500);

/** The rows of logits that a step gives, copied, by `slice.row`. */
function step(engine: Engine, stepBatch: StepBatch): Map<string, Float32Array> {
  const rows = new Map<string, Float32Array>();
  engine.step(stepBatch, (slice, row, logits) => rows.set(`${slice}.${row}`, logits.copy().values.slice()));
  return rows;
}

test('a step gives the rows that were asked for, in order, and no others', async () => {
  const engine = await open();
  try {
    const asked: string[] = [];
    engine.step(
      batch(
        { tokens: ids(3), position: 0, blocks: [0], logits: 'last' },
        { tokens: ids(5), position: 0, blocks: [1], logits: 'none' },
        { tokens: ids(40), position: 0, blocks: [2, 3, 4], logits: 'all' },
        { tokens: ids(2), position: 0, blocks: [5], logits: 'last' },
      ),
      (slice, row, logits) => {
        assert.equal(logits.size, engine.info.vocabulary);
        asked.push(`${slice}.${row}`);
      },
    );
    assert.deepEqual(asked, ['0.2', ...Array.from({ length: 40 }, (_, row) => `2.${row}`), '3.1']);
  } finally {
    engine.close();
  }
});

test('copied rows stand for those that would have been computed', async () => {
  const engine = await open();
  try {
    const prompt = ids(30);
    step(engine, batch({ tokens: prompt, position: 0, blocks: [0, 1], logits: 'none' }));
    const expected = step(engine, batch({ tokens: ids(4, 99), position: 21, blocks: [0, 1], logits: 'all' }));
    // Block 0 is shared, the first 5 rows of block 1 are copied, the rest is overwritten.
    step(engine, batch({ tokens: prompt, position: 0, blocks: [0, 1], logits: 'none' }));
    const copied = step(engine, {
      slices: [{ tokens: ids(4, 99), position: 21, blocks: [0, 6], logits: 'all' }],
      copies: [{ from: 1, to: 6, rows: 5 }],
    });
    assert.deepEqual(copied, expected);
    // Copies alone make a step too.
    step(engine, { slices: [], copies: [{ from: 6, to: 7, rows: 9 }] });
    const again = step(engine, batch({ tokens: ids(1, 5), position: 25, blocks: [0, 7], logits: 'all' }));
    assert.deepEqual(
      again,
      step(engine, batch({ tokens: ids(1, 5), position: 25, blocks: [0, 6], logits: 'all' })),
    );
  } finally {
    engine.close();
  }
});

test('a batch beyond the limits is refused and harms nothing', async () => {
  const engine = await open();
  try {
    const good = batch({ tokens: ids(5), position: 0, blocks: [0], logits: 'last' });
    const before = step(engine, good);
    for (const [bad, message] of [
      [
        batch({ tokens: ids(65), position: 0, blocks: [0, 1, 2, 3, 4], logits: 'none' }),
        /more than 64 tokens/,
      ],
      [batch({ tokens: ids(2), position: 127, blocks: ids(9), logits: 'none' }), /position 129/],
      [batch({ tokens: ids(17), position: 0, blocks: [0], logits: 'none' }), /1 blocks for 17 tokens/],
      [
        batch(
          ...Array.from({ length: 9 }, (_, i) => ({
            tokens: [1],
            position: 0,
            blocks: [i],
            logits: 'none' as const,
          })),
        ),
        /9 slices/,
      ],
    ] as const) {
      assert.throws(() => step(engine, bad), message);
    }
    assert.deepEqual(step(engine, good), before);
  } finally {
    engine.close();
  }
});

for (const how of ['throws', 'dies'] as const) {
  test(`a rank that ${how} while loading fails the creation`, async () => {
    const armed = new SharedArrayBuffer(4);
    new Int32Array(armed)[0] = 1;
    await assert.rejects(
      open({ checkpoint: faulty({ when: 'loading', how }, armed) }),
      hasCode('engine_failed', how === 'throws' ? /the cosine is broken/ : /rank 1 ended while loading/),
    );
  });

  test(`a rank that ${how} in a step fails the step, and the engine for good`, async () => {
    const armed = new SharedArrayBuffer(4);
    const engine = await open({ checkpoint: faulty({ when: 'stepping', how }, armed) });
    const good = batch({ tokens: ids(5), position: 0, blocks: [0], logits: 'last' });
    step(engine, good);
    new Int32Array(armed)[0] = 1;
    const message = how === 'throws' ? /rank 1: the cosine is broken/ : /rank 1: its thread has died/;
    assert.throws(() => step(engine, good), hasCode('engine_failed', message));
    assert.throws(() => step(engine, good), hasCode('engine_failed', /the engine is failed/));
    engine.close();
  });
}

test('a rank that dies between steps is told at once, and once', async () => {
  const armed = new SharedArrayBuffer(4);
  const failures: SluiceError[] = [];
  const told = Promise.withResolvers<void>();
  const engine = await open({
    checkpoint: faulty({ when: 'idling', how: 'dies' }, armed),
    onFailure: (error) => {
      failures.push(error);
      told.resolve();
    },
  });
  new Int32Array(armed)[0] = 1;
  Atomics.notify(new Int32Array(armed), 0);
  await told.promise;
  const good = batch({ tokens: ids(5), position: 0, blocks: [0], logits: 'last' });
  assert.throws(() => step(engine, good), hasCode('engine_failed', /the engine is failed/));
  engine.close();
  assert.equal(failures.length, 1);
  assert.match(failures[0]!.message, /rank 1: its thread has died/);
});

test('closing an engine ends its threads', async () => {
  const threads = (): number => readdirSync('/proc/self/task').length;
  const until = async (reached: () => boolean): Promise<void> => {
    while (!reached()) await new Promise((resolve) => setTimeout(resolve, 10));
  };
  const engine = await open({ devices: cpu(4) });
  const with3More = threads();
  engine.close();
  // The test would end by its time limit if they stayed.
  await until(() => threads() <= with3More - 3);
});

test('what cannot be had is refused in one line', async () => {
  for (const [options, code, message] of [
    [{ maxLength: 4096 }, 'config_invalid', /--max-length 4096: the model was made for at most 512 tokens/],
    [{ maxStepTokens: 1_048_576 }, 'config_invalid', /--max-batch-input-tokens 1048576: .* at most \d+/],
    [{ kvBytes: 1000 }, 'memory_insufficient', /the KV cache of one sequence of 128 tokens takes 1 MiB/],
    [{ devices: cpu(200) }, 'checkpoint_unsupported', /200 ranks/],
    [{ checkpoint: { path: '/nowhere' } }, 'checkpoint_invalid', /\/nowhere is missing/],
  ] as const) {
    await assert.rejects(open(options), (error) => {
      assert.ok(hasCode(code, message)(error), String(error));
      return !String(error).includes('\n');
    });
  }
});

test('progress is told in order, phase by phase', async () => {
  const phases: string[] = [];
  const engine = await open({ onProgress: ({ phase }) => phases.push(phase) });
  engine.close();
  assert.deepEqual([...new Set(phases)], ['compile', 'warmup']);
});
