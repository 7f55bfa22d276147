/**
 * What the environment tells local/: where caches live and what children may inherit. The only file of this room that
 * reads process.env.
 */
import os from 'node:os';
import path from 'node:path';

/** $SLUICE_CACHE_DIR, else $XDG_CACHE_HOME, else ~/.cache; the programs lie in sluice/bin under it. */
export function cacheDirectory(): string {
  const base =
    process.env.SLUICE_CACHE_DIR || process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache');
  return path.join(base, 'sluice', 'bin');
}

/** Everything: Go finds its proxy, caches and flags there. */
export function buildEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, CGO_ENABLED: '0', GOWORK: 'off' };
}

/** Little: a control plane must not change with the shell that started it. */
export function childEnvironment(): Record<string, string> {
  const environment: Record<string, string> = {};
  for (const name of ['PATH', 'HOME', 'TMPDIR', 'LANG']) {
    const value = process.env[name];
    if (value !== undefined) environment[name] = value;
  }
  return environment;
}

/** Under npm the process above this one is npm's; when it is killed nobody can stop us any more. */
export function startedByNpm(): boolean {
  return process.env.npm_lifecycle_event !== undefined;
}
