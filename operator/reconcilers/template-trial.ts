/**
 * Would the API server take the Deployment of a revision that has none yet? Asked by dry run with strict validation, so
 * that a template that cannot be is told before anything moves for it. Enters: a client, the manifest. Leaves: the
 * refusal in words that name the field, its value and what is wrong. Must not know what follows from it.
 */
import { hashName } from '../api/canonical.ts';
import type { AnyObject } from '../api/objects.ts';
import { type KubeClient, KubeError, type KubeObject, resources } from '../kube/client.ts';
import { fieldManager } from '../plan/drift.ts';
import type { TemplateRefusal } from '../plan/world.ts';

/** Remembers what was accepted, one manifest a service: a rollout that waits is not asked about again and again. */
export class TemplateTrials {
  readonly #client: KubeClient;
  readonly #accepted = new Map<string, string>();

  constructor(client: KubeClient) {
    this.#client = client;
  }

  /** Undefined: it is taken, or only the write itself can tell. Throws KubeError for what may pass by itself. */
  async refusal(key: string, deployment: AnyObject): Promise<TemplateRefusal | undefined> {
    const hash = hashName(deployment);
    if (this.#accepted.get(key) === hash) return undefined;
    const refusal = await tryTemplate(this.#client, deployment);
    if (refusal === undefined) this.#accepted.set(key, hash);
    return refusal;
  }

  forget(key: string): void {
    this.#accepted.delete(key);
  }
}

export async function tryTemplate(
  client: KubeClient,
  deployment: AnyObject,
): Promise<TemplateRefusal | undefined> {
  try {
    await client.apply(resources.deployments, deployment as KubeObject, { fieldManager, dryRun: true });
    return undefined;
  } catch (error) {
    const why = invalidityOf(error);
    if (why !== undefined)
      return { revision: deployment.metadata.name, message: `The pods' template is refused: ${why}` };
    // Without the right, or with an admission webhook that knows no dry run, the write itself will tell.
    if (error instanceof KubeError && [400, 403].includes(error.status)) return undefined;
    throw error;
  }
}

/** What no repetition of the same write would change, without the object's own name; undefined for everything else. */
export function invalidityOf(error: unknown): string | undefined {
  if (!(error instanceof KubeError) || error.message.includes('does not support dry run')) return undefined;
  // Server-side apply answers 500 to what has not the form of its schema, before any validation.
  const misshapen = /failed to create typed patch object \([^)]*\): \.?(.*)$/s.exec(error.message)?.[1];
  if (misshapen !== undefined) return misshapen;
  if (error.status !== 400 && error.status !== 422) return undefined;
  return error.message.replace(/^\S+ "[^"]*" is invalid: /, '');
}
