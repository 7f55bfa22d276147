/**
 * `npm run bench -- soak [requests]`: short requests of mixed shapes to the whole program over HTTP, its resident memory
 * after each hundredth of them, as numbers and as the curve in docs/soak.svg. Says how the last quarter lies above the
 * second.
 */
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

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
    model: 'tiny',
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

export async function benchSoak([count = '10000']: readonly string[]): Promise<void> {
  const total = Number(count);
  const entry = path.join(root, 'runtime/cli/sluice.ts');
  // A small cache is touched whole within the first requests: what grows afterwards is no cache.
  const flags = ['serve', '--host=127.0.0.1', '--port=0', '--kv-cache-memory=16MiB'];
  const program = spawn(process.execPath, [entry, ...flags], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    const url = await new Promise<string>((resolve, reject) => {
      let text = '';
      program.stdout.on('data', (data) => {
        if (text.length < 1e6) text += data;
        const found = /"url":"([^"]+)"[^\n]*"msg":"ready"/.exec(text)?.[1];
        if (found !== undefined) resolve(found);
      });
      program.on('exit', (code) => reject(new Error(`sluice serve ended with ${code}`)));
    });
    const curve = await run(url, program.pid!, total);
    const mean = (part: readonly Sample[]) =>
      part.reduce((sum, each) => sum + each.mebibytes, 0) / part.length;
    const quarter = samples / 4;
    const second = mean(curve.slice(quarter, 2 * quarter));
    const last = mean(curve.slice(3 * quarter));
    console.log(
      `${total} requests: ${second.toFixed(1)} MiB resident in the second quarter, ${last.toFixed(1)} in the last, ratio ${(last / second).toFixed(3)}`,
    );
    writeFileSync(path.join(root, 'docs/soak.svg'), chart(curve));
  } finally {
    program.kill('SIGKILL');
  }
}

async function run(url: string, pid: number, total: number): Promise<Sample[]> {
  const curve: Sample[] = [];
  let next = 0;
  let done = 0;
  const client = async () => {
    while (next < total) {
      const index = next++;
      const leaves = index % 17 === 0;
      const body = JSON.stringify(bodyOf(index));
      const signal = leaves ? AbortSignal.timeout(20) : null;
      await fetch(`${url}/v1/completions`, { method: 'POST', body, signal })
        .then((response) => response.text())
        .catch((error) => {
          if (!leaves) throw error;
        });
      done++;
      if (done % Math.ceil(total / samples) === 0)
        curve.push({ requests: done, mebibytes: residentMebibytes(pid) });
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
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
