/**
 * Who goes first where a process has more work than cores: the event loop, which always has little to do and whom probes
 * and clients wait for, before the engine, and both before the reading of long prompts. Linux gives each thread a priority
 * of its own, which a container's other threads alone compete with; threads that it starts inherit it.
 */
import { readlinkSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** How much each kind of thread gives way to the event loop. */
const niceness = { engine: 5, reading: 10 } as const;
/** Linux has no more. */
const highestNiceness = 19;

/** Lowers the calling thread's priority, for good. */
export function giveWay(kind: keyof typeof niceness): void {
  try {
    // The link has the thread's id; where there is no such file, threads have no priority of their own.
    const thread = Number(path.basename(readlinkSync('/proc/thread-self')));
    // The event loop has the priority that the process was started with: to be lower than that, not than the usual one.
    os.setPriority(thread, Math.min(highestNiceness, os.getPriority(process.pid) + niceness[kind]));
  } catch {
    // A container may forbid it, and then all threads are equal.
  }
}
