/**
 * Conditions as kstatus, Argo CD and Flux read them: Available and Ready always; Reconciling, Stalled and Paused only while
 * true; Resolved and PreflightPassed where a checkpoint is looked up before it runs.
 * Pure. Times come from outside, and one changes only when the condition's status does.
 */

export const conditionTypes = [
  'Available',
  'Ready',
  'Reconciling',
  'Stalled',
  'Paused',
  'Resolved',
  'PreflightPassed',
  'SpecUnderstood',
] as const;
export type ConditionType = (typeof conditionTypes)[number];

/** What is to be said; the bookkeeping is added by `stampConditions`. */
export interface Finding {
  readonly type: ConditionType;
  readonly status: 'True' | 'False';
  /** CamelCase, stable, for machines. */
  readonly reason: string;
  /** For people. Holds no number that changes by itself: it would be a write each time. */
  readonly message: string;
}

export interface Condition {
  type: ConditionType;
  status: 'True' | 'False' | 'Unknown';
  observedGeneration: number;
  /** RFC 3339, in whole seconds. */
  lastTransitionTime: string;
  reason: string;
  message: string;
}

const maxMessageLength = 1024;

export function stampConditions(
  findings: readonly Finding[],
  before: readonly Condition[],
  generation: number,
  now: Date,
): Condition[] {
  return [...findings]
    .sort((a, b) => conditionTypes.indexOf(a.type) - conditionTypes.indexOf(b.type))
    .map((finding) => {
      const old = before.find((each) => each.type === finding.type);
      return {
        type: finding.type,
        status: finding.status,
        observedGeneration: generation,
        lastTransitionTime: old?.status === finding.status ? old.lastTransitionTime : timestamp(now),
        reason: finding.reason,
        message: shorten(finding.message),
      };
    });
}

export function timestamp(time: Date): string {
  return `${time.toISOString().slice(0, 19)}Z`;
}

function shorten(text: string): string {
  return text.length <= maxMessageLength ? text : `${text.slice(0, maxMessageLength - 3)}...`;
}
