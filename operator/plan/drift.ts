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
    const ours = entries
      .filter((each) => each.manager === fieldManager)
      .flatMap((each) => each.fieldsV1?.[member] ?? []);
    if (foreign.some((each) => hasOther(each.fieldsV1?.[member], ours))) return 'intruded';
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

/** Does `tree` hold a leaf that none of `ours` holds? */
function hasOther(tree: FieldTree | undefined, ours: readonly FieldTree[]): boolean {
  if (tree === undefined) return false;
  const steps = Object.keys(tree).filter((step) => step !== '.');
  if (steps.length === 0) return ours.length === 0;
  return steps.some((step) =>
    hasOther(
      tree[step],
      ours.flatMap((each) => each[step] ?? []),
    ),
  );
}

function ownsAll(applied: FieldTree, wanted: AnyObject): boolean {
  const { apiVersion: _, kind: __, metadata, ...rest } = wanted;
  const { labels = {}, annotations = {}, ownerReferences = [] } = metadata;
  return owns(applied, { metadata: { labels, annotations, ownerReferences }, ...rest });
}

/** Does the set `tree` cover every leaf of `value`? An empty node stands for all below it (atomic lists and maps). */
function owns(tree: FieldTree | undefined, value: unknown): boolean {
  if (tree === undefined) return false;
  const steps = Object.keys(tree).filter((step) => step !== '.');
  if (steps.length === 0 || typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every((item) => owns(elementNode(tree, steps, item), item));
  return Object.entries(value as JsonObject).every(
    ([key, member]) => isEmpty(member) || owns(tree[`f:${key}`], member),
  );
}

/** The API server keeps no trace of an empty map of labels or an empty list. */
function isEmpty(value: unknown): boolean {
  return value === undefined || (Array.isArray(value) && value.length === 0);
}

function elementNode(tree: FieldTree, steps: readonly string[], item: unknown): FieldTree | undefined {
  const step = steps.find((each) => {
    if (each.startsWith('v:')) return JSON.parse(each.slice(2)) === item;
    if (!each.startsWith('k:')) return false;
    const keys = JSON.parse(each.slice(2)) as Record<string, unknown>;
    const members = item as Record<string, unknown>;
    // A key may be one that the API server filled in (a port's protocol).
    return Object.entries(keys).every(([key, value]) => members[key] === undefined || members[key] === value);
  });
  return step === undefined ? undefined : tree[step];
}
