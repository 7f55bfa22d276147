/** The real program as a child process, for tests. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

export const root = path.resolve(import.meta.dirname, '../../..');
export const tiny = path.join(root, 'examples/models/tiny');
const entry = path.join(root, 'runtime/cli/sluice.ts');

/** The test's own environment without options that it may hold. */
function cleanEnvironment(extra: Readonly<Record<string, string>>): NodeJS.ProcessEnv {
  const own = Object.entries(process.env).filter(([name]) => !/^(SLUICE_|NVIDIA_)/.test(name));
  return { ...Object.fromEntries(own), ...extra };
}

function start(argv: readonly string[], env: Readonly<Record<string, string>>): ChildProcess {
  return spawn(process.execPath, [entry, ...argv], { env: cleanEnvironment(env), stdio: 'pipe' });
}

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The program, running; `ended` resolves with its exit code. */
export function startProgram(
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
): { child: ChildProcess; ended: Promise<number | null> } {
  const child = start(argv, env);
  child.stdout!.resume();
  child.stderr!.resume();
  return { child, ended: new Promise((resolve) => child.on('exit', resolve)) };
}

/** Runs the program to its end. */
export async function run(
  argv: readonly string[],
  { env = {}, input = '' }: { env?: Record<string, string>; input?: string } = {},
): Promise<Ended> {
  const child = start(argv, env);
  child.stdin!.end(input);
  const code = new Promise<number | null>((resolve) => child.on('exit', resolve));
  const [stdout, stderr] = await Promise.all([text(child.stdout!), text(child.stderr!)]);
  return { code: await code, stdout, stderr };
}

/** `sluice serve` on a free port; `using` ends it. */
export class ServeProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #cacheDir = mkdtempSync(path.join(tmpdir(), 'sluice-cache-'));
  readonly exited: Promise<number | null>;
  url = '';
  stdout = '';
  stderr = '';

  private constructor(argv: readonly string[], env: Readonly<Record<string, string>>) {
    const own = ['serve', '--host=127.0.0.1', '--port=0', `--cache-dir=${this.#cacheDir}`];
    this.#child = start([...own, ...argv], env);
    this.exited = new Promise((resolve) => this.#child.on('exit', resolve));
    this.#child.stderr!.on('data', (data) => {
      this.stderr += data;
    });
    this.#child.stdout!.on('data', (data) => {
      this.stdout += data;
    });
  }

  /** Resolves when the program listens, which is before it is ready. */
  static async listen(argv: readonly string[] = [], env: Record<string, string> = {}): Promise<ServeProcess> {
    const program = new ServeProcess(argv, env);
    let ended = false;
    void program.exited.then(() => {
      ended = true;
    });
    while (program.url === '') {
      if (ended) throw new Error(`sluice serve ended early: ${program.stderr}`);
      await sleep(20);
      program.url = /"url":"([^"]+)"/.exec(program.stdout)?.[1] ?? '';
    }
    return program;
  }

  static async ready(argv: readonly string[] = [], env: Record<string, string> = {}): Promise<ServeProcess> {
    const program = await ServeProcess.listen(argv, env);
    await program.until('/readyz', 200);
    return program;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Asks again and again until the route answers so. */
  async until(route: string, status: number): Promise<void> {
    while ((await this.get(route)).status !== status) await sleep(20);
  }

  get(route: string): Promise<Response> {
    return fetch(this.url + route);
  }

  post(route: string, body: object, signal?: AbortSignal): Promise<Response> {
    return fetch(this.url + route, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: signal ?? null,
    });
  }

  /** `name` with its labels, as the text has them; NaN when it is not there. */
  async metric(name: string): Promise<number> {
    const lines = (await (await this.get('/metrics')).text()).split('\n');
    return Number(lines.find((line) => line.startsWith(`${name} `))?.slice(name.length + 1));
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exited;
    rmSync(this.#cacheDir, { recursive: true, force: true });
  }
}
