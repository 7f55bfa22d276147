/**
 * The identity of a model revision: the hash of its inputs, the fields of the spec that shape pods as the user wrote
 * them. Never what is rendered from them and never the operator's defaults, so that neither an operator's upgrade nor a
 * new default makes a revision. Pure.
 */
import { hashName } from './canonical.ts';
import { fieldEffects } from './field-effects.ts';
import type { InferenceServiceSpec } from './inference-service.ts';
import type { Json, JsonObject } from './objects.ts';

export type RevisionInputs = Omit<
  InferenceServiceSpec,
  'replicas' | 'suspend' | 'revisionHistoryLimit' | 'rollout'
> & {
  /** The commit, or the digest, that the branch or tag stood for when the revision was made. */
  readonly commit?: string;
};

/** Below these, what is written is the user's own PodSpec, where an empty value means something (`emptyDir: {}`). */
const verbatim = new Set(['template.spec']);

export function revisionInputs(spec: InferenceServiceSpec, commit?: string): RevisionInputs {
  const inputs = (inputsOf(spec as unknown as Json, '') ?? {}) as unknown as RevisionInputs;
  return commit === undefined ? inputs : { ...inputs, commit };
}

/** The value without the fields that are no inputs and without empty maps and lists, which say nothing. */
function inputsOf(value: Json, path: string): Json | undefined {
  const effect = fieldEffects[path];
  if (effect !== undefined && effect !== 'new revision') return undefined;
  if (Array.isArray(value)) return value.length === 0 ? undefined : value;
  if (typeof value !== 'object' || value === null) return value;
  if (verbatim.has(path)) return Object.keys(value).length === 0 ? undefined : value;
  const members: JsonObject = {};
  for (const [key, member] of Object.entries(value)) {
    const input = inputsOf(member, path === '' ? key : `${path}.${key}`);
    if (input !== undefined) members[key] = input;
  }
  return Object.keys(members).length === 0 ? undefined : members;
}

/** The name of the revision, of its ControllerRevision and of its Deployment. */
export function revisionName(serviceName: string, inputs: RevisionInputs): string {
  return `${serviceName}-${hashName(inputs)}`;
}
