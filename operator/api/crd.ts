/**
 * The CustomResourceDefinition of InferenceService, made from the zod schemas. `npm run generate` writes it to crds/ and
 * into the chart. Pure.
 */
import {
  apiVersion,
  group,
  kind,
  maxNameLength,
  namePattern,
  specSchema,
  statusSchema,
  version,
} from './inference-service.ts';
import type { AnyObject } from './objects.ts';
import { structuralSchema } from './structural.ts';

const printerColumns = [
  { name: 'Model', type: 'string', jsonPath: '.spec.model.path' },
  { name: 'Revision', type: 'string', jsonPath: '.status.currentRevision' },
  { name: 'GPUs', type: 'integer', jsonPath: '.spec.gpus' },
  { name: 'Quantization', type: 'string', jsonPath: '.spec.quantization' },
  { name: 'Ready', type: 'string', jsonPath: '.status.conditions[?(@.type=="Ready")].status' },
  { name: 'Replicas', type: 'integer', jsonPath: '.status.replicas' },
  { name: 'Age', type: 'date', jsonPath: '.metadata.creationTimestamp' },
];

export function inferenceServiceCrd(): AnyObject {
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `inferenceservices.${group}` },
    spec: {
      group,
      scope: 'Namespaced',
      names: {
        kind,
        listKind: `${kind}List`,
        plural: 'inferenceservices',
        singular: 'inferenceservice',
        shortNames: ['infer'],
        categories: ['all'],
      },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          additionalPrinterColumns: printerColumns,
          subresources: {
            status: {},
            scale: {
              specReplicasPath: '.spec.replicas',
              statusReplicasPath: '.status.replicas',
              labelSelectorPath: '.status.selector',
            },
          },
          schema: {
            openAPIV3Schema: {
              type: 'object',
              description: `A language model served on Kubernetes (${apiVersion}; KServe has a kind of the same name).`,
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string' },
                kind: { type: 'string' },
                metadata: {
                  type: 'object',
                  properties: { name: { type: 'string', maxLength: maxNameLength, pattern: namePattern } },
                },
                spec: structuralSchema(specSchema),
                status: structuralSchema(statusSchema),
              },
            },
          },
        },
      ],
    },
  };
}
