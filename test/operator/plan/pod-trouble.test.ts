/** What is said about pods that do not start: the words of scheduler and kubelet in, one reason and one message out. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AnyObject } from '../../../operator/api/objects.ts';
import { errorLine, worstTrouble } from '../../../operator/plan/pod-trouble.ts';

const pod = (status: object, name = 'p'): AnyObject => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name },
  spec: {
    containers: [{ name: 'runtime', image: 'runtime:1', resources: { limits: { memory: '4Gi' } } }],
  },
  status,
});
const runtime = (state: object, lastState: object = {}, more: object = {}) =>
  pod({ containerStatuses: [{ name: 'runtime', image: 'runtime:1', state, lastState, ...more }] });
const backOff = {
  waiting: { reason: 'CrashLoopBackOff', message: 'back-off 40s restarting failed container' },
};
const refusal =
  'sluice: --max-length "0": the form is an integer from 1, at most what the model allows, for example 8192';

const cases: Record<string, [pods: AnyObject[], reason: string | undefined, message: RegExp | string]> = {
  'no pods': [[], undefined, ''],
  'a pod that loads': [[runtime({ running: {} })], undefined, ''],
  'no node fits': [
    [
      pod({
        conditions: [
          {
            type: 'PodScheduled',
            status: 'False',
            reason: 'Unschedulable',
            message:
              '0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/3 nodes are available: 3 No preemption victims found.',
          },
        ],
      }),
    ],
    'Unschedulable',
    'No node can take a pod: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.',
  ],
  'gates, which are no matter of room': [
    [pod({ conditions: [{ type: 'PodScheduled', status: 'False', reason: 'SchedulingGated' }] })],
    'Unschedulable',
    /scheduling gates are removed/,
  ],
  'an image that is not there': [
    [
      runtime({
        waiting: {
          reason: 'ErrImagePull',
          message: 'rpc error: code = NotFound desc = runtime:1: not found',
        },
      }),
    ],
    'ImagePullFailed',
    'The image "runtime:1" of container runtime cannot be pulled: runtime:1: not found',
  ],
  'the same a moment later, in the words of the back-off': [
    [
      runtime({
        waiting: {
          reason: 'ImagePullBackOff',
          message:
            'Back-off pulling image "runtime:1": ErrImagePull: rpc error: code = NotFound desc = runtime:1: not found',
        },
      }),
    ],
    'ImagePullFailed',
    'The image "runtime:1" of container runtime cannot be pulled: runtime:1: not found',
  ],
  'a crash, by the last line of its log': [
    [runtime(backOff, { terminated: { exitCode: 1, message: 'loading\nsegment missing\n' } })],
    'CrashLoop',
    'Container runtime ended with exit code 1: segment missing',
  ],
  'the same while it runs again': [
    [runtime({ running: {} }, { terminated: { exitCode: 1, message: 'loading\nsegment missing\n' } })],
    'CrashLoop',
    'Container runtime ended with exit code 1: segment missing',
  ],
  'a crash that it has recovered from': [
    [runtime({ running: {} }, { terminated: { exitCode: 1 } }, { ready: true })],
    undefined,
    '',
  ],
  'exit code 2: the runtime refuses, in its own words': [
    [
      runtime(backOff, {
        terminated: { exitCode: 2, message: `{"level":30,"msg":"starting"}\n${refusal}\n` },
      }),
    ],
    'RuntimeConfigRejected',
    `The runtime refuses its configuration or checkpoint: ${refusal}`,
  ],
  memory: [
    [runtime(backOff, { terminated: { exitCode: 137, reason: 'OOMKilled' } })],
    'CrashLoop',
    'Container runtime was killed for its use of memory; its limit is 4Gi',
  ],
  'a Secret that is not there': [
    [runtime({ waiting: { reason: 'CreateContainerConfigError', message: 'secret "keys" not found' } })],
    'ContainerConfigInvalid',
    'Container runtime cannot be made: secret "keys" not found',
  ],
  'the worst of several': [
    [
      pod(
        { conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message: 'full' }] },
        'a',
      ),
      runtime(backOff, { terminated: { exitCode: 2, message: refusal } }),
    ],
    'RuntimeConfigRejected',
    /refuses/,
  ],
  'an init container': [
    [
      pod({
        initContainerStatuses: [
          {
            name: 'fetch',
            state: { waiting: { reason: 'CrashLoopBackOff' } },
            lastState: { terminated: { exitCode: 2 } },
          },
        ],
      }),
    ],
    'CrashLoop',
    'Container fetch ended with exit code 2',
  ],
};

for (const [name, [pods, reason, message]] of Object.entries(cases)) {
  test(name, () => {
    const trouble = worstTrouble(pods);
    assert.equal(trouble?.reason, reason);
    if (typeof message === 'string') assert.equal(trouble?.message ?? '', message);
    else assert.match(trouble?.message ?? '', message);
  });
}

test('pods that the API server refuses are told of without their generated names', () => {
  const failure = (suffix: string) => ({
    ...pod({}),
    status: {
      conditions: [
        {
          type: 'ReplicaFailure',
          status: 'True',
          message: `pods "chat-abc-${suffix}" is forbidden: exceeded quota: gpus`,
        },
      ],
    },
  });
  const [one, two] = [worstTrouble([], failure('x7')), worstTrouble([], failure('q2'))];
  assert.equal(one?.reason, 'PodsRejected');
  assert.equal(one?.message, 'The API server refuses the pods: pods are forbidden: exceeded quota: gpus');
  assert.deepEqual(one, two);
});

const lines: Record<string, [message: string, line: string]> = {
  nothing: ['', ''],
  'plain text wins over records': ['{"level":50,"msg":"a"}\nplain\n{"level":30,"msg":"b"}', 'plain'],
  'the last error among records': [
    '{"level":50,"msg":"first"}\n{"level":50,"msg":"second"}\n{"level":30,"msg":"bye"}',
    'second',
  ],
  "an error's own message": ['{"level":50,"msg":"failed","err":{"message":"disk full"}}', 'disk full'],
  'a record cut in two is plain text': ['"msg":"half"}\n', '"msg":"half"}'],
};
for (const [name, [message, line]] of Object.entries(lines)) {
  test(`the line that says what went wrong: ${name}`, () => assert.equal(errorLine(message), line));
}
