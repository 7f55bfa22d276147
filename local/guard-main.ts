/**
 * The guard's own process: reads the list from standard input, one JSON array [verb, kind, name] a line, and at its end
 * removes what is still listed. See guard.ts.
 */
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { createInterface } from 'node:readline';

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});

const listed: Record<string, Set<string>> = { group: new Set(), address: new Set(), folder: new Set() };

for await (const line of createInterface({ input: process.stdin })) {
  const [verb, kind, name] = JSON.parse(line) as [string, string, string];
  if (verb === 'add') listed[kind]?.add(name);
  else listed[kind]?.delete(name);
}

// Killed, not asked: whoever would have waited for them is dead.
for (const group of listed.group!) {
  try {
    process.kill(-Number(group), 'SIGKILL');
  } catch {
    // No such group any more.
  }
}
for (const address of listed.address!) {
  spawnSync('ip', ['address', 'delete', address, 'dev', 'lo'], { stdio: 'ignore' });
}
for (const folder of listed.folder!)
  rmSync(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
