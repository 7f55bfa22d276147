/** Two real processes, a real API server, SIGSTOP and SIGCONT; the audit log is the witness. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { controlPlane, writeVerbs } from '../support/control-plane.ts';

interface Candidate {
  readonly process: ChildProcess;
  readonly lines: string[];
  /** Resolves with the line when one that matches is printed after the call. */
  next(pattern: RegExp): Promise<string>;
}

function start(t: TestContext, kubeconfig: string, namespace: string, identity: string): Candidate {
  const script = path.join(import.meta.dirname, 'controller-leader-process.ts');
  const child = spawn(process.execPath, [script, kubeconfig, namespace, identity], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const lines: string[] = [];
  const waiting = new Set<{ pattern: RegExp; resolve: (line: string) => void }>();
  createInterface({ input: child.stdout }).on('line', (line) => {
    lines.push(line);
    for (const waiter of waiting) {
      if (waiter.pattern.test(line)) {
        waiting.delete(waiter);
        waiter.resolve(line);
      }
    }
  });
  const ended = new Promise<never>((_resolve, reject) => {
    child.once('exit', (code, signal) =>
      reject(new Error(`${identity} ended: ${code ?? signal}; ${lines.join('; ')}`)),
    );
  });
  ended.catch(() => {});
  return {
    process: child,
    lines,
    next: (pattern) =>
      Promise.race([ended, new Promise<string>((resolve) => waiting.add({ pattern, resolve }))]),
  };
}

test('a leader that is stopped and continued writes nothing after the other has taken over', async (t) => {
  const plane = await controlPlane(t);
  const namespace = await plane.namespace(t);
  const a = start(t, plane.kubeconfig, namespace, 'a');
  await a.next(/^term 0$/);
  const b = start(t, plane.kubeconfig, namespace, 'b');
  let [leader, follower] = [a, b];
  for (let round = 0; round < 2; round += 1) {
    // Long enough to have written, and to be in the middle of it.
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const taken = follower.next(/^term \d+$/);
    leader.process.kill('SIGSTOP');
    await taken;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const noticed = leader.next(/^stopped leading$/);
    leader.process.kill('SIGCONT');
    await noticed;
    [leader, follower] = [follower, leader];
  }
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  for (const { process } of [a, b]) process.kill('SIGTERM');
  await Promise.all([a, b].map(({ process }) => new Promise((resolve) => process.once('exit', resolve))));

  const events = await plane.auditEvents({ namespace, resource: 'configmaps', verbs: writeVerbs });
  const writes = events
    .filter(({ objectRef }) => objectRef?.name?.startsWith('term-'))
    .sort((one, two) => one.requestReceivedTimestamp.localeCompare(two.requestReceivedTimestamp))
    .map(({ objectRef, userAgent }) => ({
      term: Number(objectRef!.name!.slice('term-'.length)),
      by: userAgent,
    }));
  const byTerm = Map.groupBy(writes, ({ term }) => term);
  assert.ok(byTerm.size >= 3, `writes in ${byTerm.size} terms`);
  for (const [term, all] of byTerm)
    assert.equal(new Set(all.map(({ by }) => by)).size, 1, `writers in term ${term}`);
  // The whole log, in order: whoever has begun a term is followed by no write of an earlier one.
  let latest = -1;
  for (const { term, by } of writes) {
    assert.ok(term >= latest, `${by} wrote for term ${term} after a write of term ${latest}`);
    latest = Math.max(latest, term);
  }
  const leases = await plane.auditEvents({ namespace, resource: 'leases', verbs: writeVerbs });
  const lateRenewals = leases.filter(({ responseStatus }) => (responseStatus?.code ?? 0) >= 400);
  t.diagnostic(
    `${writes.length} writes in ${byTerm.size} terms; ${lateRenewals.length} refused writes of the lease`,
  );
});
