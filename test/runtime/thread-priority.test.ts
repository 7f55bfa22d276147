/** Threads give way to the event loop, whatever priority the program was started with. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';

const moduleFile = path.resolve(import.meta.dirname, '../../runtime/thread-priority.ts');
const skip = process.platform === 'linux' ? false : 'threads have a priority of their own on Linux alone';

for (const [kind, below] of [
  ['engine', 5],
  ['reading', 10],
] as const)
  test(`${kind}: ${below} below the program's own priority`, { skip }, () => {
    const code = `
      import os from 'node:os';
      import { giveWay } from ${JSON.stringify(moduleFile)};
      const before = os.getPriority();
      giveWay('${kind}');
      console.log(before, os.getPriority());`;
    const told = execFileSync('nice', ['-n', '3', process.execPath, '--input-type=module', '-e', code]);
    const [before, after] = told.toString().split(' ').map(Number);
    assert.equal(before, Math.min(19, os.getPriority() + 3));
    assert.equal(after, Math.min(19, before! + below));
  });
