/**
 * The Job that runs `sluice resolve` where the pods would run: their image, volume, Secret and placement, without GPUs and
 * without what else the author put beside the runtime. Its answer is the container's termination message. Pure.
 */
import { hashName } from '../api/canonical.ts';
import type { AnyObject, Json, JsonObject } from '../api/objects.ts';
import type { RevisionInputs } from '../api/revision.ts';
import { ownerReference, resolveRole, roleLabel, serviceLabel } from './labels.ts';
import { cacheMountPath, modelArguments, podTemplate, runtimeContainer } from './pod-template.ts';

/** The runtime's exit code for what no repetition would change. */
const refusedExitCode = 2;
const retries = 4;
const deadlineSeconds = 600;
/** Headers of weights, configuration and tokenizer. */
const cacheBytes = 2 ** 30;
const resultFile = '/dev/termination-log';

export function resolveJobName(serviceName: string, source: string): string {
  return `${serviceName}-${hashName({ resolve: source })}`;
}

export function resolveJob(
  service: AnyObject,
  source: string,
  inputs: RevisionInputs,
  { runtimeImage }: { readonly runtimeImage: string },
): AnyObject {
  const { name: serviceName, namespace = '' } = service.metadata;
  const context = { serviceName, revision: serviceName, defaultImage: runtimeImage, cacheBytes };
  const { spec } = podTemplate(inputs, context) as { spec: JsonObject };
  const labels = { [serviceLabel]: serviceName, [roleLabel]: resolveRole };
  const {
    topologySpreadConstraints: _,
    initContainers: __,
    terminationGracePeriodSeconds: ___,
    resourceClaims: ____,
    schedulingGates: _____,
    ...kept
  } = spec;
  const containers = spec.containers as JsonObject[];
  return {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: {
      name: resolveJobName(serviceName, source),
      namespace,
      labels,
      ownerReferences: [ownerReference(service)],
    },
    spec: {
      backoffLimit: retries,
      activeDeadlineSeconds: deadlineSeconds,
      podFailurePolicy: {
        rules: [
          {
            action: 'FailJob',
            onExitCodes: { containerName: runtimeContainer, operator: 'In', values: [refusedExitCode] },
          },
        ],
      },
      template: {
        metadata: { labels },
        spec: {
          ...kept,
          restartPolicy: 'Never',
          containers: containers
            .filter(({ name }) => name === runtimeContainer)
            .map((each) => lookup(each, inputs)),
        },
      },
    },
  };
}

function lookup(container: JsonObject, inputs: RevisionInputs): JsonObject {
  const { name, image, volumeMounts, securityContext, imagePullPolicy, env = [] } = container;
  const [model, ...others] = modelArguments(inputs);
  return {
    name: name!,
    image: image!,
    ...(imagePullPolicy === undefined ? {} : { imagePullPolicy }),
    args: ['resolve', model!.replace(/^--[^=]*=/, ''), ...others, `--result-file=${resultFile}`],
    // The root file system is read-only; headers of weights are put there for a moment.
    env: [...(env as Json[]), { name: 'TMPDIR', value: cacheMountPath }],
    volumeMounts: volumeMounts!,
    securityContext: securityContext!,
    terminationMessagePolicy: 'FallbackToLogsOnError',
  };
}
