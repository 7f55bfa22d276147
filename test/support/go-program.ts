/**
 * Programs of others that tests and benchmarks use: built once with Go, pinned, kept where local/ keeps its own. Enters: a
 * package and its version. Leaves: a path.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { buildEnvironment, cacheDirectory } from '../../local/config.ts';

export interface GoProgram {
  /** Of the file, the last part of the package's path. */
  readonly name: string;
  readonly package: string;
  readonly version: string;
}

/** Some minutes the first time. */
export function goProgram(
  { name, package: source, version }: GoProgram,
  onProgress: (line: string) => void,
): string {
  const folder = path.join(cacheDirectory(), `${name}-${version}`);
  const program = path.join(folder, name);
  if (existsSync(program)) return program;
  onProgress(`building ${name} ${version} with Go, once`);
  mkdirSync(cacheDirectory(), { recursive: true });
  const partial = mkdtempSync(`${folder}.partial-`);
  const { status, stderr } = spawnSync('go', ['install', `${source}@${version}`], {
    env: { ...buildEnvironment(), GOBIN: partial, GOFLAGS: '-mod=mod -trimpath' },
    encoding: 'utf8',
  });
  assert.equal(status, 0, `go install of ${name} failed: ${stderr}`);
  try {
    renameSync(partial, folder);
  } catch {
    // Another one was faster.
    rmSync(partial, { recursive: true, force: true });
  }
  return program;
}
