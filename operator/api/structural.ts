/**
 * JSON Schema as zod writes it -> a structural schema as the API server wants it in a CRD. Enters: zod types. Leaves:
 * plain JSON. Every keyword that comes by is handled or refused: one that was dropped in silence would be a check that
 * does not happen.
 */
import assert from 'node:assert/strict';
import { z } from 'zod';
import type { Json, JsonObject } from './objects.ts';

export type StructuralSchema = JsonObject;

/** Bounds that zod gives every integer; they say nothing that JSON does not. */
const safeIntegers: readonly unknown[] = [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER];

/** Integers whose range is at most this long are tried one by one for refinements that no keyword expresses. */
const longestTriedRange = 4096;

const kept = new Set([
  'type',
  'format',
  'description',
  'default',
  'enum',
  'minLength',
  'maxLength',
  'pattern',
  'minItems',
  'maxItems',
  'maxProperties',
  'required',
]);

export function structuralSchema(type: z.ZodType): StructuralSchema {
  const schema = z.toJSONSchema(type, {
    target: 'openapi-3.0',
    io: 'input',
    reused: 'inline',
    override: ({ zodSchema, jsonSchema }) => {
      const values = refinedIntegers(zodSchema as unknown as z.ZodType, jsonSchema);
      if (values !== undefined) jsonSchema.enum = values;
    },
  });
  return convert(schema as unknown as JsonObject, '');
}

/** The values that an integer type takes, where it refuses some within its bounds (a power of two). */
function refinedIntegers(
  type: z.ZodType,
  { minimum, maximum }: { minimum?: number; maximum?: number },
): number[] | undefined {
  const hasRefinement = type.def && (type.def as { checks?: unknown[] }).checks?.some(isCustomCheck);
  if (!hasRefinement || minimum === undefined || maximum === undefined) return undefined;
  if (maximum - minimum > longestTriedRange) return undefined;
  const all = Array.from({ length: maximum - minimum + 1 }, (_, index) => minimum + index);
  return all.filter((value) => type.safeParse(value).success);
}

function isCustomCheck(check: unknown): boolean {
  return (check as { _zod?: { def?: { check?: string } } })._zod?.def?.check === 'custom';
}

function convert(schema: JsonObject, path: string): StructuralSchema {
  if (schema['x-kubernetes-int-or-string'] === true) return intOrString(schema);
  const result: StructuralSchema = {};
  const isMap = typeof schema.additionalProperties === 'object';
  for (const [keyword, value] of Object.entries(schema)) {
    if (kept.has(keyword) || keyword.startsWith('x-kubernetes-')) result[keyword] = value;
    else if (keyword === 'minimum' || keyword === 'maximum') {
      if (!safeIntegers.includes(value)) result[keyword] = value;
    } else if (keyword === 'properties') result.properties = convertMembers(value as JsonObject, path);
    else if (keyword === 'items') result.items = convert(value as JsonObject, `${path}[]`);
    else if (keyword === 'additionalProperties') {
      if (isMap && !schema['x-kubernetes-preserve-unknown-fields'])
        result.additionalProperties = convert(value as JsonObject, `${path}.*`);
    } else assert(keyword === 'propertyNames' || keyword === '$schema', `${path}: keyword ${keyword}`);
  }
  checkBounded(result, path);
  return result;
}

/** A union cannot say its types and bounds structurally: the rules beside it do. */
function intOrString({ anyOf: _, ...schema }: JsonObject): StructuralSchema {
  assert(schema['x-kubernetes-validations'] !== undefined, 'an int-or-string needs rules');
  return { ...schema, anyOf: [{ type: 'integer' }, { type: 'string' }] };
}

function convertMembers(properties: JsonObject, path: string): JsonObject {
  return Object.fromEntries(
    Object.entries(properties).map(([name, member]) => [
      name,
      convert(member as JsonObject, `${path}.${name}`),
    ]),
  );
}

/** The API server refuses rules whose cost it cannot bound; so nothing is unbounded anywhere. */
function checkBounded(schema: StructuralSchema, path: string): void {
  if (schema.type === 'string')
    assert(schema.maxLength !== undefined || schema.enum, `${path}: no maxLength`);
  if (schema.type === 'array') assert(schema.maxItems !== undefined, `${path}: no maxItems`);
  if (schema.additionalProperties !== undefined)
    assert(schema.maxProperties !== undefined, `${path}: no maxProperties`);
}

/** Paths of the leaves of a schema: scalars, lists, free maps. */
export function leafPaths(schema: StructuralSchema, path = ''): string[] {
  const properties = schema.properties as Record<string, StructuralSchema> | undefined;
  if (properties === undefined) return [path];
  return Object.entries(properties).flatMap(([name, member]: [string, Json]) =>
    leafPaths(member as StructuralSchema, path === '' ? name : `${path}.${name}`),
  );
}
