/**
 * A probe over a container's life: delays, periods and thresholds. In: a probe and a way to carry it out; out: a call
 * for each failure and each change of mind. Must not know what follows from it.
 */
import type { Probe } from './pod-types.ts';
import type { ProbeOutcome } from './probe.ts';
import { pause } from './wait.ts';

export interface ProberOptions {
  readonly probe: Probe;
  readonly execute: () => Promise<ProbeOutcome>;
  /** When the container started, in milliseconds since the epoch. */
  readonly startedAt: number;
  readonly onFailure: (message: string) => void;
  /** The threshold was reached; called again only with the other value. */
  readonly onChange: (ok: boolean, message: string) => void;
  readonly signal: AbortSignal;
}

/** Resolves when the signal is aborted; nothing is called after that. */
export async function runProber(options: ProberOptions): Promise<void> {
  const { probe, execute, signal } = options;
  const periodMs = (probe.periodSeconds ?? 10) * 1000;
  let settled: boolean | undefined;
  let last: boolean | undefined;
  let inARow = 0;
  await pause(options.startedAt + (probe.initialDelaySeconds ?? 0) * 1000 - Date.now(), signal);
  while (!signal.aborted) {
    const begun = Date.now();
    const { ok, message } = await execute();
    if (signal.aborted) return;
    inARow = ok === last ? inARow + 1 : 1;
    last = ok;
    if (!ok) options.onFailure(message);
    const threshold = ok ? (probe.successThreshold ?? 1) : (probe.failureThreshold ?? 3);
    if (inARow >= threshold && settled !== ok) {
      settled = ok;
      options.onChange(ok, message);
    }
    await pause(begun + periodMs - Date.now(), signal);
  }
}
