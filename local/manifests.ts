/**
 * YAML manifests and the API server: files of several objects, applied in order by server-side apply. Must not know what
 * the objects mean, except that a CRD has to be served before its objects can be.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseAllDocuments } from 'yaml';
import { type KubeClient, type KubeObject, type ResourceType, resources } from '../operator/kube/client.ts';
import { SluiceError } from '../runtime/errors.ts';

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

/** Applies them in order as the field manager `npm-start`; a name, as kubectl prints it, per object. */
export async function applyManifests(client: KubeClient, objects: readonly KubeObject[]): Promise<string[]> {
  const names: string[] = [];
  for (const object of objects) {
    const type = typeOf(object);
    const { namespace, name } = object.metadata;
    const placed = type.namespaced
      ? { ...object, metadata: { ...object.metadata, namespace: namespace ?? 'default' } }
      : object;
    await client.apply(type, placed, { fieldManager: 'npm-start', force: true });
    names.push(`${type.kind} ${name}`);
  }
  return names;
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

function typeOf(object: KubeObject): ResourceType {
  const known = Object.values(resources).find(
    ({ group, version, kind }) =>
      kind === object.kind && object.apiVersion === (group === '' ? version : `${group}/${version}`),
  );
  if (known === undefined) {
    throw new SluiceError(
      'config_invalid',
      `${object.apiVersion} ${object.kind}: not a kind that npm start applies`,
    );
  }
  return known;
}
