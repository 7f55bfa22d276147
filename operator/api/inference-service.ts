/**
 * The InferenceService of sluice.dev/v1alpha1: the zod schemas of spec and status, from which the CRD is generated and
 * with which stored objects are read. Fields that shape pods have no default: a default added later would change every
 * stored object. Must not know how anything is carried out.
 */
import { z } from 'zod';
import { quantizationEncodings, runtimeOptions, runtimeSpecSchema } from '../../runtime/config.ts';

export const group = 'sluice.dev';
export const version = 'v1alpha1';
export const kind = 'InferenceService';
export const apiVersion = `${group}/${version}`;

/** A name plus a dash and ten characters of hash must fit a label's 63. */
export const maxNameLength = 52;
/** It names the Service too, so the rules of DNS labels (RFC 1035) hold. */
export const namePattern = '^[a-z]([-a-z0-9]*[a-z0-9])?$';

/** A rule in the API server's expression language, refused with `message` at `fieldPath` (relative to where it stands). */
export interface Rule {
  readonly rule: string;
  readonly message: string;
  readonly fieldPath?: string;
  readonly reason?: 'FieldValueRequired' | 'FieldValueInvalid';
}

const rules = (...list: Rule[]) => ({ 'x-kubernetes-validations': list });

const noParent = (value: string) => `!${value}.split('/').exists(part, part == '..')`;

/** Flags that have a field of their own, or that Service and probes rely on; `extraArgs` may not hold them. */
export const reservedFlags: readonly string[] = [
  runtimeOptions.modelPath.flag,
  runtimeOptions.weightPath.flag,
  runtimeOptions.servedModelName.flag,
  runtimeOptions.quantizationEncoding.flag,
  runtimeOptions.host.flag,
  runtimeOptions.port.flag,
  ...Object.values(runtimeOptions).flatMap((option) => ('spec' in option ? [option.flag] : [])),
  'config',
];

const modelSchema = z
  .strictObject({
    path: z
      .string()
      .min(1)
      .max(1024)
      .describe('The checkpoint: an absolute path inside `storage`, for example /tiny.')
      .meta(
        rules(
          {
            rule: "self.startsWith('/')",
            message: 'the form is an absolute path inside spec.storage, for example /tiny',
          },
          { rule: noParent('self'), message: 'may not leave the storage: no "..", for example /team-a/tiny' },
        ),
      ),
    servedNames: z
      .array(
        z
          .string()
          .min(1)
          .max(256)
          .regex(/^[^\s,]+$/),
      )
      .max(16)
      .exactOptional()
      .describe('The names under which clients ask for the model; the first is the one in answers.'),
    weightFiles: z
      .array(
        z
          .string()
          .min(1)
          .max(1024)
          .regex(/^[^,]+$/),
      )
      .max(64)
      .exactOptional()
      .describe(
        'Files to take the weights from instead of those at `path`: relative to `path`, or absolute inside `storage`.',
      )
      .meta(
        rules({
          rule: `self.all(file, ${noParent('file')})`,
          message: 'a weight file may not leave the storage: no ".." in it, for example model.safetensors',
        }),
      ),
  })
  .describe('What is served.');

const claimSchema = z
  .strictObject({
    claimName: z.string().min(1).max(253).describe('The claim, in the namespace of this object.'),
    subPath: z
      .string()
      .max(1024)
      .exactOptional()
      .describe("A folder of the volume that stands for its root; without it the volume's own.")
      .meta(
        rules({
          rule: `!self.startsWith('/') && ${noParent('self')}`,
          message: 'subPath must be relative and without "..", for example team-a/models',
        }),
      ),
  })
  .describe('A volume that holds checkpoints; it is mounted read-only.');

const storageMembers = { persistentVolumeClaim: claimSchema.exactOptional() };

const storageSchema = z
  .strictObject(storageMembers)
  .describe('Where `model.path` lies; exactly one member.')
  .meta(
    rules({
      rule: `${Object.keys(storageMembers)
        .map((member) => `(has(self.${member}) ? 1 : 0)`)
        .join(' + ')} == 1`,
      message: `storage must have exactly one member, for example persistentVolumeClaim: {claimName: models}`,
    }),
  );

const extraArgsSchema = z
  .array(z.string().min(1).max(1024))
  .max(64)
  .exactOptional()
  .describe('Arguments for the runtime that have no field here, for example --devices=cpu:0,1.')
  .meta(
    rules({
      rule: `self.all(arg, !arg.matches('^--(no-)?(${reservedFlags.join('|')})(=.*)?$'))`,
      message: `extraArgs may not hold flags that have a field or that the operator sets: ${reservedFlags.map((flag) => `--${flag}`).join(', ')}`,
    }),
  );

const stringMap = (maximum: number) =>
  z.record(z.string(), z.string().max(maximum)).meta({ maxProperties: 64 });

const templateSchema = z
  .strictObject({
    metadata: z
      .strictObject({
        labels: stringMap(63)
          .exactOptional()
          .meta(
            rules({
              rule: `self.all(key, !key.startsWith('${group}/'))`,
              message: `labels under ${group}/ belong to the operator`,
            }),
          ),
        annotations: stringMap(16_384).exactOptional(),
      })
      .exactOptional()
      .describe('Labels and annotations of the pods.'),
    spec: z
      .record(z.string(), z.unknown())
      .exactOptional()
      .describe(
        'A partial PodSpec, merged over what the operator makes: lists by name as `kubectl patch` does; the container is `runtime`.',
      )
      .meta({ 'x-kubernetes-preserve-unknown-fields': true }),
  })
  .describe('What else the pods should have: a partial PodTemplateSpec.');

export const specSchema = z
  .strictObject({
    model: modelSchema,
    gpus: z
      .int()
      .min(0)
      .max(64)
      .exactOptional()
      .describe('GPUs of each replica; absent or 0: it runs on the CPU.'),
    gpuResource: z
      .string()
      .max(317)
      .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?\/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/)
      .exactOptional()
      .describe('The resource that a GPU is counted by; absent: nvidia.com/gpu.'),
    quantization: z
      .enum(quantizationEncodings)
      .exactOptional()
      .describe('How the weights are kept for computing; absent: as the checkpoint has them.'),
    replicas: z.int().min(0).max(1000).default(1).describe('How many pods serve.'),
    image: z
      .string()
      .min(1)
      .max(1024)
      .regex(/^\S+$/)
      .exactOptional()
      .describe(
        "The runtime's image; absent: the operator's --runtime-image at the time the revision is made.",
      ),
    runtime: runtimeSpecSchema
      .extend({ extraArgs: extraArgsSchema })
      .exactOptional()
      .describe("The runtime's options. Absent ones are left to the runtime."),
    storage: storageSchema.exactOptional(),
    template: templateSchema.exactOptional(),
  })
  .meta(
    rules({
      rule: "!self.model.path.startsWith('/') || has(self.storage)",
      message:
        'an absolute model.path needs spec.storage, the volume it lies in, for example persistentVolumeClaim: {claimName: models}',
      fieldPath: '.storage',
      reason: 'FieldValueRequired',
    }),
  );

export type InferenceServiceSpec = z.output<typeof specSchema>;

export const conditionSchema = z.strictObject({
  type: z.string().min(1).max(64),
  status: z.enum(['True', 'False', 'Unknown']),
  observedGeneration: z.int().min(0),
  lastTransitionTime: z.string().max(64).meta({ format: 'date-time' }),
  reason: z.string().min(1).max(128),
  message: z.string().max(4096),
});

const revisionStatusSchema = z.strictObject({
  name: z.string().max(63).describe('Of its ControllerRevision and its Deployment.'),
  path: z.string().max(1024).describe("The revision's model.path."),
  replicas: z.int().min(0).describe('Its pods, ready or starting.'),
  readyReplicas: z.int().min(0),
  createdAt: z.string().max(64).meta({ format: 'date-time' }),
});

export const statusSchema = z.strictObject({
  observedGeneration: z
    .int()
    .min(0)
    .exactOptional()
    .describe('The generation of the spec that this status is about.'),
  url: z.string().max(512).exactOptional().describe('Where clients inside the cluster reach the model.'),
  replicas: z.int().min(0).exactOptional().describe('Pods of all revisions, ready or starting.'),
  readyReplicas: z.int().min(0).exactOptional().describe('Pods of all revisions that take requests.'),
  selector: z.string().max(512).exactOptional().describe('Selects the pods, for the scale subresource.'),
  currentRevision: z
    .string()
    .max(63)
    .exactOptional()
    .describe('The last revision that was ready as a whole.'),
  updateRevision: z.string().max(63).exactOptional().describe('The revision that the spec asks for.'),
  revisions: z
    .array(revisionStatusSchema)
    .max(32)
    .exactOptional()
    .describe('Revisions that have a Deployment.')
    .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['name'] }),
  conditions: z
    .array(conditionSchema)
    .max(16)
    .exactOptional()
    .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] }),
});

export type InferenceServiceStatus = z.output<typeof statusSchema>;
export type RevisionStatus = z.output<typeof revisionStatusSchema>;
