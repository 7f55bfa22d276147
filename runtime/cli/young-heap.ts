/**
 * Bounds the young generation of the calling thread's JavaScript heap, for a program that serves for long. V8 doubles it
 * whenever much survives, up to 128 MB, and it is filled with garbage before it is collected: memory that rises late, in
 * steps, and stays. Only a flag of the command line has a bound; what works from within is not to let it grow.
 */
import { PerformanceObserver } from 'node:perf_hooks';
import { getHeapSpaceStatistics, setFlagsFromString } from 'node:v8';

/** Both halves. Of short requests, collecting takes some 2% of the time so, and 1% with the bound that V8 has. */
export const youngBytes = 16 * 2 ** 20;

/** Looks after each collection, and the other way round when V8, idle, has made the generation smaller. */
export function boundYoungHeap(): void {
  let grows = true;
  const look = (): void => {
    const young = getHeapSpaceStatistics().find((space) => space.space_name === 'new_space');
    const mayGrow = (young?.space_size ?? 0) < youngBytes;
    if (mayGrow === grows) return;
    // Of the whole process; the other threads have bounds of their own, and little that survives.
    setFlagsFromString(`--semi-space-growth-factor=${mayGrow ? 2 : 1}`);
    grows = mayGrow;
  };
  new PerformanceObserver(look).observe({ entryTypes: ['gc'] });
}
