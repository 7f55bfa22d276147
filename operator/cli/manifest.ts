/**
 * Manifests as people write them -> InferenceServices. Enters: YAML. Leaves: objects whose every field is known, or
 * SluiceError `config_invalid` that names the first that is not.
 */
import { readFileSync } from 'node:fs';
import { parseAllDocuments } from 'yaml';
import { nearest } from '../../runtime/config/options.ts';
import { SluiceError } from '../../runtime/errors.ts';
import { apiVersion, kind, maxNameLength, namePattern, specSchema } from '../api/inference-service.ts';
import type { AnyObject } from '../api/objects.ts';

export interface ReadManifest {
  readonly services: readonly AnyObject[];
  /** Other objects of the files: `PersistentVolumeClaim "models"`. */
  readonly others: readonly string[];
}

/** `-` is standard input. */
export function readManifestFiles(files: readonly string[], namespace: string): ReadManifest {
  const read = files.map((file) =>
    readManifest(textOf(file), file === '-' ? 'standard input' : file, namespace),
  );
  return { services: read.flatMap((each) => each.services), others: read.flatMap((each) => each.others) };
}

/** `label` says in messages where the text is from. */
function readManifest(text: string, label: string, namespace: string): ReadManifest {
  const services: AnyObject[] = [];
  const others: string[] = [];
  for (const document of parseAllDocuments(text)) {
    const [mistake] = document.errors;
    if (mistake !== undefined) throw invalid(`${label}: ${mistake.message.split('\n')[0]}`, mistake);
    const content = document.toJS() as AnyObject | null;
    if (content === null) continue;
    const list = content.kind === 'List' && Array.isArray(content.items) ? content.items : [content];
    for (const object of list) {
      if (object?.kind === kind && String(object.apiVersion).startsWith('sluice.dev/'))
        services.push(checked(object, label, namespace));
      else others.push(`${object?.kind ?? 'something'} "${object?.metadata?.name ?? ''}"`);
    }
  }
  if (services.length === 0)
    throw invalid(
      `${label}: holds no InferenceService of sluice.dev${others.length === 0 ? '' : `, only ${others.join(', ')}`}; it begins with apiVersion: ${apiVersion} and kind: ${kind}`,
    );
  return { services, others };
}

const topLevel = ['apiVersion', 'kind', 'metadata', 'spec', 'status'];

function checked(object: AnyObject, label: string, namespace: string): AnyObject {
  const name = object.metadata?.name;
  const where = `${label}: ${kind} ${JSON.stringify(name ?? '')}`;
  if (object.apiVersion !== apiVersion)
    throw invalid(`${where}: apiVersion "${object.apiVersion}": the form is ${apiVersion}`);
  if (typeof name !== 'string' || name.length > maxNameLength || !new RegExp(namePattern).test(name))
    throw invalid(
      `${where}: metadata.name: the form is a DNS label of at most ${maxNameLength} characters, for example chat`,
    );
  const unknown = Object.keys(object).find((key) => !topLevel.includes(key));
  if (unknown !== undefined) throw invalid(`${where}: ${unknown}: unknown field${hint(unknown, topLevel)}`);
  const issue = specSchema.safeParse(object.spec ?? {}).error?.issues[0];
  if (issue !== undefined) {
    const path = ['spec', ...issue.path.map(String)].join('.');
    if (issue.code === 'unrecognized_keys') {
      const [key = ''] = issue.keys;
      throw invalid(`${where}: ${path}.${key}: unknown field${hint(key, membersAt(issue.path))}`);
    }
    throw invalid(`${where}: ${path}: ${issue.message}`);
  }
  const { status: _, ...written } = object;
  return {
    ...written,
    metadata: { ...object.metadata, namespace: object.metadata.namespace ?? namespace },
  } as AnyObject;
}

/** Names of the fields that the schema has at a path. */
function membersAt(path: readonly PropertyKey[]): string[] {
  // biome-ignore lint/suspicious/noExplicitAny: zod's own definitions, of whatever kind.
  let schema: any = specSchema;
  for (const key of path) {
    while (schema?.def?.innerType !== undefined) schema = schema.def.innerType;
    schema = schema?.shape?.[key] ?? schema?.element;
  }
  while (schema?.def?.innerType !== undefined) schema = schema.def.innerType;
  return Object.keys(schema?.shape ?? {});
}

function hint(name: string, candidates: readonly string[]): string {
  const found = nearest(name, candidates);
  return found === undefined ? '' : `; did you mean ${found}?`;
}

function textOf(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (cause) {
    throw invalid(`${file}: cannot be read: ${(cause as Error).message}`, cause);
  }
}

function invalid(message: string, cause?: unknown): SluiceError {
  return new SluiceError('config_invalid', message, { cause });
}
