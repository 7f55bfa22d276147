/**
 * The most that a pod's /cache may come to hold, from what is known of its checkpoint: files of the hub, and weights once
 * more in the forms that the runtime computes with. Enters: a revision's inputs, a checkpoint's facts. Leaves: bytes, or
 * undefined where nothing is known. Pure. A bound against what runs away, with room to spare: who crosses it is evicted.
 */
import type { ResolvedModel } from '../api/inference-service.ts';
import type { RevisionInputs } from '../api/revision.ts';
import { isOnHub } from '../resources/pod-template.ts';

const plainBytes: Readonly<Record<string, number>> = { float32: 4, float16: 2, bfloat16: 2 };
/** No format that the runtime reads has fewer. */
const leastBytesPerWeight = 0.5;
/** float32, and int8 for many rows; a tied embedding is there as the head, too. */
const preparedBytesPerWeight = 8;
const otherBytes = 2 ** 30;

export function cacheLimitBytes(
  inputs: RevisionInputs,
  model: ResolvedModel | undefined,
): number | undefined {
  // What another commit holds says nothing about this one.
  if (model?.bytes === undefined || model.commit !== inputs.commit) return undefined;
  const weights = model.bytes / (plainBytes[model.quantization ?? ''] ?? leastBytesPerWeight);
  const files = isOnHub(inputs.model.path) ? model.bytes : 0;
  return files + preparedBytesPerWeight * weights + otherBytes;
}
