/** A rank of the collective tests: runs the suite, or misbehaves as the test asks. */
import { parentPort, workerData } from 'node:worker_threads';
import {
  type SharedCollective,
  ThreadCollective,
} from '../../../runtime/engine/collective/thread-collective.ts';
import { exerciseCollective } from './collective-suite.ts';

export interface CollectiveWorkerData {
  readonly shared: SharedCollective;
  readonly rank: number;
  readonly task: 'exercise' | 'fail' | 'die';
}

const { shared, rank, task } = workerData as CollectiveWorkerData;
const collective = new ThreadCollective(shared, rank);
if (task === 'exercise') {
  try {
    exerciseCollective(collective, shared.reduceFloats);
  } catch (error) {
    collective.fail(String(error));
    throw error;
  }
} else {
  parentPort!.postMessage('joined');
  if (task === 'fail') collective.fail('the disk is on fire');
  else process.exit(1);
}
