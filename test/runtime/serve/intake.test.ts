/** Bodies come to the same whoever prepares them, and whoever waits for a thread holds up nobody else. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { Intake } from '../../../runtime/serve/prepare/intake.ts';
import { type BodyKind, prepare } from '../../../runtime/serve/prepare/prepare.ts';
import { loadWords } from '../../../runtime/tokenizer/words.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const words = loadWords(path.join(root, 'test/goldens/llama3-rope'));
const intake = new Intake(words);
after(() => intake.close());

const model = {
  servedNames: ['m'],
  maxLength: 1e6,
  longestTokenBytes: undefined,
  vocabulary: words.tokenizer.vocabularySize,
  samplingDefaults: {},
};
const never = new AbortController().signal;
const bytesOf = (body: unknown) => new TextEncoder().encode(JSON.stringify(body));
const lineOf = (length: number) => 'A text about ferries. '.repeat(Math.ceil(length / 22));
const code = (expected: string) => (error: unknown) =>
  error instanceof SluiceError && error.code === expected;

describe('a body of each lane', () => {
  const ids = Array.from({ length: 3000 }, (_, i) => i % 300);
  for (const length of [20, 20_000, 300_000]) {
    const text = lineOf(length);
    const bodies: [string, BodyKind, object][] = [
      ['a prompt', 'completion', { model: 'm', prompt: text, temperature: 0.5, stop: ['x'], odd: 1 }],
      ['prompts that are echoed', 'completion', { model: 'm', prompt: [text, 'short'], echo: true }],
      ['ids that are echoed', 'completion', { model: 'm', prompt: ids, echo: true, user: text }],
      ['a chat', 'chat', { model: 'm', messages: [{ role: 'user', content: text }], n: 2 }],
      ['a text to tokenize', 'tokenize', { prompt: text, return_token_strs: true }],
      ['ids to detokenize', 'detokenize', { tokens: ids, odd: text }],
    ];
    for (const [name, kind, body] of bodies)
      test(`${name}, ${length} characters: the same from a thread`, async () => {
        const prepared = await intake.prepare(kind, bytesOf(body), model, never);
        assert.deepEqual(prepared, prepare(kind, bytesOf(body), model, words));
      });
  }
});

test('the prompt is the tokenizer’s own, and no text comes back that nobody asked for', async () => {
  const text = lineOf(50_000);
  const body = bytesOf({ model: 'm', prompt: text, user: text, metadata: { text } });
  const { value } = await intake.prepare('completion', body, model, never);
  assert.deepEqual([...(value.requests[0]!.prompt as Int32Array)], words.tokenizer.encode(text));
  assert.ok(JSON.stringify({ ...value, requests: [] }).length < 1000);
  assert.equal(body.byteLength, 0, 'the bytes have been given away');
});

describe('what is wrong with a long body is the client’s error', () => {
  const text = lineOf(20_000);
  const cases: [string, BodyKind, string, string | null, RegExp][] = [
    ['no JSON', 'completion', `{"prompt": "${text}`, null, /not JSON/],
    ['a field', 'completion', JSON.stringify({ model: 'm', prompt: text, top_p: 2 }), 'top_p', /2/],
    ['no model of ours', 'completion', JSON.stringify({ model: text, prompt: 'x' }), 'model', /not exist/],
    [
      'the template’s refusal',
      'chat',
      JSON.stringify({ model: 'm', messages: Array(2).fill({ role: 'user', content: text }) }),
      'messages',
      /template refuses/,
    ],
  ];
  for (const [name, kind, body, param, message] of cases)
    test(name, async () => {
      const bytes = new TextEncoder().encode(body);
      await assert.rejects(intake.prepare(kind, bytes, model, never), (error) => {
        assert.ok(error instanceof SluiceError);
        assert.equal(error.param, param);
        assert.match(error.message, message);
        return error.message.length < 1000;
      });
    });

  test('a text beyond the context, refused with the numbers and without tokenising it', async () => {
    const small = { ...model, maxLength: 100, longestTokenBytes: 16 };
    for (const [kind, body] of [
      ['completion', { model: 'm', prompt: ['x', text] }],
      ['chat', { model: 'm', messages: [{ role: 'user', content: text }] }],
    ] as const)
      await assert.rejects(
        intake.prepare(kind, bytesOf(body), small, never),
        (error) => code('context_exceeded')(error) && /100 tokens.*at least 125[12]/.test(String(error)),
      );
  });
});

test('a long body does not wait for a very long one', async () => {
  const order: string[] = [];
  const ask = async (name: string, length: number) => {
    await intake.prepare('tokenize', bytesOf({ prompt: lineOf(length) }), model, never);
    order.push(name);
  };
  // Both threads run already, so that only the work decides.
  await Promise.all([ask('', 300_000), ask('', 5000)]);
  order.length = 0;
  await Promise.all([ask('very long', 1_000_000), ask('very long', 1_000_000), ask('long', 5000)]);
  assert.deepEqual(order, ['long', 'very long', 'very long']);
});

test('whoever gives up hears so at once and leaves the line', async () => {
  const body = () => bytesOf({ prompt: lineOf(400_000) });
  const controller = new AbortController();
  const timedOut = new SluiceError('timed_out', 'too late');
  const first = intake.prepare('tokenize', body(), model, controller.signal);
  const second = intake.prepare('tokenize', body(), model, controller.signal);
  const third = intake.prepare('tokenize', body(), model, never);
  assert.equal(intake.pending, 3);
  controller.abort(timedOut);
  await assert.rejects(first, timedOut);
  await assert.rejects(second, timedOut);
  assert.equal(intake.pending, 2, 'the thread goes on with what it has');
  await assert.rejects(intake.prepare('tokenize', body(), model, controller.signal), timedOut);
  await third;
  assert.equal(intake.pending, 0);
});

test('work that is asked for while it closes is refused, not lost', async () => {
  const closing = new Intake(words);
  const refused = Array.from({ length: 2 }, () =>
    assert.rejects(
      closing.prepare('tokenize', bytesOf({ prompt: lineOf(5000) }), model, never),
      code('unavailable'),
    ),
  );
  await closing.close();
  await Promise.all(refused);
  await assert.rejects(
    closing.prepare('tokenize', bytesOf({ prompt: lineOf(5000) }), model, never),
    code('unavailable'),
  );
});
