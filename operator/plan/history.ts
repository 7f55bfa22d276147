/** The revisions of an InferenceService as a list for people: which serves, which is wanted, what changed. Pure. */
import type { Json } from '../api/objects.ts';
import { lastStatus, recordsOf, type World } from './world.ts';

export interface HistoryEntry {
  readonly name: string;
  readonly order: number;
  readonly createdAt: string;
  readonly path: string;
  readonly commit?: string;
  /** `serves`, `wanted`, `failed`, or '' for the past. */
  readonly state: string;
  /** Fields of the spec that differ from the revision before: `model.path`. Empty for the first. */
  readonly changed: readonly string[];
}

/** The newest first. */
export function historyOf(world: World): HistoryEntry[] {
  const { currentRevision, updateRevision, rollout } = lastStatus(world);
  const records = recordsOf(world);
  const stateOf = (name: string): string => {
    if (rollout?.failure?.revision === name) return 'failed';
    if (currentRevision === name) return 'serves';
    return updateRevision === name ? 'wanted' : '';
  };
  return records
    .map(({ name, order, data, object }, index) => {
      const before = records[index - 1];
      const { commit, model } = data.inputs;
      return {
        name,
        order,
        createdAt: object.metadata.creationTimestamp ?? '',
        path: model.path,
        ...(commit === undefined ? {} : { commit }),
        state: stateOf(name),
        changed:
          before === undefined
            ? []
            : differences(before.data.inputs as unknown as Json, data.inputs as unknown as Json, ''),
      };
    })
    .reverse();
}

/** The one to return to where none is named: the newest that neither serves nor is wanted nor has failed. */
export function previousRevision(world: World): string | undefined {
  return historyOf(world).find(({ state }) => state === '')?.name;
}

function differences(before: Json | undefined, after: Json | undefined, path: string): string[] {
  if (JSON.stringify(before) === JSON.stringify(after)) return [];
  if (!isMap(before) || !isMap(after)) return [path];
  const keys = new Set([...Object.keys(before), ...Object.keys(after)]);
  return [...keys]
    .sort()
    .flatMap((key) => differences(before[key], after[key], path === '' ? key : `${path}.${key}`));
}

function isMap(value: Json | undefined): value is { [key: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
