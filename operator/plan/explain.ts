/**
 * Why an InferenceService is not Ready, in one paragraph for people: what its conditions say, what its pods say beyond
 * that, and what one can do. Pure.
 */
import type { Condition } from '../api/conditions.ts';
import { worstTrouble } from './pod-trouble.ts';
import { isReady, isStaying, lastStatus, stateOf, type World } from './world.ts';

/** What helps, by the reason of `Reconciling` or `Stalled`. */
const advice: Readonly<Record<string, string>> = {
  CapacityGap: 'Nothing has to be done: the new pods start as soon as the old ones have gone.',
  CapacityWait: 'Free GPUs, add a node, or set rollout.capacity.whenInsufficient: Recreate.',
  Unschedulable: 'Free what is lacking or add a node; `sluice-operator plan` shows what is free.',
  ImagePullFailed: 'Check spec.image, and template.spec.imagePullSecrets for a private registry.',
  CrashLoop: 'kubectl logs --previous of a pod has what it wrote last.',
  RuntimeConfigRejected: 'Correct the field or the argument that the runtime names.',
  ContainerConfigInvalid: 'Check Secrets, ConfigMaps and volumes that spec.template names.',
  RolledBack:
    'What served before serves still. Correct the spec, or try the same again with `sluice-operator retry`.',
  ProgressDeadlineExceeded:
    'Correct the spec, give it more time by rollout.progressDeadlineSeconds, or try again with `sluice-operator retry`.',
  ManualPause:
    'Go on with `sluice-operator promote` or `resume`, or end it with `abort`; rollout.paused in the spec is for Git.',
  NameConflict: 'Remove the object that is in the way, or give this one another name.',
  TemplateInvalid: 'Correct spec.template at the path that is named.',
  Forbidden: "Give the operator's service account the right that is lacking: the chart has it.",
  SpecNotUnderstood: 'Bring the operator to the version of the CRD.',
  RevisionNotFound: '`sluice-operator history` lists the revisions that are kept.',
};

export function explain(world: World): string {
  const { service } = world;
  const { name, namespace = '', generation = 0 } = service.metadata;
  const status = lastStatus(world);
  const title = `${namespace}/${name}`;
  if (status.observedGeneration === undefined)
    return `${title}: no operator has looked at it yet. Is one running that watches the namespace ${namespace}?`;
  const conditions = (status.conditions ?? []) as Condition[];
  const found = (type: string) => conditions.find((each) => each.type === type && each.status === 'True');
  const sentences: string[] = [];
  if (status.observedGeneration < generation)
    sentences.push(
      'The operator has not looked at the newest spec yet; what follows is about the one before.',
    );
  const ready = found('Ready');
  const cause = found('Stalled') ?? found('Reconciling');
  const staying = world.pods.filter(isStaying);
  const serving = staying.filter(isReady).length;
  if (ready !== undefined) sentences.push(`It is Ready: ${sentence(ready.message)}`);
  else {
    const state = found('Stalled') === undefined ? 'not Ready yet' : 'not Ready, and waiting will not help';
    sentences.push(
      `It is ${state} (${cause?.reason ?? 'Unknown'}): ${sentence(cause?.message ?? 'no condition says why')}`,
    );
  }
  const paused = found('Paused');
  if (paused !== undefined && paused.message !== cause?.message) sentences.push(sentence(paused.message));
  sentences.push(
    serving === 0
      ? staying.length === 0
        ? 'There are no pods.'
        : `None of its ${staying.length} pods is ready: requests are not answered.`
      : `${serving} of ${staying.length} pods answer requests.`,
  );
  const { currentRevision, updateRevision } = status;
  if (updateRevision !== undefined && currentRevision !== undefined && updateRevision !== currentRevision)
    sentences.push(`Revision ${currentRevision} serves, ${updateRevision} is wanted.`);
  const failure = status.rollout?.failure;
  if (failure !== undefined && !cause?.message.includes(failure.message))
    sentences.push(`Revision ${failure.revision} failed (${failure.reason}): ${sentence(failure.message)}`);
  const trouble =
    updateRevision === undefined ? undefined : worstTrouble(stateOf(world, updateRevision).pods);
  if (trouble !== undefined && !cause?.message.includes(trouble.message))
    sentences.push(sentence(trouble.message));
  const decided = status.rollout?.message;
  if (ready === undefined && decided !== undefined && decided !== cause?.message)
    sentences.push(sentence(decided));
  const understood = conditions.find((each) => each.type === 'SpecUnderstood' && each.status === 'False');
  if (understood !== undefined) sentences.push(sentence(understood.message));
  const help = ready === undefined ? advice[cause?.reason ?? ''] : undefined;
  if (help !== undefined) sentences.push(help);
  return `${title}: ${sentences.join(' ')}`;
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
