/**
 * One blob from the hub to a file: parallel ranges, resumed after a break or a killed process, verified, moved into place.
 * Two files beside the target hold what is under way: the bytes (`.sluice.incomplete`, full length, sparse) and how much
 * of each part has been written (`.sluice.parts`). Nothing appears under the target's own name before its checksum is right.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open, readFile, rename, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { SluiceError } from '../../errors.ts';
import { backoffMs, type HubClient, type HubFile, reasonOf } from './client.ts';

const partBytes = 8 << 20;
const attemptsPerPart = 6;
const stallMs = 30_000;

export interface DownloadOptions {
  readonly client: HubClient;
  /** Where the file is found anew when its link has expired. */
  readonly locate: () => Promise<HubFile>;
  readonly concurrency: number;
  /** Called with the bytes that have just arrived. */
  readonly onBytes: (bytes: number) => void;
  readonly signal: AbortSignal;
  readonly sleep?: (ms: number) => Promise<void>;
}

/** sha256 of the bytes, or git's blob id, whichever the etag is; undefined when the etag is no checksum. */
async function checksum(file: string, bytes: number, etag: string): Promise<string | undefined> {
  const hash = /^[0-9a-f]{64}$/.test(etag)
    ? createHash('sha256')
    : /^[0-9a-f]{40}$/.test(etag)
      ? createHash('sha1').update(`blob ${bytes}\0`)
      : undefined;
  if (!hash) return undefined;
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** Bytes from its start that each part has; parts that have none are absent. */
async function partsWritten(file: string, bytes: number): Promise<Map<number, number>> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const written = new Map<number, number>();
  // A line for each piece, appended after its bytes: one that was cut short by a kill has no end and counts for nothing.
  for (const line of text.split('\n').slice(0, -1)) {
    const [, part, end] = /^(\d+) (\d+)$/.exec(line) ?? [];
    if (part === undefined || end === undefined) continue;
    const most = Math.min(partBytes, bytes - Number(part) * partBytes);
    if (Number(end) <= most) written.set(Number(part), Math.max(Number(end), written.get(Number(part)) ?? 0));
  }
  return written;
}

/** How often progress is recorded, in bytes: often enough that a small file resumes too. */
const recordBytes = (bytes: number): number => Math.min(4 << 20, Math.max(64 << 10, bytes / 64));

function storageError(error: unknown, target: string, bytes: number): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error;
  return new SluiceError(
    'storage_full',
    `${path.dirname(target)}: the disk is full (${code}) while ${bytes} bytes are downloaded; free some space or set HF_HOME to another disk`,
    { cause: error },
  );
}

async function fetchPart(
  current: { file: HubFile },
  handle: FileHandle,
  start: number,
  end: number,
  /** Told up to which byte the part is on the disk. */
  record: (at: number) => Promise<void>,
  options: DownloadOptions,
): Promise<void> {
  const sleep = options.sleep ?? ((ms) => new Promise((resolve) => setTimeout(resolve, ms)));
  let at = start;
  let recorded = start;
  let failures = 0;
  while (at < end) {
    const stall = new AbortController();
    let timer = setTimeout(() => stall.abort(new Error('no data for 30 s')), stallMs);
    const before = at;
    try {
      const response = await options.client.range(
        current.file,
        at,
        end,
        AbortSignal.any([options.signal, stall.signal]),
      );
      if (response === 'expired') {
        current.file = await options.locate();
        if (++failures >= attemptsPerPart)
          throw new SluiceError('hub_failed', `${current.file.path}: the download link expires at once`);
        continue;
      }
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        clearTimeout(timer);
        timer = setTimeout(() => stall.abort(new Error('no data for 30 s')), stallMs);
        const bytes = chunk.subarray(0, end - at);
        await handle.write(bytes, 0, bytes.length, at);
        at += bytes.length;
        options.onBytes(bytes.length);
        if (at === end || at - recorded >= recordBytes(current.file.bytes)) {
          await record(at);
          recorded = at;
        }
      }
      if (at < end) throw new Error('the connection ended early');
    } catch (error) {
      if (options.signal.aborted) throw error;
      const stored = storageError(error, current.file.path, current.file.bytes);
      if (stored !== error) throw stored;
      failures = at > before ? 1 : failures + 1;
      if (failures >= attemptsPerPart) {
        throw new SluiceError(
          'hub_failed',
          `${current.file.path}: the download broke off at byte ${at} of ${current.file.bytes} (${reasonOf(error)}) after ${attemptsPerPart} tries; run it again to resume`,
          { cause: error },
        );
      }
      await sleep(backoffMs(failures));
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Bytes of `target` that an earlier try left behind. */
export async function bytesResumable(target: string, bytes: number): Promise<number> {
  const written = await partsWritten(`${target}.sluice.parts`, bytes);
  return [...written.values()].reduce((sum, end) => sum + end, 0);
}

/** The caller holds the blob's lock. Throws SluiceError `hub_failed` or `storage_full`; what has arrived is kept. */
export async function downloadBlob(file: HubFile, target: string, options: DownloadOptions): Promise<void> {
  const incomplete = `${target}.sluice.incomplete`;
  const partsFile = `${target}.sluice.parts`;
  const count = Math.ceil(file.bytes / partBytes);
  for (let attempt = 1; ; attempt++) {
    const done = await partsWritten(partsFile, file.bytes);
    const handle = await open(incomplete, done.size > 0 ? 'r+' : 'w').catch(async () => {
      done.clear();
      return open(incomplete, 'w');
    });
    if (done.size === 0) await writeFile(partsFile, '');
    const record = await open(partsFile, 'a');
    try {
      const space = await statfs(path.dirname(target)).catch(() => undefined);
      const needed = file.bytes - (await bytesResumable(target, file.bytes));
      if (space && space.bavail * space.bsize < needed) {
        throw new SluiceError(
          'storage_full',
          `${path.dirname(target)}: ${needed} bytes are needed for ${file.path}, ${space.bavail * space.bsize} are free; free some space or set HF_HOME to another disk`,
        );
      }
      await handle.truncate(file.bytes);
      const current = { file };
      const left = Array.from({ length: count }, (_, part) => ({
        part,
        start: part * partBytes + (done.get(part) ?? 0),
        end: Math.min((part + 1) * partBytes, file.bytes),
      })).filter(({ start, end }) => start < end);
      const failed = new AbortController();
      const signal = AbortSignal.any([options.signal, failed.signal]);
      let first: unknown;
      const worker = async (): Promise<void> => {
        for (let next = left.shift(); next !== undefined && !signal.aborted; next = left.shift()) {
          const { part, start, end } = next;
          const recordEnd = async (at: number): Promise<void> => {
            await record.write(`${part} ${at - part * partBytes}\n`);
          };
          try {
            await fetchPart(current, handle, start, end, recordEnd, { ...options, signal });
          } catch (error) {
            first ??= error;
            failed.abort();
          }
        }
      };
      await Promise.all(
        Array.from({ length: Math.max(1, Math.min(options.concurrency, left.length)) }, worker),
      );
      if (first !== undefined) throw first;
      options.signal.throwIfAborted();
    } catch (error) {
      throw storageError(error, target, file.bytes);
    } finally {
      await handle.close();
      await record.close();
    }
    const actual = await checksum(incomplete, file.bytes, file.etag);
    if (actual === undefined || actual === file.etag) break;
    await rm(partsFile, { force: true });
    await rm(incomplete, { force: true });
    if (attempt === 2) {
      throw new SluiceError(
        'hub_failed',
        `${file.path}: the checksum is ${actual}, ${file.etag} is expected; downloaded twice, the bytes on the way or on the hub are wrong`,
      );
    }
    options.onBytes(-file.bytes);
  }
  const handle = await open(incomplete, 'r+');
  await handle.sync();
  await handle.close();
  await rename(incomplete, target);
  await rm(partsFile, { force: true });
}
