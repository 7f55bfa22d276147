/** How long a revision is waited for: one whose image cannot be pulled, and one that gets nowhere. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findFailure } from '../../../operator/plan/failure.ts';
import { policyOf } from '../../../operator/plan/policy.ts';

const now = new Date('2026-01-01T00:00:00Z');
const deployment = { apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'chat-2' } };
const absent = [
  'rpc error: code = NotFound desc = failed to pull and unpack image "r.example/x:1": failed to resolve reference "r.example/x:1": r.example/x:1: not found',
  'Back-off pulling image "x:1": ErrImagePull: reading manifest 1 in r.example/x: manifest unknown',
  'Error response from daemon: pull access denied for x, repository does not exist or may require authorization',
  'Container image "x:1" is not present with pull policy of Never',
];
const unreachable = [
  'failed to do request: Head "https://r.example/v2/x/manifests/1": dial tcp 192.0.2.1:443: i/o timeout',
  'failed to do request: Head "https://r.example/v2/x/manifests/1": dial tcp: lookup r.example: no such host',
  'unexpected status from HEAD request to https://r.example/v2/x/manifests/1: 503 Service Unavailable',
  'Back-off pulling image "x:1"',
];

interface Case {
  readonly messages: readonly string[];
  readonly reason?: string;
  readonly lacking: boolean;
  /** From now on; 0: given up. */
  readonly leftMs: number;
}

const cases: Record<string, Case> = {
  'no such image, and all that was promised serves: the image may still be pushed': {
    messages: absent,
    lacking: false,
    leftMs: 59_000,
  },
  'no such image, and pods are lacking: given up at once': { messages: absent, lacking: true, leftMs: 0 },
  'a registry out of reach, and pods are lacking: it may come back': {
    messages: unreachable,
    lacking: true,
    leftMs: 59_000,
  },
  "a name that is no image's: given up at once": {
    messages: ['Failed to apply default image tag "x:": invalid reference format'],
    reason: 'InvalidImageName',
    lacking: false,
    leftMs: 0,
  },
};

for (const [name, { messages, reason = 'ErrImagePull', lacking, leftMs }] of Object.entries(cases))
  test(name, () => {
    for (const message of messages) {
      const pod = {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: 'chat-2-x', creationTimestamp: new Date(now.getTime() - 1000).toISOString() },
        status: { containerStatuses: [{ name: 'runtime', state: { waiting: { reason, message } } }] },
      };
      const { failure, requeueAfterMs = 0 } = findFailure({
        target: { name: 'chat-2', deployment, pods: [pod], terminatingPods: 0 },
        complete: false,
        policy: policyOf({} as never, 1, undefined, 1, undefined),
        last: {},
        progressedAt: now,
        canReturn: true,
        lacking,
        now,
      });
      assert.equal(requeueAfterMs, leftMs, message);
      assert.equal(failure?.reason, leftMs === 0 ? 'ImagePullFailed' : undefined, message);
    }
  });

const deadlines: Record<string, [object, number | undefined, number]> = {
  'ten minutes more than the pods may take to start': [{}, 3600, 4200],
  'half an hour where pods may take for ever': [{}, undefined, 1800],
  'as asked': [{ rollout: { progressDeadlineSeconds: 5 } }, 3600, 5],
};
for (const [name, [spec, startupSeconds, seconds]] of Object.entries(deadlines))
  test(`the deadline: ${name}`, () => {
    const policy = policyOf(spec as never, 1, undefined, 1, startupSeconds);
    assert.equal(policy.progressDeadlineMs, seconds * 1000);
  });
