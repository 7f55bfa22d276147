/**
 * A partial pod template over a whole one, by Kubernetes' own rules of strategic merge (`kubectl patch`): maps member by
 * member, lists of named things by their key, other lists replaced, null removes. Pure; changes neither argument.
 */
import type { Json, JsonObject } from '../api/objects.ts';

/**
 * Keys by which the lists of a PodSpec are merged, from the `patchMergeKey` tags of k8s.io/api/core/v1. Lists of scalars
 * and lists without a key (tolerations, args) are replaced.
 */
const mergeKeys: Readonly<Record<string, string>> = {
  containers: 'name',
  initContainers: 'name',
  ephemeralContainers: 'name',
  volumes: 'name',
  env: 'name',
  ports: 'containerPort',
  volumeMounts: 'mountPath',
  volumeDevices: 'devicePath',
  imagePullSecrets: 'name',
  hostAliases: 'ip',
  topologySpreadConstraints: 'topologyKey',
  resourceClaims: 'name',
  claims: 'name',
  schedulingGates: 'name',
};

/** Maps of which a second member contradicts the first: naming another one replaces the map. */
const unions: Readonly<Record<string, readonly string[]>> = {
  volumes: ['name'],
  env: ['name'],
};

export function mergeTemplate(base: JsonObject, overlay: JsonObject): JsonObject {
  return mergeMaps(base, overlay);
}

function mergeMaps(base: JsonObject, overlay: JsonObject): JsonObject {
  const result: JsonObject = { ...base };
  for (const [key, value] of Object.entries(overlay)) {
    if (value === null) delete result[key];
    else result[key] = mergeValues(result[key], value, key);
  }
  return result;
}

function mergeValues(base: Json | undefined, overlay: Json, key: string): Json {
  if (isMap(overlay)) return mergeMaps(isMap(base) ? base : {}, overlay);
  const mergeKey = mergeKeys[key];
  if (Array.isArray(overlay) && mergeKey !== undefined && overlay.every(isMap))
    return mergeLists(Array.isArray(base) ? base.filter(isMap) : [], overlay, key, mergeKey);
  return overlay;
}

function mergeLists(
  base: readonly JsonObject[],
  overlay: readonly JsonObject[],
  listName: string,
  mergeKey: string,
): Json[] {
  const result = [...base];
  for (const item of overlay) {
    const index = result.findIndex((each) => each[mergeKey] === item[mergeKey]);
    if (index < 0) result.push(mergeMaps({}, item));
    else result[index] = mergeMaps(withoutRivals(result[index]!, item, listName), item);
  }
  return result;
}

/** A volume has one source and a variable one value: the overlay's kind takes the place of the base's. */
function withoutRivals(base: JsonObject, item: JsonObject, listName: string): JsonObject {
  const shared = unions[listName];
  if (shared === undefined) return base;
  const named = Object.keys(item).filter((key) => !shared.includes(key));
  if (named.length === 0 || named.some((key) => key in base)) return base;
  return Object.fromEntries(Object.entries(base).filter(([key]) => shared.includes(key)));
}

function isMap(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
