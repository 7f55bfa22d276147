/**
 * Which revision is wanted. Enters: the spec, the records of past revisions, what was resolved. Leaves: its name and inputs,
 * or what is still to be found out, or why it cannot be. Pure.
 */
import { hashName } from '../api/canonical.ts';
import type { InferenceServiceSpec, ResolvedModel } from '../api/inference-service.ts';
import { type RevisionInputs, revisionInputs, revisionName } from '../api/revision.ts';
import { lastStatus, recordsOf, type World } from './world.ts';

export interface Target {
  /** Absent while the commit is not known, or where it cannot be had. */
  readonly revision?: { readonly name: string; readonly inputs: RevisionInputs };
  /** By `rollbackTo`; and whether the spec asks for another one meanwhile. */
  readonly pinned?: { readonly name: string; readonly differs: boolean };
  /** `rollbackTo` names what is not there. */
  readonly missing?: string;
  /** The hash of what has to be looked up; absent where a path in storage is taken as it is. */
  readonly source?: string;
  /** Known from a record or from the last status. */
  readonly resolved?: ResolvedModel;
}

export function findTarget(world: World, spec: InferenceServiceSpec): Target {
  const asked = askedFor(world, spec);
  const name = spec.rollout?.rollbackTo;
  if (name === undefined || name === '') return asked;
  const record = recordsOf(world).find((each) => each.name === name);
  const { revision, ...about } = asked;
  if (record === undefined) return { ...about, missing: name };
  return {
    ...about,
    revision: { name, inputs: record.data.inputs },
    pinned: { name, differs: revision !== undefined && revision.name !== name },
  };
}

function askedFor(world: World, spec: InferenceServiceSpec): Target {
  const named = (inputs: RevisionInputs) => ({
    name: revisionName(world.service.metadata.name, inputs),
    inputs,
  });
  if (!isLookedUp(spec)) return { revision: named(revisionInputs(spec)) };
  const source = sourceOf(revisionInputs(spec));
  const known = lastStatus(world).model;
  const resolved = known?.source === source ? known : undefined;
  const commit = commitOf(world, spec, source, resolved);
  return {
    source,
    ...(resolved === undefined ? {} : { resolved }),
    ...(commit === undefined ? {} : { revision: named(revisionInputs(spec, commit)) }),
  };
}

function isLookedUp({ model }: InferenceServiceSpec): boolean {
  return !model.path.startsWith('/') || model.updatePolicy !== undefined;
}

/**
 * Pinned: what the branch or tag stood for when a revision was first made from it, as long as its record is there; so what
 * is lost of the status, and a return to an older spec, moves nothing.
 */
function commitOf(
  world: World,
  spec: InferenceServiceSpec,
  source: string,
  resolved: ResolvedModel | undefined,
): string | undefined {
  const recorded = recordsOf(world)
    .filter(({ data }) => data.inputs.commit !== undefined && sourceOf(data.inputs) === source)
    .at(-1)?.data.inputs.commit;
  return spec.model.updatePolicy === 'Track'
    ? (resolved?.commit ?? recorded)
    : (recorded ?? resolved?.commit);
}

/** What a commit is looked up by. */
export function sourceOf({ model, storage }: Pick<RevisionInputs, 'model' | 'storage'>): string {
  const { path, revision, endpoint } = model;
  return hashName({ path, revision, endpoint, ...(path.startsWith('/') ? { storage } : {}) });
}
