import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type DeviceSelection, planRanks } from '../../../runtime/driver/device.ts';

const auto: DeviceSelection = { kind: 'auto' };
const cpu = (...indices: number[]): DeviceSelection => ({ kind: 'cpu', indices });

const cases: readonly [string, DeviceSelection, number, number, number, string][] = [
  // name; selection, threads, KV heads, cores; ranks x threads each, spinning or not
  ['auto takes a rank for each thread', auto, 4, 8, 4, '4x1 spin'],
  ['auto takes no more ranks than KV heads; they share the threads', auto, 8, 2, 8, '2x4 spin'],
  ['threads that do not divide are left over', auto, 7, 3, 8, '3x2 spin'],
  ['one KV head makes one rank', auto, 4, 1, 4, '1x4 spin'],
  ['indices make one rank each', cpu(0, 1), 2, 8, 2, '2x1 spin'],
  ['more ranks than cores do not spin', cpu(0, 1, 2), 2, 8, 2, '3x1 sleep'],
  ['more ranks than KV heads are possible when asked for', cpu(0, 1, 2), 4, 1, 4, '3x1 spin'],
  ['threads beyond the cores do not spin', auto, 4, 4, 2, '4x1 sleep'],
];

for (const [name, selection, threads, kvHeads, cores, expected] of cases) {
  test(name, () => {
    const { devices, spin } = planRanks(selection, threads, kvHeads, cores);
    assert.equal(`${devices.length}x${devices[0]!.threads} ${spin ? 'spin' : 'sleep'}`, expected);
  });
}
