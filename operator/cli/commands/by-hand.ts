/**
 * What a person says to a rollout: undo in the spec, pause, promote, abort and retry as a hold in the status, which ends
 * with the next generation of the spec. Enters: a client, a name. Leaves: one line that says what was written, and a
 * warning where a GitOps tool keeps the object.
 */
import { SluiceError } from '../../../runtime/errors.ts';
import { type KubeClient, type KubeObject, resources } from '../../kube/client.ts';
import { historyOf, previousRevision } from '../../plan/history.ts';
import type { CommandOptions } from '../command-line.ts';
import { getService, observe } from '../observe.ts';
import { handManager } from './plan.ts';

const type = resources.inferenceServices;

export type HoldCommand = 'pause' | 'resume' | 'promote' | 'abort' | 'retry';

const holds = { pause: 'Pause', promote: 'Promote', abort: 'Abort', retry: 'Retry' } as const;

const effects: Readonly<Record<keyof typeof holds, string>> = {
  pause: 'its rollout stays where it is',
  promote: 'its rollout goes on',
  abort: 'its rollout ends, and what served before serves again',
  retry: 'the revision that failed is tried once more',
};

export interface Said {
  readonly said: string;
  /** For standard error. */
  readonly warnings: readonly string[];
}

export async function holdCommand(
  client: KubeClient,
  namespace: string,
  name: string,
  command: HoldCommand,
): Promise<Said> {
  const service = await getService(client, namespace, name);
  const title = `${namespace}/${name}`;
  const { rollout } = service.status ?? {};
  if (command === 'resume') {
    if (service.spec.rollout?.paused === true)
      throw refused(
        `${title} is paused by its spec: set spec.rollout.paused to false, in Git where it is kept`,
      );
    if (rollout?.hold?.verb !== 'Pause') return { said: `${title} is not paused`, warnings: [] };
    await writeHold(client, service, undefined);
    return { said: `${title}: its rollout goes on`, warnings: [] };
  }
  check(service, command, title);
  const verb = holds[command];
  await writeHold(client, service, { verb, generation: service.metadata.generation ?? 0 });
  const keeper = keeperOf(service);
  return {
    said: `${title}: ${effects[command]}; this ends with the next change of the spec`,
    warnings:
      keeper === undefined
        ? []
        : [
            `${keeper} keeps ${title}: its next change of the spec ends this; what should last belongs in Git${command === 'pause' ? ' (spec.rollout.paused: true)' : ''}`,
          ],
  };
}

/** What would do nothing is refused, with the state that makes it so. */
function check(service: KubeObject, command: HoldCommand, title: string): void {
  const { currentRevision, updateRevision, rollout, conditions = [] } = service.status ?? {};
  const failed = rollout?.failure;
  // biome-ignore lint/suspicious/noExplicitAny: a condition as stored.
  const ready = conditions.some((each: any) => each.type === 'Ready' && each.status === 'True');
  if (command === 'retry' && failed === undefined)
    throw refused(
      `${title}: nothing has failed that could be tried again; explain ${service.metadata.name} says how it stands`,
    );
  if ((command === 'promote' || command === 'abort') && (ready || currentRevision === updateRevision))
    throw refused(`${title}: no rollout is under way; history ${service.metadata.name} lists its revisions`);
}

async function writeHold(
  client: KubeClient,
  service: KubeObject,
  hold: { verb: string; generation: number } | undefined,
): Promise<void> {
  const { name, namespace = '', resourceVersion } = service.metadata;
  const ref = { namespace, name };
  const patch = { metadata: { resourceVersion }, status: { rollout: { hold: hold ?? null } } };
  if (hold === undefined) {
    await client.mergePatch(type, ref, patch, { subresource: 'status' });
    return;
  }
  await client.apply(
    type,
    {
      apiVersion: service.apiVersion,
      kind: service.kind,
      metadata: ref,
      status: { rollout: { hold } },
    },
    { fieldManager: handManager, force: true, subresource: 'status' },
  );
}

export async function undoCommand(
  client: KubeClient,
  namespace: string,
  name: string,
  { to, off }: Pick<CommandOptions, 'to' | 'off'>,
): Promise<Said> {
  const service = await getService(client, namespace, name);
  const title = `${namespace}/${name}`;
  if (off && to !== undefined) throw refused('undo: --to and --off exclude each other');
  const keeper = keeperOf(service);
  const warnings =
    keeper === undefined
      ? []
      : [
          `${keeper} keeps ${title}: it may take this back; what should last belongs in Git (spec.rollout.rollbackTo)`,
        ];
  if (off) {
    if (!service.spec.rollout?.rollbackTo) return { said: `${title} follows its spec already`, warnings: [] };
    await client.mergePatch(type, { namespace, name }, { spec: { rollout: { rollbackTo: null } } });
    return { said: `${title}: its spec is followed again`, warnings };
  }
  const world = await observe(client, service, new Date());
  const known = historyOf(world).map((each) => each.name);
  const target = to ?? previousRevision(world);
  if (target === undefined) throw refused(`${title}: there is no earlier revision to return to`);
  if (!known.includes(target))
    throw refused(
      `undo --to "${target}": ${title} has no such revision; it has ${known.join(', ') || 'none'}`,
    );
  await client.apply(
    type,
    {
      apiVersion: service.apiVersion,
      kind: service.kind,
      metadata: { namespace, name },
      spec: { rollout: { rollbackTo: target } },
    },
    { fieldManager: handManager, force: true },
  );
  return {
    said: `${title}: returns to revision ${target} and stays there until undo ${name} --off`,
    warnings,
  };
}

/** The GitOps tool that applies the object, by the marks that it leaves. */
function keeperOf({ metadata }: KubeObject): 'Argo CD' | 'Flux' | undefined {
  const names = [...Object.keys(metadata.labels ?? {}), ...Object.keys(metadata.annotations ?? {})];
  const managers = ((metadata.managedFields ?? []) as { manager?: string }[]).map(
    (each) => each.manager ?? '',
  );
  if (names.some((each) => each.startsWith('argocd.argoproj.io/')) || managers.includes('argocd-controller'))
    return 'Argo CD';
  const flux = managers.some((each) => ['kustomize-controller', 'helm-controller'].includes(each));
  return flux || names.some((each) => each.includes('.toolkit.fluxcd.io/')) ? 'Flux' : undefined;
}

function refused(message: string): SluiceError {
  return new SluiceError('config_invalid', message);
}
