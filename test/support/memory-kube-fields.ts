/**
 * Server-side apply's field ownership for the in-memory API server: which manager owns which leaf, merging an applied
 * configuration into an object, removing what its manager no longer applies. Enters and leaves: plain JSON and sets of
 * paths. Must not know storage. Modelled on structured-merge-diff; list and map types come from a table of field names
 * instead of an OpenAPI schema.
 */
import { isDeepStrictEqual } from 'node:util';

/** JSON of a list of elements: "f:<field>", "k:<json of the keys>", "v:<json of the value>", and "." for the item itself. */
export type FieldPath = string;

export interface ManagerEntry {
  readonly manager: string;
  readonly operation: 'Apply' | 'Update';
  readonly subresource: string;
  readonly fields: ReadonlySet<FieldPath>;
}

type Json = unknown;
type JsonObject = Record<string, Json>;

/** Lists merged by key; every other list is atomic unless in `setLists`. */
const listKeys: Readonly<Record<string, readonly string[]>> = {
  containers: ['name'],
  initContainers: ['name'],
  env: ['name'],
  volumes: ['name'],
  volumeMounts: ['mountPath'],
  imagePullSecrets: ['name'],
  conditions: ['type'],
  ownerReferences: ['uid'],
  revisions: ['name'],
  topologySpreadConstraints: ['topologyKey', 'whenUnsatisfiable'],
};
const setLists: ReadonlySet<string> = new Set(['finalizers']);
const atomicMaps: ReadonlySet<string> = new Set([
  'selector',
  'nodeSelector',
  'labelSelector',
  'valueFrom',
  'data/ControllerRevision',
]);
/** The server's own fields; nobody owns them. */
const unownedMetadata: ReadonlySet<string> = new Set([
  'name',
  'namespace',
  'generateName',
  'uid',
  'resourceVersion',
  'generation',
  'creationTimestamp',
  'deletionTimestamp',
  'deletionGracePeriodSeconds',
  'managedFields',
  'selfLink',
]);

function isObject(value: Json): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function keysOf(field: string, list: readonly Json[]): readonly string[] | undefined {
  if (field === 'ports') {
    const isContainer = list.some((item) => isObject(item) && 'containerPort' in item);
    return isContainer ? ['containerPort', 'protocol'] : ['port', 'protocol'];
  }
  return listKeys[field];
}

function keyElement(keys: readonly string[], item: Json): string {
  const object = isObject(item) ? item : {};
  const pairs = keys.map((key) => [key, object[key] ?? (key === 'protocol' ? 'TCP' : null)]);
  return `k:${JSON.stringify(Object.fromEntries(pairs))}`;
}

/** All leaves of an object with their values; a merged list's item has a leaf "." of its own. */
export function leaves(kind: string, root: JsonObject): Map<FieldPath, Json> {
  const found = new Map<FieldPath, Json>();
  const walk = (value: Json, field: string, path: readonly string[]): void => {
    if (value === null || value === undefined) return;
    if (Array.isArray(value)) {
      const keys = keysOf(field, value);
      if (keys !== undefined) {
        for (const item of value) {
          const itemPath = [...path, keyElement(keys, item)];
          found.set(JSON.stringify([...itemPath, '.']), null);
          if (isObject(item)) walkFields(item, itemPath);
        }
        return;
      }
      if (setLists.has(field)) {
        for (const item of value) found.set(JSON.stringify([...path, `v:${JSON.stringify(item)}`]), item);
        return;
      }
    } else if (isObject(value) && Object.keys(value).length > 0 && !isAtomicMap(kind, field)) {
      walkFields(value, path);
      return;
    }
    found.set(JSON.stringify(path), value);
  };
  const walkFields = (object: JsonObject, path: readonly string[]): void => {
    for (const [name, value] of Object.entries(object)) walk(value, name, [...path, `f:${name}`]);
  };
  for (const [name, value] of Object.entries(root)) {
    if (name === 'apiVersion' || name === 'kind') continue;
    if (name !== 'metadata') walk(value, name, [`f:${name}`]);
    else {
      for (const [inner, metadata] of Object.entries(value as JsonObject)) {
        if (!unownedMetadata.has(inner)) walk(metadata, inner, ['f:metadata', `f:${inner}`]);
      }
    }
  }
  return found;
}

function isAtomicMap(kind: string, field: string): boolean {
  return atomicMaps.has(field) || atomicMaps.has(`${field}/${kind}`);
}

/** The live object with the applied configuration laid over it. */
export function merge(kind: string, live: Json, applied: Json, field = ''): Json {
  if (isObject(live) && isObject(applied) && !isAtomicMap(kind, field)) {
    const result: JsonObject = { ...live };
    for (const [name, value] of Object.entries(applied)) {
      if (value !== null) result[name] = merge(kind, live[name], value, name);
    }
    return result;
  }
  if (Array.isArray(applied)) {
    const liveList = Array.isArray(live) ? live : [];
    const keys = keysOf(field, [...applied, ...liveList]);
    if (keys !== undefined) {
      const rest = new Map(applied.map((item) => [keyElement(keys, item), item]));
      const merged = liveList.map((item) => {
        const key = keyElement(keys, item);
        const mine = rest.get(key);
        rest.delete(key);
        return mine === undefined ? item : merge(kind, item, mine);
      });
      return [...merged, ...rest.values()];
    }
    if (setLists.has(field)) return [...new Set([...liveList, ...applied])];
  }
  return applied;
}

function remove(value: Json, path: readonly string[], field = ''): Json {
  const [element, ...rest] = path;
  if (element === undefined) return undefined;
  if (element.startsWith('f:') && isObject(value)) {
    const name = element.slice(2);
    const { [name]: inner, ...others } = value;
    const kept = rest.length === 0 ? undefined : remove(inner, rest, name);
    // A container that becomes empty goes too, as Go's omitempty does.
    const empty = kept === undefined || (isObject(kept) ? Object.keys(kept).length === 0 : isEmptyList(kept));
    return empty ? others : { ...others, [name]: kept };
  }
  if (Array.isArray(value)) {
    if (element.startsWith('v:')) return value.filter((item) => `v:${JSON.stringify(item)}` !== element);
    const keys = keysOf(field, value) ?? [];
    if (rest[0] === '.') return value.filter((item) => keyElement(keys, item) !== element);
    return value.map((item) => (keyElement(keys, item) === element ? remove(item, rest) : item));
  }
  return value;
}

function isEmptyList(value: Json): boolean {
  return Array.isArray(value) && value.length === 0;
}

export interface ApplyOutcome {
  readonly object: JsonObject;
  readonly managers: readonly ManagerEntry[];
  /** `conflict with "<manager>": <path>`; not empty only without force. */
  readonly conflicts: readonly string[];
}

/** Server-side apply of `applied` onto `live` by one manager. */
export function applyFields(
  live: JsonObject,
  applied: JsonObject,
  managers: readonly ManagerEntry[],
  who: { manager: string; subresource: string; force: boolean },
): ApplyOutcome {
  const kind = String(live.kind);
  const isMine = (entry: ManagerEntry) =>
    entry.operation === 'Apply' && entry.manager === who.manager && entry.subresource === who.subresource;
  const mine = managers.find(isMine);
  const liveLeaves = leaves(kind, live);
  const appliedLeaves = leaves(kind, applied);
  const conflicts: string[] = [];
  const others = managers
    .filter((entry) => !isMine(entry))
    .map((entry): ManagerEntry => {
      const taken = [...entry.fields].filter(
        (path) =>
          appliedLeaves.has(path) && !isDeepStrictEqual(appliedLeaves.get(path), liveLeaves.get(path)),
      );
      for (const path of taken)
        conflicts.push(`conflict with ${JSON.stringify(entry.manager)}: ${readable(path)}`);
      const fields = new Set(entry.fields);
      for (const path of taken) fields.delete(path);
      return { ...entry, fields };
    });
  let object = merge(kind, live, applied) as JsonObject;
  const dropped = [...(mine?.fields ?? [])].filter((path) => !appliedLeaves.has(path));
  // Items first, while their keys are there to find them by; an item in which someone else owns something stays.
  dropped.sort((a, b) => Number(b.endsWith('"."]')) - Number(a.endsWith('"."]')));
  for (const path of dropped) {
    const elements = JSON.parse(path) as string[];
    const prefix = elements.at(-1) === '.' ? JSON.stringify(elements.slice(0, -1)).slice(0, -1) : undefined;
    const owned = others.some(({ fields }) =>
      prefix === undefined ? fields.has(path) : [...fields].some((other) => other.startsWith(prefix)),
    );
    if (!owned) object = remove(object, elements) as JsonObject;
  }
  const entry: ManagerEntry = {
    manager: who.manager,
    operation: 'Apply',
    subresource: who.subresource,
    fields: new Set(appliedLeaves.keys()),
  };
  return {
    object,
    managers: [...others, entry].filter(({ fields }) => fields.size > 0),
    conflicts: who.force ? [] : conflicts,
  };
}

/** Ownership after a write that is not an apply: what it changed is the writer's, what it removed is nobody's. */
export function updateFields(
  before: JsonObject | undefined,
  after: JsonObject,
  managers: readonly ManagerEntry[],
  who: { manager: string; subresource: string },
): readonly ManagerEntry[] {
  const kind = String(after.kind);
  const old = before === undefined ? new Map<FieldPath, Json>() : leaves(kind, before);
  const now = leaves(kind, after);
  const changed = new Set<FieldPath>();
  for (const [path, value] of now) {
    if (!old.has(path) || !isDeepStrictEqual(old.get(path), value)) changed.add(path);
  }
  const isMine = (entry: ManagerEntry) =>
    entry.operation === 'Update' && entry.manager === who.manager && entry.subresource === who.subresource;
  const kept = managers.map(
    (entry): ManagerEntry => ({
      ...entry,
      fields: new Set(
        [...entry.fields].filter((path) => now.has(path) && (isMine(entry) || !changed.has(path))),
      ),
    }),
  );
  const mine = kept.find(isMine);
  const fields = new Set([...(mine?.fields ?? []), ...changed]);
  return [...kept.filter((entry) => !isMine(entry)), { ...who, operation: 'Update' as const, fields }].filter(
    (entry) => entry.fields.size > 0,
  );
}

/** The form that metadata.managedFields has. */
export function managedFields(
  managers: readonly ManagerEntry[],
  apiVersion: string,
  time: string,
): JsonObject[] {
  return managers.map(({ manager, operation, subresource, fields }) => {
    const fieldsV1: JsonObject = {};
    for (const path of fields) {
      let node = fieldsV1;
      for (const element of JSON.parse(path) as string[]) {
        node[element] ??= {};
        node = node[element] as JsonObject;
      }
    }
    return {
      manager,
      operation,
      apiVersion,
      time,
      fieldsType: 'FieldsV1',
      fieldsV1,
      ...(subresource === '' ? {} : { subresource }),
    };
  });
}

function readable(path: FieldPath): string {
  return (JSON.parse(path) as string[])
    .map((element) => {
      if (element === '.') return '';
      if (element.startsWith('f:')) return `.${element.slice(2)}`;
      if (element.startsWith('v:')) return `[=${element.slice(2)}]`;
      const keys = JSON.parse(element.slice(2)) as JsonObject;
      return `[${Object.entries(keys)
        .map(([key, value]) => `${key}=${JSON.stringify(value)}`)
        .join(',')}]`;
    })
    .join('');
}
