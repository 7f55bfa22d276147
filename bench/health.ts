/**
 * `npm run bench -- health [model]`: how long /health takes while decode is saturated and prompts of five megabytes arrive,
 * beside a server that does nothing else and is asked in turn with it: what the machine itself delays. Streams and prompts
 * come from this process, /health is asked by another. The embedded model unless another is given.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent, type IncomingMessage, request } from 'node:http';
import { cpus } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { writeSection } from './docs-section.ts';
import type { ProbeReport } from './health-probe.ts';
import { type Served, startServed } from './served.ts';
import { wholeNumber } from './whole-number.ts';

const streams = 32;
const promptBytes = 5_000_000;

/** A server that does nothing but answer, in a process of its own. */
const bare = `
import { createServer } from 'node:http';
const server = createServer((request, response) => {
  response.setHeader('content-type', 'application/json').end('{"status":"ok"}');
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
`;

interface Counts {
  tokens: number;
  refused: number;
  tokenised: number;
}

const agent = new Agent({ keepAlive: true });

/** Plain HTTP: what the client costs is taken from the same cores. Rejects for another status than expected. */
async function post(
  url: string,
  body: Buffer,
  expected: number,
  signal: AbortSignal,
  onData?: (chunk: Buffer) => void,
): Promise<void> {
  const headers = { 'content-type': 'application/json', 'content-length': body.length };
  const sent = request(url, { method: 'POST', headers, agent, signal });
  sent.end(body);
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  if (response.statusCode !== expected)
    throw new Error(
      `${url}: status ${response.statusCode} where ${expected} was expected: ${await text(response)}`,
    );
  for await (const chunk of response) onData?.(chunk);
}

/** Asks again and again until the signal. */
async function again(signal: AbortSignal, once: (index: number) => Promise<void>): Promise<void> {
  for (let index = 0; !signal.aborted; index++)
    try {
      await once(index);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
}

function eventsIn(chunk: Buffer): number {
  let count = 0;
  for (let at = chunk.indexOf('data: '); at >= 0; at = chunk.indexOf('data: ', at + 6)) count++;
  return count;
}

/** As many streams as the batch takes, and the long prompts: some that no context holds, some that are tokenised whole. */
function load({ url, model }: Served, counts: Counts, signal: AbortSignal): Promise<unknown> {
  const stream = (seed: number) =>
    again(signal, async (index) => {
      const fields = {
        prompt: `Stream ${seed}, part ${index}:`,
        max_tokens: 300 + 7 * ((seed * 5 + index) % 32),
        seed,
      };
      const body = Buffer.from(JSON.stringify({ model, stream: true, ignore_eos: true, ...fields }));
      await post(`${url}/v1/completions`, body, 200, signal, (chunk) => {
        counts.tokens += eventsIn(chunk);
      });
    });
  const prompt = 'The ferry leaves at nine. '.repeat(Math.ceil(promptBytes / 26));
  const long = (route: string, fields: object, expected: number, count: 'refused' | 'tokenised') => {
    const body = Buffer.from(JSON.stringify({ model, ...fields }));
    return again(signal, async () => {
      await post(url + route, body, expected, signal);
      counts[count]++;
    });
  };
  return Promise.all([
    ...Array.from({ length: streams }, (_, seed) => stream(seed)),
    long('/v1/completions', { prompt }, 400, 'refused'),
    long('/v1/chat/completions', { messages: [{ role: 'user', content: prompt }] }, 400, 'refused'),
    long('/tokenize', { prompt }, 200, 'tokenised'),
  ]);
}

const percentile = (sorted: readonly number[], part: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]!;

function row(name: string, milliseconds: readonly number[]): string {
  const sorted = milliseconds.toSorted((a, b) => a - b);
  const figures = [percentile(sorted, 0.5), percentile(sorted, 0.99), sorted.at(-1)!];
  return `| ${name} | ${sorted.length} | ${figures.map((each) => each.toFixed(1)).join(' | ')} |`;
}

function rows(name: string, report: ProbeReport, health: string, other: string): string[] {
  return [
    row(`/health, kept connection, ${name}`, report[health]!.kept),
    row(`/health, new connections, ${name}`, report[health]!.fresh),
    row(`a bare server, kept connection, ${name}`, report[other]!.kept),
    row(`a bare server, new connections, ${name}`, report[other]!.fresh),
  ];
}

async function firstLine(child: ChildProcess): Promise<string> {
  const [line] = await once(createInterface({ input: child.stdout! }), 'line');
  return String(line);
}

export async function benchHealth(argv: readonly string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { seconds: { type: 'string', default: '30' }, write: { type: 'boolean', default: false } },
  });
  const seconds = wholeNumber('--seconds', values.seconds);
  const [model] = positionals;
  const children: ChildProcess[] = [];
  const start = (args: readonly string[]): ChildProcess => {
    const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    children.push(child);
    return child;
  };
  console.error('loading the model ...');
  const served = await startServed([
    `--max-batch-size=${streams}`,
    ...(model === undefined ? [] : [`--model-path=${model}`]),
  ]);
  try {
    const health = `${served.url}/health`;
    const other = `http://127.0.0.1:${await firstLine(start(['--input-type=module', '--eval', bare]))}/`;
    const prober = start([
      path.join(import.meta.dirname, 'health-probe.ts'),
      JSON.stringify([health, other]),
    ]);
    const probe = async (length: number): Promise<ProbeReport> => {
      prober.stdin!.write(`${length}\n`);
      return JSON.parse(await firstLine(prober)) as ProbeReport;
    };
    await probe(1);
    console.error(`/health without load, ${seconds} s ...`);
    const idle = await probe(seconds);
    const counts: Counts = { tokens: 0, refused: 0, tokenised: 0 };
    const stop = new AbortController();
    // Ends by its failure alone, or when it is stopped.
    const loading = load(served, counts, stop.signal);
    while (counts.tokens < streams * 10) await Promise.race([sleep(20), loading]);
    console.error(`/health under load, ${seconds} s ...`);
    Object.assign(counts, { tokens: 0, refused: 0, tokenised: 0 });
    const loaded = await Promise.race([probe(seconds), loading.then(() => probe(0))]);
    const rate = (counts.tokens / seconds).toFixed(0);
    stop.abort();
    await loading;
    const lines = [
      `${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} cores, Node ${process.version}, ${model === undefined ? 'the embedded model' : path.basename(model)}. In ${seconds} s ${streams}`,
      `streams took ${rate} tokens a second, ${counts.refused} prompts of 5 MB were refused as too long and ${counts.tokenised} tokenised.`,
      '',
      '| milliseconds | requests | p50 | p99 | most |',
      '|---|---|---|---|---|',
      ...rows('without load', idle, health, other),
      ...rows('under load', loaded, health, other),
    ];
    console.log(lines.join('\n'));
    if (values.write) writeSection('health', lines);
  } finally {
    served.close();
    for (const child of children) child.kill('SIGKILL');
  }
}
