/**
 * What to tell people when a status changes: one Event for each step, none for what stays. Pure.
 */
import type { InferenceServiceStatus } from '../api/inference-service.ts';

export interface Notice {
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
}

const warnings = ['Stalled', 'Reconciling'];
/** Reasons of Reconciling that are a matter of course. */
const ordinary = ['Starting', 'RollingOut', 'Scaling', 'ManualPause', 'Resolving'];

export function noticesOf(
  before: Partial<InferenceServiceStatus> | undefined,
  after: InferenceServiceStatus,
): Notice[] {
  const notices: Notice[] = [];
  if (after.updateRevision !== undefined && after.updateRevision !== before?.updateRevision)
    notices.push({
      type: 'Normal',
      reason: 'RevisionWanted',
      message: `The spec asks for revision ${after.updateRevision}`,
    });
  const { decision, message } = after.rollout ?? {};
  if (
    decision !== undefined &&
    message !== undefined &&
    (decision !== before?.rollout?.decision || after.rollout?.revision !== before?.rollout?.revision)
  )
    notices.push({ type: 'Normal', reason: `Rollout${decision}`, message });
  for (const condition of after.conditions ?? []) {
    const old = before?.conditions?.find((each) => each.type === condition.type);
    if (old?.status === condition.status && old.reason === condition.reason) continue;
    const { reason, message } = condition;
    if (warnings.includes(condition.type)) {
      notices.push({ type: ordinary.includes(reason) ? 'Normal' : 'Warning', reason, message });
    } else if (condition.type === 'Paused') {
      notices.push({ type: 'Normal', reason, message });
    } else if (condition.type === 'Ready' && condition.status === 'True') {
      notices.push({ type: 'Normal', reason, message });
    } else if (condition.type === 'SpecUnderstood' && condition.status === 'False') {
      notices.push({ type: 'Warning', reason, message });
    }
  }
  return notices;
}
