/**
 * `npm run bench -- operator`: many InferenceServices beside many pods of others, on the real control plane with kwok's
 * nodes. The operator is the compiled program with the chart's rights; what it asks of the API server is counted in the
 * audit log. Writes its section of docs/benchmarks.md with --write.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { resources } from '../../operator/kube/client.ts';
import { type OperatorProcess, startOperator } from '../../test/support/operator-process.ts';
import { wholeNumber } from '../whole-number.ts';
import { AuditLog, type Request } from './audit-log.ts';
import {
  type BenchCluster,
  foreignPods,
  inParallel,
  isTrue,
  service,
  startCluster,
  system,
} from './cluster.ts';
import { areKept, type Edits, type Figures, printReport, type Stay, writeReport } from './report.ts';

const root = path.resolve(import.meta.dirname, '../..');
const administrator = 'admin';

export async function benchOperator(argv: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      services: { type: 'string', default: '1000' },
      few: { type: 'string', default: '10' },
      'foreign-pods': { type: 'string', default: '10000' },
      edits: { type: 'string', default: '20' },
      seconds: { type: 'string', default: '120' },
      write: { type: 'boolean', default: false },
    },
  });
  const counts = {
    services: wholeNumber('--services', values.services),
    few: wholeNumber('--few', values.few),
    foreignPods: wholeNumber('--foreign-pods', values['foreign-pods']),
    edits: wholeNumber('--edits', values.edits),
    seconds: wholeNumber('--seconds', values.seconds),
  };
  const startedAt = performance.now();
  const progress = (line: string): void =>
    console.error(`${((performance.now() - startedAt) / 1000).toFixed(0).padStart(5)} s  ${line}`);
  const ends: (() => Promise<void>)[] = [];
  const after = (end: () => Promise<void>): void => void ends.unshift(end);
  try {
    const program = compiled(progress);
    const work = async (): Promise<void> => {
      const cluster = await startCluster(counts.services, progress, after);
      const figures = await measure(cluster, program, counts, progress, after);
      printReport(figures);
      if (values.write) writeReport(figures);
      if (!areKept(figures)) process.exitCode = 1;
    };
    await Promise.race([work(), interrupted()]);
  } finally {
    for (const end of ends) await end();
  }
}

/** Rejects when the benchmark is to end early: what it started is ended with it. */
function interrupted(): Promise<never> {
  return new Promise((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () => reject(new Error(`ended by ${signal}`)));
  });
}

/** As the image has it: type stripping alone takes memory. */
function compiled(progress: (line: string) => void): string {
  progress('compiling the operator');
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc');
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], {
    cwd: root,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`tsc -p tsconfig.build.json: ${stdout}`);
  return path.join(root, 'dist/operator/cli/sluice-operator.js');
}

interface Counts {
  readonly services: number;
  readonly few: number;
  readonly foreignPods: number;
  readonly edits: number;
  readonly seconds: number;
}

async function measure(
  cluster: BenchCluster,
  program: string,
  counts: Counts,
  progress: (line: string) => void,
  after: (end: () => Promise<void>) => void,
): Promise<Figures> {
  const { account, client, plane } = cluster;
  const audit = new AuditLog(plane.auditLog, [account, administrator]);
  after(async () => audit.close());
  const ask = (name: string) => client.get(resources.namespaces, { name });
  const start = () =>
    startOperator(
      { after: (end) => after(async () => void (await (end as () => Promise<void>)())) },
      cluster.operatorKubeconfig,
      [`--namespace=${system}`],
      program,
    );
  const asked = async (from: number): Promise<Request[]> =>
    (await audit.settled(ask))
      .slice(from)
      .filter(({ user, verb, resource }) => user === account && verb !== 'watch' && resource !== 'leases');
  const mark = async (): Promise<number> => (await audit.settled(ask)).length;
  /** The caches of nodes and pods of others are filled beside the work: idle() does not wait for them. */
  const quiet = async (operator: OperatorProcess): Promise<void> => {
    for (;;) {
      await operator.idle();
      const from = await mark();
      await sleep(5000);
      if ((await asked(from)).length === 0) return;
    }
  };
  const stay = async (operator: OperatorProcess): Promise<Stay> => {
    await quiet(operator);
    const from = await mark();
    const before = processorSeconds(operator.child.pid!);
    await sleep(counts.seconds * 1000);
    const requests = await asked(from);
    for (const { verb, uri } of requests) progress(`asked in the steady state: ${verb} ${uri}`);
    return {
      requestsPerSecond: requests.length / counts.seconds,
      processor: (processorSeconds(operator.child.pid!) - before) / counts.seconds,
      residentMebibytes: memoryOf(operator.child.pid!, 'VmRSS'),
      peakMebibytes: memoryOf(operator.child.pid!, 'VmHWM'),
    };
  };

  let operator = await start();
  await createServices(cluster, 0, counts.few);
  await allReady(cluster, counts.few, progress);
  await operator.idle();
  const few = await edit(cluster, audit, counts.few, counts.edits, progress);

  const from = await mark();
  await createServices(cluster, counts.few, counts.services);
  const seconds = await allReady(cluster, counts.services, progress);
  await operator.idle();
  const creation = (await asked(from)).length / Math.max(1, counts.services - counts.few);
  const alone = await stay(operator);
  progress(`at rest: ${JSON.stringify(alone)}`);
  const many = await edit(cluster, audit, counts.services, counts.edits, progress);

  await foreignPods(cluster, counts.foreignPods, progress);
  const beside = await stay(operator);
  progress(`beside foreign pods: ${JSON.stringify(beside)}`);
  const manyBeside = await edit(cluster, audit, counts.services, counts.edits, progress);

  progress('restarting the operator');
  await operator.idle();
  await operator.end();
  const again = await mark();
  operator = await start();
  await operator.said('controller started');
  await quiet(operator);
  const requests = await asked(again);
  const restarted = await stay(operator);
  progress(`after a restart: ${JSON.stringify(restarted)}`);
  await operator.end();
  return {
    ...counts,
    ready: counts.services,
    seconds,
    creation,
    restSeconds: counts.seconds,
    alone,
    beside,
    restarted,
    restartReads: requests.filter(({ verb }) => reads.includes(verb)).length,
    restartWrites: requests.filter(({ verb }) => !reads.includes(verb)).length,
    latencies: { few, many, manyBeside },
  };
}

const reads = ['get', 'list'];

async function createServices({ client }: BenchCluster, from: number, to: number): Promise<void> {
  await inParallel(to - from, async (index) => {
    await client.create(resources.inferenceServices, service(from + index));
  });
}

/** Gives the seconds that it took. */
async function allReady(
  { client, plane }: BenchCluster,
  count: number,
  progress: (line: string) => void,
): Promise<number> {
  const startedAt = performance.now();
  let failed: Error | undefined;
  void plane.failure.then((error) => {
    failed = error;
  });
  for (let before = -1; ; ) {
    if (failed !== undefined) throw failed;
    let ready = 0;
    let page: string | undefined;
    do {
      const list = await client.list(resources.inferenceServices, {
        limit: 500,
        ...(page === undefined ? {} : { continue: page }),
      });
      ready += list.items.filter(isReady).length;
      page = list.continue;
    } while (page !== undefined);
    if (ready !== before) progress(`${ready} of ${count} services are ready`);
    before = ready;
    if (ready === count) return (performance.now() - startedAt) / 1000;
    await sleep(count > 100 ? 10_000 : 500);
  }
}

// biome-ignore lint/suspicious/noExplicitAny: an InferenceService.
function isReady({ metadata, status }: any): boolean {
  return status?.observedGeneration === metadata.generation && status.conditions.some(isTrue('Ready'));
}

let edits = 0;

/** One service after the other gets a new revision; the times are the API server's own. */
async function edit(
  { account, client }: BenchCluster,
  audit: AuditLog,
  services: number,
  count: number,
  progress: (line: string) => void,
): Promise<Edits> {
  const ask = (name: string) => client.get(resources.namespaces, { name });
  const toDeployment: number[] = [];
  const toStatus: number[] = [];
  let requests = 0;
  for (let index = 0; index < count; index++) {
    const from = (await audit.settled(ask)).length;
    const { metadata } = service(Math.floor((index * services) / count));
    const ref = { namespace: metadata.namespace!, name: metadata.name };
    const servedNames = [`edit-${++edits}`];
    await client.mergePatch(resources.inferenceServices, ref, { spec: { model: { servedNames } } });
    for (;;) {
      const object = await client.get(resources.inferenceServices, ref);
      if (isReady(object)) break;
      await sleep(100);
    }
    const since = (await audit.settled(ask)).slice(from);
    const own = since.filter(({ user, resource }) => user === account && resource !== 'leases');
    const edited = since.find(({ user, verb }) => user === administrator && verb === 'patch')!;
    const applied = own.find(
      ({ resource, uri, verb }) => resource === 'deployments' && verb === 'patch' && !uri.includes('dryRun'),
    )!;
    const told = own.find(({ resource }) => resource === 'inferenceservices/status')!;
    toDeployment.push(applied.atMs - edited.atMs);
    toStatus.push(told.atMs - edited.atMs);
    requests += own.filter(({ verb }) => verb !== 'watch').length;
  }
  progress(`${count} edits at ${services} services`);
  return { toDeployment, toStatus, requests: requests / count };
}

function memoryOf(pid: number, field: 'VmRSS' | 'VmHWM'): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(status)?.[1]) / 1024;
}

/** User and system time; Linux counts them in hundredths. */
function processorSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
