/**
 * Stored objects -> the spec as far as this operator understands it. Lenient where the rest of the project is strict: an
 * operator may be older than the CRD, and what it does not know must not stop what it does. Pure.
 */
import { type InferenceServiceSpec, specSchema } from './inference-service.ts';

export interface UnderstoodSpec {
  /** Absent when a field that this operator does know holds what it cannot read. */
  readonly spec?: InferenceServiceSpec;
  /** Paths of fields that this operator does not know: `spec.autoscaling`. */
  readonly unknownFields: readonly string[];
  /** `spec.quantization: Invalid option: expected one of ...`; empty unless `spec` is absent. */
  readonly problems: readonly string[];
}

export function understandSpec(stored: unknown): UnderstoodSpec {
  const copy = structuredClone(stored ?? {});
  const unknownFields: string[] = [];
  // Unknown keys hide deeper problems of nothing else, so one pass to drop them and one to read are enough.
  for (const issue of specSchema.safeParse(copy).error?.issues ?? []) {
    if (issue.code !== 'unrecognized_keys') continue;
    for (const key of issue.keys) {
      unknownFields.push(pathOf([...issue.path, key]));
      delete at(copy, issue.path)[key];
    }
  }
  const result = specSchema.safeParse(copy);
  unknownFields.sort();
  if (result.success) return { spec: result.data, unknownFields, problems: [] };
  const problems = result.error.issues.map((issue) => `${pathOf(issue.path)}: ${issue.message}`);
  return { unknownFields, problems };
}

function at(value: unknown, path: readonly PropertyKey[]): Record<string, unknown> {
  let found = value as Record<PropertyKey, unknown>;
  for (const key of path) found = found[key] as Record<PropertyKey, unknown>;
  return found as Record<string, unknown>;
}

function pathOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (text, key) => (typeof key === 'number' ? `${text}[${key}]` : `${text}.${String(key)}`),
    'spec',
  );
}
