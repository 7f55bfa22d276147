/**
 * `npm start`: a cluster on this machine with Sluice in it, the tiny example applied, and told how to reach it. Stays up
 * until a signal. Exit codes: 0 stopped by a signal, 1 something failed, 2 wrong options or a missing tool.
 */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { KubeObject } from '../../operator/kube/client.ts';
import { SluiceError } from '../../runtime/errors.ts';
import { type Cluster, startCluster } from '../cluster.ts';
import { startedByNpm } from '../config.ts';
import { kubectlApply, readManifests } from '../manifests.ts';
import { help, parseStartOptions } from './options.ts';
import { createReport, type Report } from './report.ts';
import { waitUntilServed } from './served.ts';
import { welcome } from './welcome.ts';

/** Relative paths in examples, and the process node, start from here. */
const checkout = path.resolve(import.meta.dirname, '../..');
const example = 'examples/tiny.yaml';
const parentCheckMs = 1_000;

async function main(report: Report): Promise<number> {
  const options = parseStartOptions(process.argv.slice(2));
  if (options.help) {
    process.stdout.write(help);
    return 0;
  }
  process.chdir(checkout);
  const interrupted = new AbortController();
  stopOnSignals(interrupted, report);

  let cluster: Cluster | undefined;
  try {
    cluster = await startCluster({
      ...options,
      step: report.step,
      onMessage: (line) => report.line(`  ${line}`),
      signal: interrupted.signal,
    });
    const { failure } = cluster;
    const service = await Promise.race([
      serveExample(cluster, report, interrupted.signal),
      rejectWith(failure),
    ]);
    report.line(welcome(cluster, service));
    const died = await Promise.race([failure, aborted(interrupted.signal)]);
    if (died instanceof SluiceError) throw died;
    return 0;
  } catch (error) {
    if (interrupted.signal.aborted) return 0;
    throw error;
  } finally {
    if (cluster !== undefined) {
      await report.step('shutdown', () => cluster!.stop());
      report.line('Nothing is left behind but the cache of built programs.');
    }
  }
}

async function serveExample(cluster: Cluster, report: Report, signal: AbortSignal) {
  const file = path.join(checkout, example);
  await report.step(`kubectl apply -f ${example}`, () => kubectlApply(cluster.plane, file));
  const { namespace = 'default', name } = readManifests(file).find(isInferenceService)!.metadata;
  return report.step(`InferenceService ${namespace}/${name} is Ready and answers`, (now) =>
    waitUntilServed(cluster, { namespace, name }, now, signal),
  );
}

function isInferenceService({ kind }: KubeObject): boolean {
  return kind === 'InferenceService';
}

function stopOnSignals(interrupted: AbortController, report: Report): void {
  const stop = (reason: string) => {
    if (interrupted.signal.aborted) {
      // The guard removes what an orderly end would have.
      report.line('stopping at once');
      process.exit(1);
    }
    report.line(`${reason}: stopping`);
    interrupted.abort();
  };
  process.on('SIGINT', () => stop('interrupted'));
  process.on('SIGTERM', () => stop('terminated'));
  process.on('SIGHUP', () => stop('the terminal is gone'));
  if (startedByNpm()) {
    const parent = process.ppid;
    setInterval(() => {
      if (process.ppid !== parent && !interrupted.signal.aborted) stop('npm is gone');
    }, parentCheckMs).unref();
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

async function rejectWith(failure: Promise<SluiceError>): Promise<never> {
  throw await failure;
}

try {
  process.exitCode = await main(createReport(process.stdout));
} catch (error) {
  const known = error instanceof SluiceError;
  process.stderr.write(`npm start: ${known ? error.message : (error as Error).stack}\n`);
  process.exitCode = known ? error.exitCode : 1;
}
// What still waits for the API server must not hold us.
await sleep(0);
process.exit();
