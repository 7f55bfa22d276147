/** Files that follow from the code are as the code says. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { generatedFiles } from '../../scripts/generated-files.ts';

const files = Object.entries(await generatedFiles());
const root = path.resolve(import.meta.dirname, '../..');

for (const [file, text] of files) {
  test(`${file} is what npm run generate would write`, () => {
    assert.equal(readFileSync(path.join(root, file), 'utf8'), text);
  });
}

test('no template action of Helm hides in the chart of generated definitions', () => {
  for (const [file, text] of files) if (file.startsWith('charts/')) assert.ok(!text.includes('{{'), file);
});
