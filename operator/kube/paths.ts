/** The REST path of a resource type, a collection or an object. Must not know how it is fetched. */
import type { ListOptions, ObjectRef, ResourceType, WriteOptions } from './client.ts';

/** The path of one object, or of one of its subresources. */
export function objectPath(
  type: ResourceType,
  ref: ObjectRef,
  subresource?: WriteOptions['subresource'],
): string {
  if (ref.name === '') throw new Error(`a ${type.kind} without a name`);
  const suffix = subresource === undefined ? '' : `/${subresource}`;
  return `${collectionPath(type, needNamespace(type, ref))}/${encodeURIComponent(ref.name)}${suffix}`;
}

/** The path of all objects of a type, of one namespace or (namespace undefined) of all of them. */
export function collectionPath(type: ResourceType, namespace: string | undefined): string {
  const group = type.group === '' ? `/api/${type.version}` : `/apis/${type.group}/${type.version}`;
  const scope =
    type.namespaced && namespace !== undefined ? `/namespaces/${encodeURIComponent(namespace)}` : '';
  return `${group}${scope}/${type.plural}`;
}

/** An object of a namespaced type needs its namespace: without it the path would be another resource's. */
export function needNamespace(type: ResourceType, ref: ObjectRef): string | undefined {
  if (!type.namespaced) return undefined;
  if (ref.namespace === undefined || ref.namespace === '') {
    throw new Error(`${type.kind} ${JSON.stringify(ref.name)} without a namespace`);
  }
  return ref.namespace;
}

export function query(parameters: Readonly<Record<string, string | number | boolean | undefined>>): string {
  const present = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== '');
  if (present.length === 0) return '';
  return `?${present.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join('&')}`;
}

export function listQuery(options: ListOptions): string {
  return query({
    labelSelector: options.labelSelector,
    fieldSelector: options.fieldSelector,
    limit: options.limit,
    continue: options.continue,
    resourceVersion: options.resourceVersion,
    resourceVersionMatch: options.resourceVersionMatch,
  });
}
