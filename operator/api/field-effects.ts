/**
 * What an edit of each field of the spec does. The revision's identity is computed from this table: a field that makes a
 * new revision is an input, a field that acts in place is not. A test fails when a leaf of the schema has no row.
 */

/** `policy`: no child changes by it; it says how later changes are made, and what is kept. */
export type FieldEffect = 'in place' | 'new revision' | 'policy';

export const fieldEffects: Readonly<Record<string, FieldEffect>> = {
  'model.path': 'new revision',
  'model.servedNames': 'new revision',
  'model.weightFiles': 'new revision',
  'model.revision': 'new revision',
  'model.updatePolicy': 'policy',
  'model.trackIntervalSeconds': 'policy',
  'model.tokenSecretRef.name': 'new revision',
  'model.tokenSecretRef.key': 'new revision',
  'model.endpoint': 'new revision',
  gpus: 'new revision',
  gpuResource: 'new revision',
  quantization: 'new revision',
  replicas: 'in place',
  image: 'new revision',
  'runtime.quantizedCompute': 'new revision',
  'runtime.threads': 'new revision',
  'runtime.maxBatchSize': 'new revision',
  'runtime.maxLength': 'new revision',
  'runtime.maxBatchInputTokens': 'new revision',
  'runtime.kvCachePageSize': 'new revision',
  'runtime.cacheDir': 'new revision',
  'runtime.maxBodyBytes': 'new revision',
  'runtime.shutdownDelaySeconds': 'new revision',
  'runtime.shutdownGraceSeconds': 'new revision',
  'runtime.logLevel': 'new revision',
  'runtime.extraArgs': 'new revision',
  'storage.persistentVolumeClaim.claimName': 'new revision',
  'storage.persistentVolumeClaim.subPath': 'new revision',
  'template.metadata.labels': 'new revision',
  'template.metadata.annotations': 'new revision',
  'template.spec': 'new revision',
  suspend: 'in place',
  revisionHistoryLimit: 'policy',
  'rollout.strategy': 'policy',
  'rollout.maxSurge': 'policy',
  'rollout.maxUnavailable': 'policy',
  'rollout.progressDeadlineSeconds': 'policy',
  'rollout.paused': 'policy',
  'rollout.rollbackTo': 'policy',
  'rollout.onFailure': 'policy',
  'rollout.promotion': 'policy',
  'rollout.capacity.mode': 'policy',
  'rollout.capacity.whenInsufficient': 'policy',
  'rollout.capacity.waitSeconds': 'policy',
};
