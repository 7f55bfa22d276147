/** The API's schema: what the CRD says, what stored objects are understood as, what makes a revision. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { canonicalJson, hashName } from '../../../operator/api/canonical.ts';
import { inferenceServiceCrd } from '../../../operator/api/crd.ts';
import { fieldEffects } from '../../../operator/api/field-effects.ts';
import type { InferenceServiceSpec } from '../../../operator/api/inference-service.ts';
import { understandSpec } from '../../../operator/api/parse.ts';
import { revisionInputs, revisionName } from '../../../operator/api/revision.ts';
import { leafPaths, type StructuralSchema } from '../../../operator/api/structural.ts';
import { quantizationEncodings } from '../../../runtime/config.ts';

const crd = inferenceServiceCrd();
const version = crd.spec.versions[0];
const specSchema = version.schema.openAPIV3Schema.properties.spec as StructuralSchema;

const tiny: InferenceServiceSpec = {
  model: { path: '/tiny' },
  replicas: 1,
  storage: { persistentVolumeClaim: { claimName: 'models' } },
};

test('every leaf of the schema has a row in the table of effects, and every row is a leaf', () => {
  assert.deepEqual(leafPaths(specSchema).sort(), Object.keys(fieldEffects).sort());
});

test('the only default of the whole spec is one replica', () => {
  const defaults: string[] = [];
  const visit = (schema: StructuralSchema, path: string): void => {
    if (schema.default !== undefined) defaults.push(`${path}=${canonicalJson(schema.default)}`);
    for (const [name, member] of Object.entries(
      (schema.properties ?? {}) as Record<string, StructuralSchema>,
    ))
      visit(member, `${path}.${name}`);
    if (schema.items) visit(schema.items as StructuralSchema, `${path}[]`);
  };
  visit(specSchema, 'spec');
  assert.deepEqual(defaults, ['spec.replicas=1']);
});

test('quantization takes what the runtime takes', () => {
  const quantization = (specSchema.properties as Record<string, StructuralSchema>).quantization!;
  assert.deepEqual(quantization.enum, [...quantizationEncodings]);
});

test('the columns that kubectl prints, and the subresources', () => {
  assert.deepEqual(
    version.additionalPrinterColumns.map((column: { name: string }) => column.name),
    ['Model', 'Revision', 'GPUs', 'Quantization', 'Ready', 'Replicas', 'Age'],
  );
  assert.deepEqual(version.subresources, {
    status: {},
    scale: {
      specReplicasPath: '.spec.replicas',
      statusReplicasPath: '.status.replicas',
      labelSelectorPath: '.status.selector',
    },
  });
});

test('the CRD stays far below the 256 KiB that client-side apply can annotate', () => {
  assert.ok(JSON.stringify(crd).length < 200 * 1024);
});

const understood: Record<string, [stored: unknown, unknown: string[], problems: RegExp[]]> = {
  'a whole spec': [tiny, [], []],
  'a spec stored without replicas': [{ model: { path: '/tiny' } }, [], []],
  'an unknown field': [{ ...tiny, autoscaling: { maxReplicas: 3 } }, ['spec.autoscaling'], []],
  'unknown fields at several depths': [
    {
      ...tiny,
      model: { path: '/tiny', mirror: 'main' },
      runtime: { newKnob: 1, threads: 2 },
      gateway: false,
    },
    ['spec.gateway', 'spec.model.mirror', 'spec.runtime.newKnob'],
    [],
  ],
  'a value from a newer list': [{ ...tiny, quantization: 'fp2' }, [], [/^spec\.quantization: /]],
  'a missing part': [{ replicas: 1 }, [], [/^spec\.model: /]],
  'no spec at all': [undefined, [], [/^spec\.model: /]],
  'an unknown field beside a value that cannot be read': [
    { ...tiny, gpus: 'two', more: 1 },
    ['spec.more'],
    [/^spec\.gpus: /],
  ],
};

for (const [name, [stored, unknownFields, problems]] of Object.entries(understood)) {
  test(`understanding ${name}`, () => {
    const result = understandSpec(stored);
    assert.deepEqual(result.unknownFields, unknownFields);
    assert.equal(result.problems.length, problems.length, result.problems.join('; '));
    for (const [index, pattern] of problems.entries()) assert.match(result.problems[index]!, pattern);
    assert.equal(result.spec === undefined, problems.length > 0);
  });
}

const nameOf = (spec: InferenceServiceSpec) => revisionName('tiny', revisionInputs(spec));

const sameRevision: Record<string, InferenceServiceSpec> = {
  'other replicas': { ...tiny, replicas: 7 },
  'empty lists and maps': {
    ...tiny,
    model: { path: '/tiny', servedNames: [], weightFiles: [] },
    runtime: { extraArgs: [] },
    template: { metadata: { labels: {} }, spec: {} },
  },
  'members in another order': {
    storage: { persistentVolumeClaim: { claimName: 'models' } },
    replicas: 1,
    model: { path: '/tiny' },
  },
};
for (const [name, spec] of Object.entries(sameRevision)) {
  test(`${name}: the same revision`, () => assert.equal(nameOf(spec), nameOf(tiny)));
}

const otherRevision: Record<string, InferenceServiceSpec> = {
  'another path': { ...tiny, model: { path: '/tiny2' } },
  'an image': { ...tiny, image: 'x:1' },
  'an option of the runtime': { ...tiny, runtime: { threads: 1 } },
  'an empty value inside the pod template, where it means something': {
    ...tiny,
    template: { spec: { volumes: [{ name: 'scratch', emptyDir: {} }] } },
  },
  'the order of a list': { ...tiny, model: { path: '/tiny', servedNames: ['a', 'b'] } },
};
for (const [name, spec] of Object.entries(otherRevision)) {
  test(`${name}: another revision`, () => assert.notEqual(nameOf(spec), nameOf(tiny)));
}

test('the hash of a spec is what it was: a change of it would restart every service there is', () => {
  assert.equal(nameOf(tiny), 'tiny-n6zdfn7j27');
  assert.equal(
    nameOf({ ...tiny, gpus: 2, model: { path: '/a', servedNames: ['x', 'y'] } }),
    'tiny-9lhvr94d9c',
  );
});

test('canonical JSON does not depend on the order of members, and says the same as JSON', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const reversed = JSON.parse(JSON.stringify(value), (_, member) =>
        typeof member === 'object' && member !== null && !Array.isArray(member)
          ? Object.fromEntries(Object.entries(member).reverse())
          : member,
      );
      const text = canonicalJson(value);
      assert.equal(canonicalJson(reversed), text);
      assert.deepEqual(JSON.parse(text), JSON.parse(JSON.stringify(value)));
    }),
  );
});

test('hashes are legal in names and label values', () => {
  fc.assert(fc.property(fc.jsonValue(), (value) => assert.match(hashName(value), /^[a-z0-9]{10}$/)));
});
