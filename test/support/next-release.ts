/**
 * The release after this one, as a checkout of its own: the operator's sources with a few lines changed, so that a test can
 * run two versions of the real program one after the other. Enters: the lines to change, by file. Leaves: a folder.
 */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';

const checkout = path.resolve(import.meta.dirname, '../..');

/** What stands in a file exactly once, and what is to stand there. */
export type Changes = Readonly<Record<string, readonly (readonly [from: string, to: string])[]>>;

export function nextRelease(t: TestContext, changes: Changes): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-next-'));
  t.after(() => rmSync(folder, { recursive: true }));
  for (const part of ['operator', 'runtime', 'package.json'])
    cpSync(path.join(checkout, part), path.join(folder, part), { recursive: true });
  symlinkSync(path.join(checkout, 'node_modules'), path.join(folder, 'node_modules'));
  for (const [name, edits] of Object.entries(changes)) {
    const file = path.join(folder, name);
    let text = readFileSync(file, 'utf8');
    for (const [from, to] of edits) {
      assert.equal(text.split(from).length, 2, `${name} holds ${JSON.stringify(from)} once`);
      text = text.replace(from, () => to);
    }
    writeFileSync(file, text);
  }
  return folder;
}
