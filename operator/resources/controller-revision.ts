/**
 * The record of a revision: its inputs and the Deployment rendered from them, frozen in an apps/v1 ControllerRevision
 * (whose data the API server keeps immutable). Equal inputs find the old record and with it the old rendering. Pure.
 */

import { apiVersion } from '../api/inference-service.ts';
import { type AnyObject, controllerOf, type JsonObject } from '../api/objects.ts';
import type { RevisionInputs } from '../api/revision.ts';
import { recordedLabels } from './deployment.ts';
import { ownerReference, queueLabel, revisionLabels } from './labels.ts';
import { podTemplate, startupSeconds, type TemplateContext } from './pod-template.ts';

export interface RevisionData {
  readonly apiVersion: string;
  readonly kind: 'RevisionRecord';
  readonly inputs: RevisionInputs;
  /** The Deployment's spec without replicas. */
  readonly deployment: JsonObject;
  /** Labels of the Deployment itself besides the operator's own. */
  readonly deploymentLabels?: Readonly<Record<string, string>>;
}

export type RenderOptions = { readonly runtimeImage: string } & Pick<
  TemplateContext,
  'cacheBytes' | 'startupSeconds'
>;

/** How much longer than the startup probe a Deployment waits before it calls itself stuck. */
const progressMarginSeconds = 400;

export function renderRevision(
  service: AnyObject,
  name: string,
  inputs: RevisionInputs,
  { runtimeImage, ...limits }: RenderOptions,
): RevisionData {
  const serviceName = service.metadata.name;
  const context = { serviceName, revision: name, defaultImage: runtimeImage, ...limits };
  const deploymentLabels = queueLabels(inputs.template?.metadata?.labels);
  return {
    apiVersion,
    kind: 'RevisionRecord',
    inputs,
    deployment: {
      selector: { matchLabels: revisionLabels(serviceName, name) },
      // The template of one Deployment never changes: its own rollouts begin with an edit by hand and end when that is
      // undone. Until then the pods that serve must stay.
      strategy: { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
      revisionHistoryLimit: 1,
      progressDeadlineSeconds: (limits.startupSeconds ?? startupSeconds) + progressMarginSeconds,
      template: podTemplate(inputs, context),
    },
    ...(deploymentLabels === undefined ? {} : { deploymentLabels }),
  };
}

/** Kueue looks for the queue at the Deployment and holds its pods; there it may not change while pods are ready. */
export function queueLabels(
  labels: Readonly<Record<string, string>> = {},
): Record<string, string> | undefined {
  const queue = labels[queueLabel];
  return queue === undefined ? undefined : { [queueLabel]: queue };
}

/** `order` grows with each use: the newest revision has the highest. */
export function controllerRevision(
  service: AnyObject,
  name: string,
  data: RevisionData,
  order: number,
): AnyObject {
  return {
    apiVersion: 'apps/v1',
    kind: 'ControllerRevision',
    metadata: {
      name,
      namespace: service.metadata.namespace ?? '',
      labels: recordedLabels(data),
      ownerReferences: [ownerReference(service)],
    },
    revision: order,
    data,
  };
}

/** The record in an object that is ours; undefined where `data` is of some other form. */
export function readRecord(object: AnyObject): RevisionData | undefined {
  const data = object.data as Partial<RevisionData> | undefined;
  return data?.kind === 'RevisionRecord' && data.inputs !== undefined && data.deployment !== undefined
    ? (data as RevisionData)
    : undefined;
}

export function isControlledBy(object: AnyObject, owner: AnyObject): boolean {
  return controllerOf(object)?.uid === owner.metadata.uid;
}
