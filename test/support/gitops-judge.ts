/**
 * What Argo CD and Flux would say of objects, by the interpreters that they embed: a small Go program, built once with
 * pinned modules, kept where local/ keeps its programs. Enters: the files of gitops/ and objects. Leaves: verdicts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { buildEnvironment, cacheDirectory } from '../../local/config.ts';

const source = path.join(import.meta.dirname, 'gitops-judge');
const gitops = path.resolve(import.meta.dirname, '../../gitops');

export interface Verdict {
  readonly argo: string;
  /** Argo CD's words. */
  readonly message: string;
  /** `Unknown` where an expression cannot be evaluated yet: Flux looks again until its timeout. */
  readonly flux: 'InProgress' | 'Failed' | 'Current' | 'Unknown';
}

/** A minute the first time. */
function judgeProgram(): string {
  const hash = createHash('sha256');
  for (const file of ['main.go', 'go.mod', 'go.sum']) hash.update(readFileSync(path.join(source, file)));
  const program = path.join(cacheDirectory(), `gitops-judge-${hash.digest('hex').slice(0, 12)}`);
  if (existsSync(program)) return program;
  mkdirSync(cacheDirectory(), { recursive: true });
  const partial = `${program}.partial-${process.pid}`;
  const { status, stderr } = spawnSync('go', ['build', '-trimpath', '-o', partial, '.'], {
    cwd: source,
    env: buildEnvironment(),
    encoding: 'utf8',
  });
  assert.equal(status, 0, `go build of ${source} failed: ${stderr}`);
  renameSync(partial, program);
  return program;
}

export function judge(objects: readonly object[]): Verdict[] {
  const checks = parse(readFileSync(path.join(gitops, 'flux/health-checks.yaml'), 'utf8'));
  const lua = readFileSync(path.join(gitops, 'argocd/health.lua'), 'utf8');
  const { status, stdout, stderr } = spawnSync(judgeProgram(), {
    input: JSON.stringify({ lua, flux: checks.healthCheckExprs[0], objects }),
    encoding: 'utf8',
  });
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}
