/**
 * `npm run bench -- peers`: Sluice beside llama.cpp and OpenVINO GenAI on SmolLM2-135M-Instruct (Q4_1), in one run. The
 * engines take turns on each workload, so that a machine whose speed drifts treats them alike; figures are medians and
 * ratios. Writes docs/benchmarks.md's table and chart with --write.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { cpus, homedir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { installPeers } from './install.ts';
import { type Measured, printReport, writeReport } from './report.ts';
import { type WorkItem, workloads } from './workloads.ts';

interface Peer {
  readonly name: string;
  readonly details: string;
  run(items: readonly WorkItem[]): Promise<number>;
  close(): void;
}

async function startPeer(command: string, args: readonly string[], cwd: string): Promise<Peer> {
  const child: ChildProcessWithoutNullStreams = spawn(command, args, {
    cwd,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  let errors = '';
  child.stderr.on('data', (data) => {
    errors = `${errors}${data}`.slice(-4000);
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async (): Promise<Record<string, unknown>> => {
    for (;;) {
      const { value, done } = await lines.next();
      if (done) throw new Error(`${command} ended: ${errors}`);
      // Libraries print to stdout too: what is no JSON object is theirs.
      if (String(value).startsWith('{')) return JSON.parse(value);
    }
  };
  const ready = await answer();
  return {
    name: String(ready.name),
    details: String(ready.details),
    async run(items) {
      child.stdin.write(`${JSON.stringify(items)}\n`);
      return Number((await answer()).seconds);
    },
    close: () => child.kill(),
  };
}

export async function benchPeers(argv: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      rounds: { type: 'string', default: '5' },
      only: { type: 'string', default: '' },
      threads: { type: 'string', default: String(cpus().length) },
      cache: { type: 'string', default: path.join(homedir(), '.cache/sluice/bench') },
      flags: { type: 'string', default: '' },
      beside: { type: 'string', default: 'llama.cpp,openvino' },
      write: { type: 'boolean', default: false },
    },
  });
  const { model, python, llamaCppFolder } = installPeers(values.cache);
  const here = import.meta.dirname;
  const flags = values.flags.split(' ').filter((flag) => flag !== '');
  console.error('loading the engines ...');
  const { threads } = values;
  const own = path.join(here, 'sluice-peer.ts');
  const peers = [await startPeer(process.execPath, [own, model, threads, JSON.stringify(flags)], here)];
  const others: Readonly<Record<string, () => Promise<Peer>>> = {
    'llama.cpp': () =>
      startPeer(process.execPath, [path.join(llamaCppFolder, 'peer.mjs'), model, threads], llamaCppFolder),
    openvino: () => startPeer(python, [path.join(here, 'openvino-peer.py'), model, threads], here),
  };
  for (const name of values.beside.split(',')) {
    const start = others[name];
    if (start === undefined)
      throw new Error(
        `--beside "${name}": expected some of ${Object.keys(others).join(',')}, for example --beside openvino`,
      );
    peers.push(await start());
  }
  try {
    const measured: Measured[] = [];
    for (const [number, workload] of workloads.entries()) {
      if (!workload.name.includes(values.only)) continue;
      const speeds = peers.map((): number[] => []);
      // Round 0 warms up and is not counted.
      for (let round = 0; round <= Number(values.rounds); round++) {
        for (const [index, peer] of peers.entries()) {
          // No two runs may find each other's prompts cached.
          const seed = (number * 100 + round) * 100 + index;
          const { items, before, baseline, tokens } = workload.make(seed);
          if (before) await peer.run(before);
          const taken = baseline ? await peer.run(baseline) : 0;
          const seconds = (await peer.run(items)) - taken;
          if (round > 0) speeds[index]!.push(tokens / seconds);
        }
        process.stderr.write(`\r${workload.name}: round ${round} of ${values.rounds}   `);
      }
      process.stderr.write('\r\x1b[K');
      measured.push({ workload: workload.name, unit: workload.unit, speeds });
    }
    printReport(peers, measured);
    if (values.write) writeReport(peers, measured);
  } finally {
    for (const peer of peers) peer.close();
  }
}
