/**
 * The operator as users run it: a process of its own against a control plane. Started by a test, ended with it.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

const sources = path.resolve(import.meta.dirname, '../../operator/cli/sluice-operator.ts');

export interface OperatorProcess {
  readonly child: ChildProcess;
  /** Its log, one parsed record a line. */
  readonly log: readonly Record<string, unknown>[];
  readonly stderr: () => string;
  readonly healthPort: number;
  readonly metricsPort: number;
  /** Sends the signal and waits for the end; gives the exit code, null for one that the signal ended. */
  end(signal?: NodeJS.Signals): Promise<number | null>;
  /** Waits until the log holds such a message. */
  said(message: string): Promise<void>;
  /** Waits until it has reconciled at least once, and for a while has had nothing to do. */
  idle(): Promise<void>;
}

/** Resolves when the operator has told its ports. `program` is another build of it. */
export async function startOperator(
  t: Pick<TestContext, 'after'>,
  kubeconfig: string,
  args: readonly string[] = [],
  program = sources,
): Promise<OperatorProcess> {
  const child = spawn(
    process.execPath,
    [program, '--kubeconfig', kubeconfig, '--host=127.0.0.1', '--health-port=0', '--metrics-port=0', ...args],
    // Nothing of the test's own environment may configure it.
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env.PATH ?? '', HOME: process.env.HOME ?? '' },
    },
  );
  const log: Record<string, unknown>[] = [];
  let stderr = '';
  let rest = '';
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) log.push(JSON.parse(line));
  });
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const ended = once(child, 'exit').then(([code]) => code as number | null);
  t.after(async () => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGCONT');
      child.kill('SIGKILL');
    }
    await ended;
  });
  const said = async (message: string): Promise<void> => {
    await until(`the operator logs ${JSON.stringify(message)}`, () => {
      assert.equal(child.exitCode, null, `the operator ended: ${stderr}`);
      return log.some((record) => record.msg === message);
    });
  };
  await said('operator started');
  const started = log.find((record) => record.msg === 'operator started')!;
  return {
    child,
    log,
    stderr: () => stderr,
    healthPort: Number(started.healthPort),
    metricsPort: Number(started.metricsPort),
    async end(signal = 'SIGTERM') {
      child.kill(signal);
      return await ended;
    },
    said,
    async idle() {
      let before = '';
      let still = 0;
      await until('the operator is idle', async () => {
        const text = await (await fetch(`http://127.0.0.1:${started.metricsPort}/metrics`)).text();
        const now = text
          .split('\n')
          .filter((line) => /^sluice_operator_(reconciles_total|queue_depth)/.test(line))
          .join('\n');
        const busy = !now.includes('reconciles_total{') || !now.includes('queue_depth 0');
        still = !busy && now === before ? still + 1 : 0;
        before = now;
        return still >= 10;
      });
    },
  };
}

/** Polls until it is true (or gives something); fails after a time that only a broken program needs. */
export async function until<T>(
  what: string,
  check: () => T | undefined | Promise<T | undefined>,
  timeoutMs = 120_000,
): Promise<NonNullable<T>> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const result = await check();
    if (result) return result;
    if (Date.now() > deadline) assert.fail(`not seen in ${timeoutMs / 1000} s: ${what}`);
    await sleep(50);
  }
}
