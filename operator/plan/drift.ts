/**
 * Is a child as it was applied? Answered from the object alone, without comparing values (the API server adds defaults
 * and rewrites quantities), by three questions: does it carry the hash of the manifest that is wanted; does our field
 * manager still own every field of it (whoever changes a field takes it); has another manager put fields of its own into
 * what is ours to say (`spec`, `data`). Pure.
 */
import { hashName } from '../api/canonical.ts';
import type { AnyObject, JsonObject } from '../api/objects.ts';
import { appliedAnnotation } from '../resources/labels.ts';

export const fieldManager = 'sluice-operator';

interface ManagedFields {
  readonly manager?: string;
  readonly operation?: 'Apply' | 'Update';
  readonly subresource?: string;
  readonly fieldsV1?: FieldTree;
}

/** `f:name` a member, `k:{...}` an element by its keys, `v:...` an element by its value, `.` the thing itself. */
interface FieldTree {
  readonly [step: string]: FieldTree;
}

/** Members of an object whose every field is ours. Labels and annotations are shared with whoever adds some. */
const ownMembers = ['f:spec', 'f:data'];

/** The manifest with the annotation that recognises it later. */
export function stamped(manifest: AnyObject): AnyObject {
  const { metadata } = manifest;
  const annotations = { ...metadata.annotations, [appliedAnnotation]: hashName(manifest) };
  return { ...manifest, metadata: { ...metadata, annotations } };
}

/** `intact`: nothing to write. `changed`: apply it. `intruded`: fields that only a replacement can remove. */
export type Drift = 'intact' | 'changed' | 'intruded';

export function driftOf(live: AnyObject, wanted: AnyObject): Drift {
  const entries = (live.metadata.managedFields ?? []) as ManagedFields[];
  const applied = entries.find(
    (each) => each.manager === fieldManager && each.operation === 'Apply' && each.subresource === undefined,
  )?.fieldsV1;
  const foreign = entries.filter((each) => each.manager !== fieldManager && each.subresource !== 'status');
  for (const member of ownMembers) {
    const value = wanted[member.slice('f:'.length)];
    if (foreign.some((each) => addsTo(value, each.fieldsV1?.[member]))) return 'intruded';
  }
  const hash = wanted.metadata.annotations?.[appliedAnnotation];
  if (live.metadata.annotations?.[appliedAnnotation] !== hash) return 'changed';
  return applied !== undefined && ownsAll(applied, wanted) ? 'intact' : 'changed';
}

/** The whole object to PUT so that nothing but `wanted` is left in what is ours; the API server adds its defaults. */
export function replacement(live: AnyObject, wanted: AnyObject): AnyObject {
  const managedFields = ((live.metadata.managedFields ?? []) as ManagedFields[]).filter(
    (each) => each.manager === fieldManager || each.subresource === 'status' || !touches(each),
  );
  return {
    ...live,
    ...wanted,
    metadata: {
      ...live.metadata,
      ...wanted.metadata,
      labels: { ...live.metadata.labels, ...wanted.metadata.labels },
      annotations: { ...live.metadata.annotations, ...wanted.metadata.annotations },
      managedFields,
    },
  };
}

function touches(entry: ManagedFields): boolean {
  return ownMembers.some((member) => entry.fieldsV1?.[member] !== undefined);
}

/** Does `tree` hold a leaf that `value` has nothing at? Such a field no apply can take away. */
function addsTo(value: unknown, tree: FieldTree | undefined): boolean {
  if (tree === undefined) return false;
  if (value === undefined) return true;
  return stepsOf(tree).some((step) => {
    const subtree = tree[step];
    if (step.startsWith('f:')) return addsTo((value as JsonObject | null)?.[step.slice(2)], subtree);
    const items = Array.isArray(value) ? value : [];
    return addsTo(
      items.find((item) => matches(step, item)),
      subtree,
    );
  });
}

function stepsOf(tree: FieldTree): string[] {
  return Object.keys(tree).filter((step) => step !== '.');
}

function ownsAll(applied: FieldTree, wanted: AnyObject): boolean {
  const { apiVersion: _, kind: __, metadata, ...rest } = wanted;
  const { labels = {}, annotations = {}, ownerReferences = [] } = metadata;
  return owns(applied, { metadata: { labels, annotations, ownerReferences }, ...rest });
}

/** Does the set `tree` cover every leaf of `value`? An empty node stands for all below it (atomic lists and maps). */
function owns(tree: FieldTree | undefined, value: unknown): boolean {
  if (tree === undefined) return false;
  const steps = stepsOf(tree);
  if (steps.length === 0 || typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value))
    return value.every((item) => {
      const step = steps.find((each) => matches(each, item));
      return step !== undefined && owns(tree[step], item);
    });
  return Object.entries(value as JsonObject).every(
    ([key, member]) => isEmpty(member) || owns(tree[`f:${key}`], member),
  );
}

/** The API server keeps no trace of an empty list. */
function isEmpty(value: unknown): boolean {
  return value === undefined || (Array.isArray(value) && value.length === 0);
}

/** Is `item` the element of a list that `step` means? */
function matches(step: string, item: unknown): boolean {
  if (step.startsWith('v:')) return JSON.parse(step.slice(2)) === item;
  if (!step.startsWith('k:') || typeof item !== 'object' || item === null) return false;
  const members = item as Record<string, unknown>;
  // A key may be one that the API server filled in (a port's protocol).
  return Object.entries(JSON.parse(step.slice(2)) as Record<string, unknown>).every(
    ([key, value]) => members[key] === undefined || members[key] === value,
  );
}
