/**
 * What a model can run on. Enters: what the user asked for (`--devices`, `--threads`) and the model's KV heads.
 * Leaves: a plan of ranks. Must not know graphs or ONNX Runtime.
 */

/** A rank's place: on the CPU, a thread with a single-threaded session, or one with threads of ONNX Runtime's own. */
export interface CpuDevice {
  readonly kind: 'cpu';
  readonly index: number;
  /** Threads that this rank computes with, its own included. */
  readonly threads: number;
}

export type Device = CpuDevice;

export type DeviceSelection =
  | { readonly kind: 'auto' }
  | { readonly kind: 'cpu'; readonly indices: readonly number[] };

export interface RankPlan {
  readonly devices: readonly Device[];
  /** Whether ranks may spin while they wait for each other: every one has a core of its own. */
  readonly spin: boolean;
}

/**
 * `auto`: as many ranks as threads, at most one for each KV head; threads beyond that go to the ranks. Indices: one
 * rank each, also when they exceed the cores. `cores`: what the process may run on.
 */
export function planRanks(
  selection: DeviceSelection,
  threads: number,
  kvHeads: number,
  cores: number,
): RankPlan {
  const indices =
    selection.kind === 'cpu'
      ? selection.indices
      : Array.from({ length: Math.max(1, Math.min(threads, kvHeads)) }, (_, index) => index);
  const ranks = indices.length;
  const each = Math.max(1, Math.floor(threads / ranks));
  return {
    devices: indices.map((index) => ({ kind: 'cpu', index, threads: each })),
    spin: ranks * each <= cores,
  };
}
