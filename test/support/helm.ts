/**
 * Helm for tests of the charts: built once with Go, pinned, kept where local/ keeps its programs. Enters: arguments.
 * Leaves: what Helm prints.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { parseAllDocuments } from 'yaml';
import type { KubeObject } from '../../operator/kube/client.ts';
import { goProgram } from './go-program.ts';

const charts = path.resolve(import.meta.dirname, '../../charts');

type Diagnostics = Pick<TestContext, 'diagnostic'>;

export interface HelmResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Some minutes the first time. */
const helmProgram = (t: Diagnostics): string =>
  goProgram({ name: 'helm', package: 'helm.sh/helm/v3/cmd/helm', version: 'v3.22.0' }, (line) =>
    t.diagnostic(line),
  );

export function helm(t: Diagnostics, args: readonly string[], kubeconfig?: string): HelmResult {
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
export function renderChart(t: Diagnostics, chart: string, args: readonly string[] = []): KubeObject[] {
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
