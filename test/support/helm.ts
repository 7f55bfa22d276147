/**
 * Helm for tests of the charts: built once with Go, pinned, kept where local/ keeps its programs. Enters: arguments.
 * Leaves: what Helm prints.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { buildEnvironment, cacheDirectory } from '../../local/config.ts';
import type { KubeObject } from '../../operator/kube/client.ts';

const version = 'v3.22.0';
const charts = path.resolve(import.meta.dirname, '../../charts');

export interface HelmResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Some minutes the first time. */
function helmProgram(t: TestContext): string {
  const folder = path.join(cacheDirectory(), `helm-${version}`);
  const program = path.join(folder, 'helm');
  if (existsSync(program)) return program;
  t.diagnostic(`building Helm ${version} with Go, once`);
  mkdirSync(cacheDirectory(), { recursive: true });
  const partial = mkdtempSync(`${folder}.partial-`);
  const { status, stderr } = spawnSync('go', ['install', `helm.sh/helm/v3/cmd/helm@${version}`], {
    env: { ...buildEnvironment(), GOBIN: partial, GOFLAGS: '-trimpath' },
    encoding: 'utf8',
  });
  assert.equal(status, 0, `go install of Helm failed: ${stderr}`);
  try {
    renameSync(partial, folder);
  } catch {
    // Another test was faster.
    rmSync(partial, { recursive: true, force: true });
  }
  return program;
}

export function helm(t: TestContext, args: readonly string[], kubeconfig?: string): HelmResult {
  const { status, stdout, stderr } = spawnSync(helmProgram(t), args, {
    cwd: charts,
    encoding: 'utf8',
    env: {
      PATH: process.env.PATH ?? '',
      HOME: '/nonexistent',
      ...(kubeconfig ? { KUBECONFIG: kubeconfig } : {}),
    },
  });
  return { code: status, stdout, stderr };
}

/** The objects of a chart. */
export function renderChart(t: TestContext, chart: string, args: readonly string[] = []): KubeObject[] {
  const { code, stdout, stderr } = helm(t, [
    'template',
    'sluice',
    chart,
    '--namespace=sluice-system',
    ...args,
  ]);
  assert.equal(code, 0, stderr);
  return parseAllDocuments(stdout)
    .map((document) => document.toJS() as KubeObject | null)
    .filter((object) => object !== null);
}
