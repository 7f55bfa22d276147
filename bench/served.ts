/** `sluice serve` as a process of its own, for benchmarks of the whole program. */
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';

export interface Served {
  readonly url: string;
  readonly pid: number;
  /** The name of the model in requests. */
  readonly model: string;
  close(): void;
}

const entry = path.resolve(import.meta.dirname, '../runtime/cli/sluice.ts');

/** Resolves when it is ready; the log is kept out of sight. */
export async function startServed(flags: readonly string[]): Promise<Served> {
  const program = spawn(
    process.execPath,
    [
      ...process.execArgv,
      entry,
      'serve',
      '--host=127.0.0.1',
      '--port=0',
      '--served-model-name=bench',
      ...flags,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const url = await readyUrl(program);
  return { url, pid: program.pid!, model: 'bench', close: () => void program.kill('SIGKILL') };
}

function readyUrl(program: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let text: string | undefined = '';
    program.stdout!.on('data', (data) => {
      if (text === undefined) return;
      text += data;
      const found = /"url":"([^"]+)"[^\n]*"msg":"ready"/.exec(text)?.[1];
      if (found === undefined) return;
      text = undefined;
      resolve(found);
    });
    program.on('exit', (code) => reject(new Error(`sluice serve ended with ${code}`)));
  });
}
