/**
 * Who goes first where a process has more work than cores: the event loop, which always has little to do and whom probes
 * and clients wait for, before the engine, and both before the reading of long prompts. Linux gives each thread a priority
 * of its own, which a container's other threads alone compete with; threads that it starts inherit it.
 */
import { readlinkSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** How much each kind of thread gives way; the event loop does not. */
const niceness = { engine: 5, reading: 10 } as const;

/** Lowers the calling thread's priority, for good. */
export function giveWay(kind: keyof typeof niceness): void {
  try {
    // The link has the thread's id; where there is no such file, threads have no priority of their own.
    os.setPriority(Number(path.basename(readlinkSync('/proc/thread-self'))), niceness[kind]);
  } catch {
    // A container may forbid it, and then all threads are equal.
  }
}
