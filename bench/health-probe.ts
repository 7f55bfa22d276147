/**
 * A process that asks servers for one path at a steady pace, each time over a kept connection and over a new one. Enters:
 * addresses in JSON as the first argument, then lines of seconds on standard input. Leaves: for each line a line of JSON,
 * milliseconds of every answer by address, or in words what went wrong.
 */
import { Agent, get } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

/** Milliseconds of each answer. */
export type ProbeReport = Readonly<Record<string, { readonly kept: number[]; readonly fresh: number[] }>>;

/** Of each address, over either kind of connection. */
const intervalMs = 50;

const kept = new Agent({ keepAlive: true, maxSockets: 1 });

function timed(url: string, agent: Agent | false): Promise<number> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    get(url, { agent }, (response) => {
      response.resume();
      response.on('end', () => {
        if (response.statusCode === 200) resolve(performance.now() - start);
        else reject(new Error(`${url}: status ${response.statusCode}`));
      });
    }).on('error', reject);
  });
}

/** Asks at its pace whether or not earlier answers have come: a stall delays all that fall into it. */
async function probe(url: string, agent: Agent | false, seconds: number, delayMs: number): Promise<number[]> {
  const answers: Promise<number>[] = [];
  const start = performance.now() + delayMs;
  for (let at = start; at < start + seconds * 1000; at += intervalMs) {
    await sleep(Math.max(0, at - performance.now()));
    const answer = timed(url, agent);
    answer.catch(() => undefined);
    answers.push(answer);
  }
  return Promise.all(answers);
}

const urls = JSON.parse(process.argv[2] ?? '[]') as string[];
for await (const line of createInterface({ input: process.stdin })) {
  const seconds = Number(line);
  // Not all at the same moment: they would wait for each other.
  const entries = urls.map(async (url, index) => {
    const delayMs = (intervalMs * index) / urls.length;
    const [keptMs, freshMs] = await Promise.all([
      probe(url, kept, seconds, delayMs),
      probe(url, false, seconds, delayMs + intervalMs / urls.length / 2),
    ]);
    return [url, { kept: keptMs, fresh: freshMs }] as const;
  });
  console.log(JSON.stringify(Object.fromEntries(await Promise.all(entries)) satisfies ProbeReport));
}
process.exit(0);
