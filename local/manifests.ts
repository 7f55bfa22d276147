/**
 * YAML manifests and the API server: read here, applied by kubectl, waited for. Must not know what the objects mean,
 * except that a CRD has to be served before its objects can be.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { parseAllDocuments } from 'yaml';
import { type KubeClient, type KubeObject, resources } from '../operator/kube/client.ts';
import { SluiceError } from '../runtime/errors.ts';
import { childEnvironment } from './config.ts';
import type { ControlPlane } from './control-plane.ts';

const run = promisify(execFile);

/** Throws SluiceError `config_invalid` with the place of the first mistake. */
export function readManifests(file: string): KubeObject[] {
  const objects: KubeObject[] = [];
  for (const document of parseAllDocuments(readFileSync(file, 'utf8'))) {
    const [mistake] = document.errors;
    if (mistake !== undefined) {
      throw new SluiceError('config_invalid', `${file}: ${mistake.message}`, { cause: mistake });
    }
    const object = document.toJS() as KubeObject | null;
    if (object !== null) objects.push(object);
  }
  return objects;
}

/**
 * `kubectl apply`, as a user would: what it applies can be edited and applied again the same way. Gives its answer, one
 * line per object. Throws SluiceError `unavailable` with kubectl's words.
 */
export async function kubectlApply(plane: ControlPlane, file: string, ...flags: string[]): Promise<string> {
  const cache = path.join(plane.directory, 'kubectl-cache');
  const args = [
    `--kubeconfig=${plane.kubeconfig}`,
    `--cache-dir=${cache}`,
    'apply',
    ...flags,
    `--filename=${file}`,
  ];
  try {
    const { stdout } = await run(plane.kubectl, args, { env: childEnvironment() });
    return stdout.trim();
  } catch (cause) {
    const { stderr = '' } = cause as { stderr?: string };
    throw new SluiceError('unavailable', `kubectl apply -f ${file} failed: ${stderr.trim() || cause}`, {
      cause,
    });
  }
}

/** Resolves when the API server serves the kinds that these CRDs define. */
export async function waitForDefinitions(
  client: KubeClient,
  definitions: readonly KubeObject[],
  signal?: AbortSignal,
): Promise<void> {
  for (const { metadata } of definitions) {
    for (;;) {
      signal?.throwIfAborted();
      const found = await client.get(resources.customResourceDefinitions, { name: metadata.name });
      const conditions: { type: string; status: string; message?: string }[] =
        found?.status?.conditions ?? [];
      const refused = conditions.find(({ type, status }) => type === 'NamesAccepted' && status === 'False');
      if (refused !== undefined) {
        throw new SluiceError('unavailable', `the CRD ${metadata.name} was not accepted: ${refused.message}`);
      }
      if (conditions.some(({ type, status }) => type === 'Established' && status === 'True')) break;
      await sleep(100);
    }
  }
}
