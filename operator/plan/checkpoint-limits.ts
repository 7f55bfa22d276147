/**
 * What a pod may take, from what is known of its checkpoint: disk for /cache, and time to start. Enters: a revision's
 * inputs, a checkpoint's facts. Leaves: bytes and seconds, or nothing where nothing is known. Pure. Bounds against what
 * runs away or hangs, with room to spare: who crosses one is evicted or started anew.
 */
import type { ResolvedModel } from '../api/inference-service.ts';
import type { RevisionInputs } from '../api/revision.ts';
import { isOnHub, startupSeconds, type TemplateContext } from '../resources/pod-template.ts';

const plainBytes: Readonly<Record<string, number>> = { float32: 4, float16: 2, bfloat16: 2 };
/** No format that the runtime reads has fewer. */
const leastBytesPerWeight = 0.5;
/** float32, and int8 for many rows; a tied embedding is there as the head, too. */
const preparedBytesPerWeight = 8;
const otherBytes = 2 ** 30;

/** A slow network; everything else has the time of a checkpoint of which nothing is known. */
const bytesPerSecond = 10 * 2 ** 20;

export function checkpointLimits(
  inputs: RevisionInputs,
  model: ResolvedModel | undefined,
): Pick<TemplateContext, 'cacheBytes' | 'startupSeconds'> {
  // What another commit holds says nothing about this one.
  if (model?.bytes === undefined || model.commit !== inputs.commit) return {};
  const { bytes, quantization = '' } = model;
  const weights = bytes / (plainBytes[quantization] ?? leastBytesPerWeight);
  // Files of the hub, and weights once more in the forms that the runtime computes with.
  const files = isOnHub(inputs.model.path) ? bytes : 0;
  return {
    cacheBytes: files + preparedBytesPerWeight * weights + otherBytes,
    startupSeconds: startupSeconds + Math.ceil(bytes / bytesPerSecond),
  };
}
