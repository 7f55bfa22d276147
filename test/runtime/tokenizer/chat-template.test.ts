/** Chat templates against what transformers rendered, and the forms in which checkpoints carry them. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { SluiceError } from '../../../runtime/errors.ts';
import { loadChatTemplate } from '../../../runtime/tokenizer/chat-template.ts';
import { loadTokenizer } from '../../../runtime/tokenizer/hugging-face.ts';
import { goldenNames, goldens, goldenTokenizer } from '../../support/golden-tokenizer.ts';

const scratch = mkdtempSync(path.join(tmpdir(), 'sluice-template-'));
after(() => rmSync(scratch, { recursive: true }));

function folderOf(files: Readonly<Record<string, unknown>>): string {
  const folder = mkdtempSync(path.join(scratch, 'model-'));
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
    writeFileSync(path.join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

for (const name of goldenNames)
  test(`golden checkpoint ${name}: text and ids of every chat`, () => {
    const { chats } = JSON.parse(readFileSync(path.join(goldens, name, 'golden.json'), 'utf8'));
    const template = loadChatTemplate(goldenTokenizer(name));
    const tokenizer = loadTokenizer(goldenTokenizer(name));
    assert.ok(template !== undefined && chats.length > 0);
    for (const chat of chats) {
      const options = {
        addGenerationPrompt: chat.add_generation_prompt,
        ...(chat.tools && { tools: chat.tools }),
      };
      const rendered = template.render(chat.messages, options);
      assert.equal(rendered, chat.rendered);
      assert.deepEqual(tokenizer.encode(rendered, { addSpecialTokens: false }), chat.ids);
    }
  });

const hello = [{ role: 'user', content: 'hi' }];

describe('where templates are found', () => {
  const cases: [string, Record<string, unknown>, string | undefined][] = [
    ['none', { 'tokenizer_config.json': {} }, undefined],
    ['no files at all', {}, undefined],
    ['a string', { 'tokenizer_config.json': { chat_template: 'A{{ messages[0].content }}' } }, 'Ahi'],
    [
      'a list of named ones: default',
      {
        'tokenizer_config.json': {
          chat_template: [
            { name: 'tool_use', template: 'T' },
            { name: 'default', template: 'D' },
          ],
        },
      },
      'D',
    ],
    [
      'the file comes before the configuration',
      { 'tokenizer_config.json': { chat_template: 'A' }, 'chat_template.jinja': 'F' },
      'F',
    ],
    [
      'special tokens by name, as text or as objects',
      {
        'tokenizer_config.json': {
          chat_template: '{{ bos_token }}|{{ eos_token }}',
          bos_token: '<s>',
          eos_token: { content: '</s>' },
        },
      },
      '<s>|</s>',
    ],
  ];
  for (const [name, files, expected] of cases)
    test(name, () => assert.equal(loadChatTemplate(folderOf(files))?.render(hello), expected));

  test('the template named tool_use takes requests with tools', () => {
    const folder = folderOf({
      'chat_template.jinja': 'plain',
      'additional_chat_templates/tool_use.jinja': '{{ tools | length }} tools',
    });
    assert.equal(loadChatTemplate(folder)?.render(hello), 'plain');
    assert.equal(loadChatTemplate(folder)?.render(hello, { tools: [{}, {}] }), '2 tools');
  });
});

describe('what templates may ask for', () => {
  const render = (template: string, messages = hello, options = {}) =>
    loadChatTemplate(folderOf({ 'chat_template.jinja': template }))!.render(messages, options);
  test("tojson writes as Python's json.dumps, without escapes for HTML", () => {
    assert.equal(
      render('{{ tools[0] | tojson }}', hello, { tools: [{ a: ['<é>', 1, null, true], b: {} }] }),
      '{"a": ["<é>", 1, null, true], "b": {}}',
    );
  });
  test('strftime_now gives the date', () => {
    assert.match(render("{{ strftime_now('%Y-%m-%d') }}"), /^\d{4}-\d\d-\d\d$/);
  });
  test('variables of the request reach the template', () => {
    assert.equal(
      render("{{ 'on' if thinking else 'off' }}", hello, { variables: { thinking: false } }),
      'off',
    );
  });
  test('developer becomes system where the template does not know it', () => {
    const developer = [{ role: 'developer', content: 'x' }];
    assert.equal(render('{{ messages[0].role }}', developer), 'system');
    assert.equal(render('{# developer #}{{ messages[0].role }}', developer), 'developer');
  });
  test("raise_exception is the client's error, in the template's words", () => {
    assert.throws(
      () => render("{{ raise_exception('roles must alternate') }}"),
      (error) =>
        error instanceof SluiceError &&
        error.httpStatus === 400 &&
        /roles must alternate/.test(error.message),
    );
  });
  test("a template that cannot be parsed is the checkpoint's error", () => {
    assert.throws(
      () => render('{% if %}'),
      (error) =>
        error instanceof SluiceError && error.exitCode === 2 && /chat_template\.jinja/.test(error.message),
    );
  });
});
