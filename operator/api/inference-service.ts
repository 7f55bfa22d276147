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

/** `org/name`, as the hub writes repositories. */
const hubPathPattern = '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$';

const modelSchema = z
  .strictObject({
    path: z
      .string()
      .min(1)
      .max(1024)
      .describe(
        'The checkpoint: org/name on the hub, for example Qwen/Qwen3-0.6B, or an absolute path inside `storage`, for example /tiny.',
      )
      .meta(
        rules(
          {
            rule: `self.startsWith('/') || self.matches('${hubPathPattern}')`,
            message:
              'the form is an absolute path inside spec.storage, for example /tiny, or org/name on the hub, for example Qwen/Qwen3-0.6B',
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
    revision: z
      .string()
      .min(1)
      .max(256)
      .regex(/^\S+$/)
      .exactOptional()
      .describe('A branch, a tag or a commit of the repository on the hub; absent: main.'),
    updatePolicy: z
      .enum(['Pinned', 'Track'])
      .exactOptional()
      .describe(
        'Pinned: the commit that the branch or tag named first stays. Track: it is looked up again from time to time, and a new commit is rolled out. Absent: Pinned; a path in `storage` is then not looked at.',
      ),
    trackIntervalSeconds: z
      .int()
      .min(1)
      .max(2_592_000)
      .exactOptional()
      .describe('How often Track looks; absent: 300.'),
    tokenSecretRef: z
      .strictObject({
        name: z.string().min(1).max(253).describe('The Secret, in the namespace of this object.'),
        key: z.string().min(1).max(253).describe('Its key that holds the token.'),
      })
      .exactOptional()
      .describe('The token for private and gated repositories.'),
    endpoint: z
      .string()
      .max(1024)
      .regex(/^https?:\/\/\S+$/)
      .exactOptional()
      .describe('A mirror of the hub, for example https://hub.example; absent: https://huggingface.co.'),
  })
  .describe('What is served.')
  .meta(
    rules(
      {
        rule: "!has(self.trackIntervalSeconds) || (has(self.updatePolicy) && self.updatePolicy == 'Track')",
        message: 'trackIntervalSeconds goes only with updatePolicy: Track',
        fieldPath: '.trackIntervalSeconds',
      },
      {
        rule: "!self.path.startsWith('/') || !(has(self.revision) || has(self.tokenSecretRef) || has(self.endpoint))",
        message:
          'revision, tokenSecretRef and endpoint are about the hub: they need a path such as Qwen/Qwen3-0.6B, not one inside spec.storage',
      },
    ),
  );

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
      .describe(
        'Labels and annotations of the pods. The label kueue.x-k8s.io/queue-name stands at their Deployment, too.',
      ),
    spec: z
      .record(z.string(), z.unknown())
      .exactOptional()
      .describe(
        'A partial PodSpec, merged over what the operator makes: lists by name as `kubectl patch` does; the container is `runtime`.',
      )
      .meta({ 'x-kubernetes-preserve-unknown-fields': true }),
  })
  .describe('What else the pods should have: a partial PodTemplateSpec.');

const percentPattern = /^(100|[1-9]?[0-9])%$/;

/** An integer, or a share of the replicas; the API server accepts nothing else in an int-or-string field. */
const intOrPercent = (description: string) =>
  z
    .union([z.int().min(0).max(1000), z.string().max(4).regex(percentPattern)])
    .exactOptional()
    .describe(description)
    .meta({
      'x-kubernetes-int-or-string': true,
      ...rules({
        rule: `type(self) == int ? self >= 0 && self <= 1000 : self.matches('${percentPattern.source}')`,
        message:
          'the form is an integer from 0 to 1000 or a percentage from 0% to 100%, for example 1 or 25%',
      }),
    });

const capacitySchema = z
  .strictObject({
    mode: z
      .enum(['Existing', 'MayGrow'])
      .exactOptional()
      .describe(
        'Existing: the nodes that are there are all there will be. MayGrow: pods that find no place are left Pending for an autoscaler of nodes. Absent: Existing.',
      ),
    whenInsufficient: z
      .enum(['Recreate', 'Wait'])
      .exactOptional()
      .describe(
        'Where new pods find no GPU beside the old ones. Recreate: old pods end first, which is announced in a condition before it begins. Wait: nothing ends until there is room. Absent: Recreate.',
      ),
    waitSeconds: z
      .int()
      .min(1)
      .max(86_400)
      .exactOptional()
      .describe('How long a new pod may find no node before it is withdrawn; absent: 120.'),
  })
  .describe('What to do about GPUs that are not free.');

const rolloutSchema = z
  .strictObject({
    strategy: z
      .enum(['Auto', 'Surge', 'Recreate'])
      .exactOptional()
      .describe(
        'Auto: new pods start beside the old ones where there is room, and else as `capacity` says. Surge: only beside them. Recreate: the old ones end first. Absent: Auto.',
      ),
    maxSurge: intOrPercent('Pods more than `replicas` during a rollout, or a percentage; absent: 1.'),
    maxUnavailable: intOrPercent(
      'Ready pods fewer than `replicas` during a rollout, or a percentage; absent: 0.',
    ),
    progressDeadlineSeconds: z
      .int()
      .min(1)
      .max(604_800)
      .exactOptional()
      .describe(
        'A rollout in which no further pod has become ready for so long has failed; absent: ten minutes more than the startup probe of its pods allows, which follows from the bytes of the weights.',
      ),
    paused: z.boolean().exactOptional().describe('A rollout stays where it is.'),
    rollbackTo: z
      .string()
      .max(63)
      .exactOptional()
      .describe('The name of a revision that is to serve instead of the one that the spec asks for.'),
    onFailure: z
      .enum(['Rollback', 'Hold'])
      .exactOptional()
      .describe(
        'When a rollout has failed. Rollback: the revision that served before does so again. Hold: everything stays as it is. Absent: Rollback.',
      ),
    promotion: z
      .enum(['Automatic', 'Manual'])
      .exactOptional()
      .describe('Manual: all new pods are ready and a person promotes them before old ones end.'),
    capacity: capacitySchema.exactOptional(),
  })
  .describe('How changes that make a new revision are carried out.')
  .meta(
    rules({
      rule: "!has(self.maxSurge) || !has(self.maxUnavailable) || !(self.maxSurge == 0 || self.maxSurge == '0%') || !(self.maxUnavailable == 0 || self.maxUnavailable == '0%')",
      message: 'maxSurge and maxUnavailable may not both be 0',
    }),
  );

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
    suspend: z.boolean().exactOptional().describe('No pods, whatever `replicas` says.'),
    revisionHistoryLimit: z
      .int()
      .min(0)
      .max(100)
      .exactOptional()
      .describe('Revisions of the past that are kept to return to; absent: 5.'),
    rollout: rolloutSchema.exactOptional(),
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
  commit: z.string().max(128).exactOptional().describe('The commit or digest that it is pinned to.'),
  phase: z
    .enum(['Stable', 'Progressing', 'Superseded', 'Failed'])
    .exactOptional()
    .describe(
      'Stable: it serves. Progressing: it is to. Superseded: it ends. Failed: it was tried and given up.',
    ),
  replicas: z.int().min(0).describe('Its pods, ready or starting.'),
  readyReplicas: z.int().min(0),
  createdAt: z.string().max(64).meta({ format: 'date-time' }),
});

export const resolvedModelSchema = z.strictObject({
  source: z.string().max(63).describe('What was asked for: a hash of path, revision and endpoint.'),
  commit: z.string().max(128).describe("The commit, or a digest of the checkpoint's config and index."),
  architecture: z.string().max(256).exactOptional(),
  heads: z.int().min(0).exactOptional(),
  kvHeads: z.int().min(0).exactOptional(),
  headDim: z.int().min(0).exactOptional(),
  hidden: z.int().min(0).exactOptional(),
  intermediate: z.int().min(0).exactOptional(),
  layers: z.int().min(0).exactOptional(),
  vocabulary: z.int().min(0).exactOptional(),
  quantization: z.string().max(64).exactOptional().describe('How the checkpoint has its weights.'),
  bytes: z.int().min(0).exactOptional().describe('Bytes of the weights as stored.'),
  resolvedAt: z.string().max(64).meta({ format: 'date-time' }),
  job: z.string().max(63).exactOptional().describe('The uid of the Job that found it.'),
});

const holdSchema = z
  .strictObject({
    verb: z.enum(['Pause', 'Promote', 'Abort', 'Retry']),
    generation: z.int().min(0).describe('It ends with the next generation of the spec.'),
  })
  .describe("A person's word about this rollout, written by the command line.");

const rolloutStatusSchema = z.strictObject({
  revision: z.string().max(63).exactOptional().describe('The revision that is rolled out.'),
  decision: z.enum(['Surge', 'PartialSurge', 'Recreate', 'Wait']).exactOptional(),
  reason: z.string().max(128).exactOptional(),
  message: z.string().max(1024).exactOptional().describe('Why it is done so, in words.'),
  progressedAt: z
    .string()
    .max(64)
    .exactOptional()
    .meta({ format: 'date-time' })
    .describe('When a further pod became ready, or it began: what the deadline counts from.'),
  withdrawnAt: z
    .string()
    .max(64)
    .exactOptional()
    .meta({ format: 'date-time' })
    .describe('When a pod that found no node was withdrawn.'),
  failure: z
    .strictObject({
      revision: z.string().max(63),
      reason: z.string().max(128),
      message: z.string().max(1024),
    })
    .exactOptional()
    .describe('The revision that was given up, and why; it is not tried again until asked for.'),
  hold: holdSchema.exactOptional(),
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
  model: resolvedModelSchema
    .exactOptional()
    .describe('What `sluice resolve` found behind the path and the branch or tag.'),
  rollout: rolloutStatusSchema.exactOptional().describe('How the last change is or was carried out.'),
  conditions: z
    .array(conditionSchema)
    .max(16)
    .exactOptional()
    .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] }),
});

export type InferenceServiceStatus = z.output<typeof statusSchema>;
export type RolloutPolicy = NonNullable<InferenceServiceSpec['rollout']>;
export type RolloutStatus = z.output<typeof rolloutStatusSchema>;
export type ResolvedModel = z.output<typeof resolvedModelSchema>;
export type RevisionStatus = z.output<typeof revisionStatusSchema>;
