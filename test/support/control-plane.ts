/**
 * A real control plane for the tests of one file: started at the first call, shared by the file's tests, stopped after
 * the last. Tests keep apart by namespaces. The audit log tells afterwards who wrote what.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { after, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ControlPlane, startControlPlane } from '../../local/control-plane.ts';
import { resources } from '../../operator/kube/client.ts';
import { type ConnectedKubeClient, createKubeClient } from '../../operator/kube/rest-client.ts';

export interface ControlPlaneParts {
  /** Default false. Without it there are no service accounts, so no pods; nothing is garbage-collected. */
  readonly controllerManager?: boolean;
  /** Default false. */
  readonly scheduler?: boolean;
}

/** The parts of an audit.k8s.io/v1 Event that tests ask about. */
export interface AuditEvent {
  readonly auditID: string;
  readonly stage: 'ResponseStarted' | 'ResponseComplete' | 'Panic';
  readonly verb: string;
  readonly requestURI: string;
  readonly user: { readonly username: string; readonly groups?: readonly string[] };
  readonly userAgent?: string;
  readonly objectRef?: {
    readonly resource?: string;
    readonly namespace?: string;
    readonly name?: string;
    readonly apiGroup?: string;
    readonly subresource?: string;
  };
  readonly responseStatus?: { readonly code?: number; readonly reason?: string };
  /** Bodies are there for writes in the groups sluice.dev and apps. */
  // biome-ignore lint/suspicious/noExplicitAny: an API object is as open as the API server's schema.
  readonly requestObject?: any;
  // biome-ignore lint/suspicious/noExplicitAny: an API object is as open as the API server's schema.
  readonly responseObject?: any;
  readonly requestReceivedTimestamp: string;
  readonly stageTimestamp: string;
}

export interface AuditFilter {
  readonly verbs?: readonly string[];
  readonly username?: string;
  /** Plural; with `subresource` as in `deployments/status`. */
  readonly resource?: string;
  readonly namespace?: string;
  readonly name?: string;
  /** Only events after this mark: see auditMark(). */
  readonly since?: number;
}

export const writeVerbs = ['create', 'update', 'patch', 'delete', 'deletecollection'] as const;

export interface TestControlPlane extends ControlPlane {
  /** Of a cluster administrator. */
  readonly client: ConnectedKubeClient;
  /** A fresh namespace, deleted when the test ends. */
  namespace(t: TestContext): Promise<string>;
  /** Completed requests in the order of the log. */
  auditEvents(filter?: AuditFilter): Promise<AuditEvent[]>;
  /** What is in the log up to now, for AuditFilter.since. */
  auditMark(): Promise<number>;
}

const started = new Map<string, Promise<TestControlPlane>>();

after(async () => {
  for (const plane of started.values()) {
    await plane.then(
      async (running) => {
        running.client.close();
        await running.stop();
      },
      () => {},
    );
  }
});

/**
 * The first call of a file may take minutes, where the programs are not built yet; it says so on standard error, which
 * test reporters show at once. Good in hooks too.
 */
export function controlPlane(
  t: { readonly diagnostic?: (line: string) => void },
  parts: ControlPlaneParts = {},
): Promise<TestControlPlane> {
  const { controllerManager = false, scheduler = false } = parts;
  const key = JSON.stringify([controllerManager, scheduler]);
  let plane = started.get(key);
  if (plane === undefined) {
    plane = startForTests({ controllerManager, scheduler }, (line) => {
      if (line.includes('build')) process.stderr.write(`${line}\n`);
      else t.diagnostic?.(line);
    });
    started.set(key, plane);
  }
  return plane;
}

async function startForTests(
  parts: Required<ControlPlaneParts>,
  onProgress: (line: string) => void,
): Promise<TestControlPlane> {
  const plane = await startControlPlane({ ...parts, onProgress });
  const client = createKubeClient({ kubeconfig: plane.kubeconfig });

  /** The log is written behind the answers: a request of our own, seen in it, tells that the earlier ones are too. */
  const settledLog = async (): Promise<AuditEvent[]> => {
    const marker = `audit-marker-${unique()}`;
    await client.get(resources.namespaces, { name: marker });
    for (let attempt = 0; attempt < 600; attempt++) {
      const events = readEvents(plane.auditLog);
      if (events.some((event) => event.objectRef?.name === marker)) {
        return events.filter((event) => !event.objectRef?.name?.startsWith('audit-marker-'));
      }
      await sleep(50);
    }
    return assert.fail(`the request ${marker} did not appear in ${plane.auditLog}`);
  };

  return {
    ...plane,
    client,
    async namespace(t) {
      const name = `test-${unique()}`;
      await client.create(resources.namespaces, { apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
      t.after(async () => {
        // Another after() may have stopped the server on purpose.
        await client.remove(resources.namespaces, { name }).catch(() => {});
      });
      if (parts.controllerManager) await serviceAccount(client, name);
      return name;
    },
    async auditEvents(filter = {}) {
      const events = await settledLog();
      return events.slice(filter.since ?? 0).filter((event) => matches(event, filter));
    },
    async auditMark() {
      return (await settledLog()).length;
    },
  };
}

/** Pods are refused in a namespace until its default service account is there. */
async function serviceAccount(client: ConnectedKubeClient, namespace: string): Promise<void> {
  const type = {
    group: '',
    version: 'v1',
    kind: 'ServiceAccount',
    plural: 'serviceaccounts',
    namespaced: true,
  };
  for (let attempt = 0; attempt < 600; attempt++) {
    if ((await client.get(type, { namespace, name: 'default' })) !== undefined) return;
    await sleep(50);
  }
  assert.fail(`no default service account appeared in the namespace ${namespace}`);
}

function readEvents(file: string): AuditEvent[] {
  const text = readFileSync(file, 'utf8');
  // The last line may be half written.
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as AuditEvent)
    .filter((event) => event.stage === 'ResponseComplete');
}

function matches(event: AuditEvent, filter: AuditFilter): boolean {
  const reference = event.objectRef;
  const resource =
    reference?.subresource === undefined
      ? reference?.resource
      : `${reference.resource}/${reference.subresource}`;
  return (
    (filter.verbs === undefined || filter.verbs.includes(event.verb)) &&
    (filter.username === undefined || event.user.username === filter.username) &&
    (filter.resource === undefined || resource === filter.resource) &&
    (filter.namespace === undefined || reference?.namespace === filter.namespace) &&
    (filter.name === undefined || reference?.name === filter.name)
  );
}

function unique(): string {
  return randomBytes(5).toString('hex');
}
