/** The figures of the operator's benchmark as a table: on the terminal, and in docs/benchmarks.md. */
import { cpus } from 'node:os';
import { writeSection } from '../docs-section.ts';
import { median } from '../peers/report.ts';

/** Some time in which nobody changes anything. */
export interface Stay {
  /** Besides leases and watches. */
  readonly requestsPerSecond: number;
  /** Of one core. */
  readonly processor: number;
  readonly residentMebibytes: number;
  /** Since the process began. */
  readonly peakMebibytes: number;
}

/** Milliseconds of each edit, from the API server's answer to it to its answer to the operator. */
export interface Edits {
  readonly toDeployment: readonly number[];
  readonly toStatus: readonly number[];
  /** Of the operator, for one edit until the service was ready again. */
  readonly requests: number;
}

export interface Figures {
  readonly services: number;
  readonly few: number;
  readonly foreignPods: number;
  readonly edits: number;
  /** Services that became ready, and in what time. */
  readonly ready: number;
  readonly seconds: number;
  /** Requests of the operator for one service until it was ready. */
  readonly creation: number;
  readonly restSeconds: number;
  readonly alone: Stay;
  readonly beside: Stay;
  readonly restarted: Stay;
  readonly restartReads: number;
  readonly restartWrites: number;
  readonly latencies: { readonly few: Edits; readonly many: Edits; readonly manyBeside: Edits };
}

interface Row {
  readonly what: string;
  readonly measured: string;
  /** In words, and whether it is kept. */
  readonly bound?: readonly [string, boolean];
}

function rowsOf(figures: Figures): Row[] {
  const { services, few, foreignPods, alone, beside, restarted, latencies } = figures;
  const requests = Math.max(...[alone, beside, restarted].map((each) => each.requestsPerSecond));
  const ratio = (edits: Edits, of: 'toDeployment' | 'toStatus'): string =>
    (median(edits[of]) / median(latencies.few[of])).toFixed(2);
  const memory = (what: string, { residentMebibytes, peakMebibytes }: Stay): Row => ({
    what: `resident memory ${what}: at rest, and at most since the process began`,
    measured: `${megabytes(residentMebibytes).toFixed(0)} MB, ${megabytes(peakMebibytes).toFixed(0)} MB`,
    bound: ['< 300 MB', megabytes(peakMebibytes) < 300],
  });
  const others = `${foreignPods} pods of others`;
  return [
    {
      what: 'services that became ready',
      measured: `${figures.ready} of ${services}`,
      bound: ['all', figures.ready === services],
    },
    {
      what: `requests a second besides leases and watches, the most of three times ${figures.restSeconds} s at rest`,
      measured: requests.toFixed(3),
      bound: ['< 0.2', requests < 0.2],
    },
    {
      what: 'writes besides leases after a restart',
      measured: String(figures.restartWrites),
      bound: ['none', figures.restartWrites === 0],
    },
    { what: 'reads after a restart: pages of lists', measured: String(figures.restartReads) },
    memory(`with ${services} services`, alone),
    memory(`beside ${others}`, beside),
    memory('after a restart beside them', restarted),
    {
      what: 'processor at rest beside them, of one core',
      measured: `${(beside.processor * 100).toFixed(1)}%`,
    },
    {
      what: 'requests from the creation of a service until it is ready',
      measured: figures.creation.toFixed(1),
    },
    {
      what: 'requests from an edit until the service is ready again',
      measured: latencies.many.requests.toFixed(1),
    },
    ...(['toDeployment', 'toStatus'] as const).flatMap((of) => {
      const until = of === 'toDeployment' ? 'its Deployment is applied' : 'the status speaks of it';
      return [
        {
          what: `time from an edit until ${until}, ${services} services / ${few}`,
          measured: ratio(latencies.many, of),
        },
        { what: `the same beside ${others} / ${few} alone`, measured: ratio(latencies.manyBeside, of) },
      ];
    }),
  ];
}

const megabytes = (mebibytes: number): number => (mebibytes * 1024 * 1024) / 1e6;

function table(figures: Figures): string[] {
  const lines = rowsOf(figures).map(({ what, measured, bound }) => {
    const words = bound === undefined ? '' : bound[1] ? bound[0] : `**${bound[0]}: not kept**`;
    return [what, measured, words];
  });
  const head = ['what', 'measured', 'bound'];
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`);
}

/** Whether all bounds are kept. */
export function areKept(figures: Figures): boolean {
  return rowsOf(figures).every(({ bound }) => bound === undefined || bound[1]);
}

export function printReport(figures: Figures): void {
  console.log(table(figures).join('\n'));
  for (const [name, edits] of Object.entries(figures.latencies))
    console.log(
      `${name}: ${median(edits.toDeployment).toFixed(1)} ms to the Deployment, ${median(edits.toStatus).toFixed(1)} ms to the status, ${edits.requests.toFixed(1)} requests an edit`,
    );
}

export function writeReport(figures: Figures): void {
  const { few, latencies, edits } = figures;
  const cores = cpus();
  writeSection('operator', [
    `${cores[0]?.model ?? 'unknown processor'}, ${cores.length} cores shared with the control plane and other programs, Node ${process.version}. Latencies are`,
    `medians of ${edits} edits, one after the other, by the API server's own times (at ${few} services ${median(latencies.few.toDeployment).toFixed(0)} ms to the`,
    `Deployment, ${median(latencies.few.toStatus).toFixed(0)} ms to the status): only their ratios mean anything.`,
    '',
    ...table(figures),
  ]);
}
