/**
 * What an edit of each field of the spec does. The revision's identity is computed from this table: a field that makes a
 * new revision is an input, a field that acts in place is not. A test fails when a leaf of the schema has no row.
 */

/** `none`: the field is stored, and no child changes. */
export type FieldEffect = 'in place' | 'new revision' | 'none';

export const fieldEffects: Readonly<Record<string, FieldEffect>> = {
  'model.path': 'new revision',
  'model.servedNames': 'new revision',
  'model.weightFiles': 'new revision',
  gpus: 'new revision',
  gpuResource: 'new revision',
  quantization: 'new revision',
  replicas: 'in place',
  image: 'new revision',
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
};
