/** The pool's answers are the tokenizer's own, whoever does the work. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { TokenizerPool } from '../../../runtime/tokenizer/pool.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const pool = new TokenizerPool(path.join(root, 'test/goldens/llama3-rope'));
after(() => pool.close());

const long = 'A long text about ferries. '.repeat(2000);

test('texts, short and long, with and without special tokens, many at once', async () => {
  const texts = ['short', long, `${long}!`, '', long];
  for (const addSpecialTokens of [true, false]) {
    const expected = texts.map((text) => pool.tokenizer.encode(text, { addSpecialTokens }));
    assert.deepEqual(await pool.encodeAll(texts, { addSpecialTokens }), expected);
    assert.deepEqual(
      await Promise.all(texts.map((text) => pool.encode(text, { addSpecialTokens }))),
      expected,
    );
  }
});

test('long chats in the template', async () => {
  const messages = [{ role: 'user', content: long }];
  assert.deepEqual(
    await pool.encodeChat(messages, { addSpecialTokens: false }),
    pool.tokenizer.encode(pool.template!.render(messages), { addSpecialTokens: false }),
  );
});

test("what the template refuses is the client's error there too", async () => {
  const messages = [
    { role: 'user', content: long },
    { role: 'user', content: 'twice' },
  ];
  await assert.rejects(
    pool.encodeChat(messages, { addSpecialTokens: false }),
    (error) => error instanceof SluiceError && error.code === 'request_invalid' && error.param === 'messages',
  );
});

test('work that is asked for while the pool closes is refused, not lost', async () => {
  const closing = new TokenizerPool(path.join(root, 'test/goldens/llama3-rope'));
  const pending = closing.encode(long, { addSpecialTokens: true });
  const refused = assert.rejects(
    pending,
    (error) => error instanceof SluiceError && error.code === 'unavailable',
  );
  await closing.close();
  await refused;
});
