// biome-ignore-all lint/suspicious/noExplicitAny: Kubernetes objects are as open as their schema.
/** InferenceServices on a real API server, for tests: the CRD, manifests, waiting for conditions, what is there. */
import assert from 'node:assert/strict';
import { inferenceServiceCrd } from '../../operator/api/crd.ts';
import { type KubeClient, type KubeObject, resources } from '../../operator/kube/client.ts';
import { until } from './operator-process.ts';

const type = resources.inferenceServices;

/** Installs the CRD, or one of another version, and waits until its kind is served. */
export async function installCrd(client: KubeClient, crd = inferenceServiceCrd()): Promise<void> {
  const definition = crd as KubeObject;
  await client.apply(resources.customResourceDefinitions, definition, { fieldManager: 'test', force: true });
  await until('the CRD is established', async () => {
    const found = await client.get(resources.customResourceDefinitions, { name: crd.metadata.name });
    return found?.status?.conditions?.some(
      (each: any) => each.type === 'Established' && each.status === 'True',
    );
  });
}

/** From now on the API server refuses pods in the namespace that are not of the Pod Security Standard "restricted". */
export async function enforceRestricted(client: KubeClient, namespace: string): Promise<void> {
  const labels = { 'pod-security.kubernetes.io/enforce': 'restricted' };
  await client.mergePatch(resources.namespaces, { name: namespace }, { metadata: { labels } });
}

export const minimalSpec = {
  model: { path: '/tiny' },
  storage: { persistentVolumeClaim: { claimName: 'models' } },
};

export function manifest(namespace: string, name: string, spec: object = minimalSpec): KubeObject {
  return { apiVersion: 'sluice.dev/v1alpha1', kind: 'InferenceService', metadata: { namespace, name }, spec };
}

/** One service on the server, seen through a client. */
export class ServiceUnderTest {
  readonly client: KubeClient;
  readonly namespace: string;
  readonly name: string;

  constructor(client: KubeClient, namespace: string, name: string) {
    this.client = client;
    this.namespace = namespace;
    this.name = name;
  }

  static async create(
    client: KubeClient,
    namespace: string,
    name: string,
    spec: object = minimalSpec,
  ): Promise<ServiceUnderTest> {
    await client.create(type, manifest(namespace, name, spec));
    return new ServiceUnderTest(client, namespace, name);
  }

  async get(): Promise<KubeObject> {
    const object = await this.client.get(type, this);
    assert.ok(object, `InferenceService ${this.name} is there`);
    return object;
  }

  async edit(patch: object): Promise<void> {
    await this.client.mergePatch(type, this, { spec: patch });
  }

  /** What a person asks of the rollout, as the command line writes it. */
  async hold(verb: 'Pause' | 'Promote' | 'Abort' | 'Retry'): Promise<void> {
    const { apiVersion, kind, metadata } = await this.get();
    const hold = { verb, generation: metadata.generation! };
    await this.client.apply(
      type,
      {
        apiVersion,
        kind,
        metadata: { name: this.name, namespace: this.namespace },
        status: { rollout: { hold } },
      },
      { fieldManager: 'sluice-cli', subresource: 'status', force: true },
    );
  }

  async remove(): Promise<void> {
    await this.client.remove(type, this);
  }

  /** Waits for a condition of the present generation; `reason` and `status` where they matter. */
  async condition(kind: string, status: string, reason?: string): Promise<any> {
    let seen: unknown;
    return await until(
      `${kind}=${status}${reason === undefined ? '' : ` (${reason})`} on ${this.name}`,
      async () => {
        const object = await this.get();
        seen = object.status?.conditions;
        const found = object.status?.conditions?.find((each: any) => each.type === kind);
        const fits = found?.status === status && (reason === undefined || found.reason === reason);
        return fits && found.observedGeneration === object.metadata.generation ? found : undefined;
      },
    ).catch((error) => assert.fail(`${error.message}; conditions: ${JSON.stringify(seen)}`));
  }

  /** Ready at the present generation; gives the status. */
  async ready(): Promise<any> {
    await this.condition('Ready', 'True');
    return (await this.get()).status;
  }

  async children(
    kind:
      | 'deployments'
      | 'services'
      | 'controllerRevisions'
      | 'pods'
      | 'podDisruptionBudgets'
      | 'replicaSets',
  ): Promise<KubeObject[]> {
    const { items } = await this.client.list(resources[kind], {
      namespace: this.namespace,
      labelSelector: `sluice.dev/service=${this.name}`,
    });
    return items;
  }

  /** The only Deployment. */
  async deployment(): Promise<KubeObject> {
    const found = await this.children('deployments');
    assert.equal(found.length, 1, found.map((each) => each.metadata.name).join(', '));
    return found[0]!;
  }
}
