/**
 * `npm run bench -- soak [requests]`: short requests of mixed shapes to the whole program over HTTP, its resident memory
 * after each hundredth of them, as progress and with --write as the curve in docs/soak.svg. Says how the last quarter lies
 * above the second. The embedded model unless another is given.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { type Served, startServed } from './served.ts';
import { wholeNumber } from './whole-number.ts';

const root = path.resolve(import.meta.dirname, '..');
const samples = 100;
const clients = 16;

interface Sample {
  readonly requests: number;
  readonly mebibytes: number;
}

/** Bodies differ in length, number of choices, form, streaming and sampling; some clients leave early. */
function bodyOf(index: number): object {
  const words = Array.from({ length: 1 + ((index * 37) % 120) }, (_, i) => `w${(index * 13 + i * 7) % 200}`);
  return {
    prompt: words.join(' '),
    max_tokens: 1 + (index % 24),
    temperature: index % 3 === 0 ? 0 : 1,
    n: index % 11 === 0 ? 3 : 1,
    stream: index % 2 === 0,
    ...(index % 5 === 0 ? { logprobs: 5, presence_penalty: 0.5 } : {}),
    ...(index % 7 === 0 ? { stop: ['the', '\n\n'] } : {}),
  };
}

const residentMebibytes = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

export async function benchSoak(argv: readonly string[]): Promise<void> {
  const { positionals, values } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { model: { type: 'string' }, write: { type: 'boolean', default: false } },
  });
  const total = wholeNumber('requests', positionals[0] ?? '10000');
  console.error('loading the model ...');
  // A small cache is touched whole within the first requests: what grows afterwards is no cache.
  const served = await startServed([
    '--kv-cache-memory=16MiB',
    ...(values.model === undefined ? [] : [`--model-path=${values.model}`]),
  ]);
  try {
    const curve = await run(served, total);
    const mean = (part: readonly Sample[]) =>
      part.reduce((sum, each) => sum + each.mebibytes, 0) / part.length;
    const quarter = curve.length / 4;
    const second = mean(curve.slice(quarter, 2 * quarter));
    const last = mean(curve.slice(3 * quarter));
    console.log(
      `${total} requests: ${second.toFixed(1)} MiB resident in the second quarter, ${last.toFixed(1)} in the last, ratio ${(last / second).toFixed(3)}`,
    );
    if (values.write) writeFileSync(path.join(root, 'docs/soak.svg'), chart(curve));
  } finally {
    served.close();
  }
}

async function run({ url, pid, model }: Served, total: number): Promise<Sample[]> {
  const curve: Sample[] = [];
  const every = Math.ceil(total / samples);
  let next = 0;
  let done = 0;
  const client = async () => {
    while (next < total) {
      const index = next++;
      const leaves = index % 17 === 0;
      const body = JSON.stringify({ model, ...bodyOf(index) });
      const signal = leaves ? AbortSignal.timeout(20) : null;
      await fetch(`${url}/v1/completions`, { method: 'POST', body, signal })
        .then((response) => response.text())
        .catch((error) => {
          if (!leaves) throw error;
        });
      done++;
      if (done % every > 0) continue;
      curve.push({ requests: done, mebibytes: residentMebibytes(pid) });
      const now = curve.at(-1)!.mebibytes.toFixed(0);
      process.stderr.write(`\r\x1b[K${done} of ${total} requests, ${now} MiB resident `);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  process.stderr.write('\r\x1b[K');
  return curve;
}

function chart(curve: readonly Sample[]): string {
  const [width, height, margin] = [860, 320, 50];
  const most = Math.max(...curve.map((each) => each.mebibytes)) * 1.1;
  const last = curve.at(-1)!.requests;
  const x = (requests: number) => margin + (requests / last) * (width - 2 * margin);
  const y = (mebibytes: number) => height - margin - (mebibytes / most) * (height - 2 * margin);
  const points = curve.map((each) => `${x(each.requests).toFixed(1)},${y(each.mebibytes).toFixed(1)}`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12">
<title>Resident memory over requests</title>
<rect width="100%" height="100%" fill="white"/>
<path d="M${margin} ${margin}V${height - margin}H${width - margin}" fill="none" stroke="#9aa4b2"/>
<polyline points="${points.join(' ')}" fill="none" stroke="#1f6feb" stroke-width="2"/>
<text x="${margin}" y="${margin - 12}">resident memory, MiB (${curve.at(-1)!.mebibytes.toFixed(0)} at the end)</text>
<text x="${width - margin}" y="${height - margin + 20}" text-anchor="end">${last} requests</text>
<text x="${margin - 6}" y="${height - margin}" text-anchor="end">0</text>
<text x="${margin - 6}" y="${margin + 12}" text-anchor="end">${most.toFixed(0)}</text>
</svg>
`;
}
