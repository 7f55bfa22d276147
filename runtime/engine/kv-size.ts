/**
 * How many blocks the KV pool gets. Enters: what a block costs, what the engine may ever use, what memory there is.
 * Leaves: a count, or SluiceError `memory_insufficient`.
 */
import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { SluiceError } from '../errors.ts';

/** The part of the memory available that the pool takes at most; the rest is for activations and the server. */
const poolShare = 0.7;

export interface KvSizeOptions {
  /** Bytes of one block in all layers of all ranks. */
  readonly blockBytes: number;
  readonly blockTokens: number;
  readonly maxLength: number;
  readonly maxBatchSize: number;
  /** What the pool may take; undefined: a share of what is available. */
  readonly kvBytes?: number | undefined;
  /** Bytes that there are. */
  readonly available: number;
  /** Whether sequences may be made shorter than `maxLength` so that one fits. */
  readonly mayShorten: boolean;
}

/** Enough for every sequence at full length where memory allows; never less than one such sequence. */
export function chooseBlockCount(options: KvSizeOptions): { blockCount: number; maxLength: number } {
  const { blockBytes, blockTokens, maxLength, maxBatchSize, available } = options;
  const perSequence = Math.ceil(maxLength / blockTokens);
  const allowed = options.kvBytes ?? available * poolShare;
  const affordable = Math.floor(allowed / blockBytes);
  if (affordable >= perSequence) {
    return { blockCount: Math.min(affordable, perSequence * maxBatchSize), maxLength };
  }
  if (options.mayShorten && affordable > 0) {
    return { blockCount: affordable, maxLength: affordable * blockTokens };
  }
  const mebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
  const advice = affordable > 0 ? `: --max-length may be at most ${affordable * blockTokens}` : '';
  throw new SluiceError(
    'memory_insufficient',
    `the KV cache of one sequence of ${maxLength} tokens takes ${mebibytes(perSequence * blockBytes)}, there are ${mebibytes(allowed)}${advice}`,
  );
}

/** Bytes that this process may still take: of the machine, and of its control group where that is less. */
export function availableBytes(): number {
  const kibibytes = readNumber('/proc/meminfo', /^MemAvailable:\s+(\d+) kB/m);
  const machine = kibibytes === undefined ? freemem() : kibibytes * 1024;
  const limit = readNumber('/sys/fs/cgroup/memory.max');
  const used = readNumber('/sys/fs/cgroup/memory.current');
  if (limit === undefined || used === undefined) return machine;
  // Files that were read long ago count as used, and are given up when memory is needed.
  const files = readNumber('/sys/fs/cgroup/memory.stat', /^inactive_file (\d+)$/m) ?? 0;
  return Math.min(machine, Math.max(0, limit - used + files));
}

function readNumber(file: string, pattern = /^(\d+)$/m): number | undefined {
  try {
    const found = pattern.exec(readFileSync(file, 'utf8'))?.[1];
    return found === undefined ? undefined : Number(found);
  } catch {
    return undefined;
  }
}
