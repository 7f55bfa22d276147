import assert from 'node:assert';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { youngBytes } from '../../../runtime/cli/young-heap.ts';

/** Of a process in which much survives for a while, the largest young generation, in bytes. */
function mostYoungBytes(bounded: boolean): number {
  const program = `
    import { getHeapSpaceStatistics } from 'node:v8';
    import { boundYoungHeap } from '${new URL('../../../runtime/cli/young-heap.ts', import.meta.url)}';
    if (${bounded}) boundYoungHeap();
    const kept = [];
    let most = 0;
    for (let turn = 0; turn < 1000; turn++) {
      kept[turn % 200] = Array.from({ length: 2000 }, (_, i) => ({ turn, i }));
      const young = getHeapSpaceStatistics().find((space) => space.space_name === 'new_space');
      most = Math.max(most, young.space_size);
      await new Promise(setImmediate);
    }
    console.log(most);`;
  return Number(
    execFileSync(process.execPath, ['--input-type=module', '--eval', program], { encoding: 'utf8' }),
  );
}

test('the young generation stops growing at its bound, far below that of V8', () => {
  // Collections are heard of a little later: it may have grown once more by then.
  const [bounded, free] = [mostYoungBytes(true), mostYoungBytes(false)];
  assert(bounded <= 2 * youngBytes, `${bounded} bytes`);
  assert(free > 2 * youngBytes, `${free} bytes without the bound`);
});
