/**
 * A model repository of the hub as a folder on disk, in the cache layout that Python's huggingface_hub and others share:
 * blobs/<etag>, snapshots/<commit>/<path> -> ../../blobs/<etag>, refs/<branch or tag> holding the commit.
 * Enters: a repository, a revision, which files are wanted. Leaves: the snapshot's folder and the commit.
 */
import { copyFile, mkdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { SluiceError } from '../../errors.ts';
import { cachedSnapshot, exists, isCommit, type Snapshot } from './cached.ts';
import {
  HubClient,
  type HubFile,
  type HubOptions,
  type HubRevision,
  isPlainPath,
  repositoryPattern,
} from './client.ts';
import { bytesResumable, downloadBlob } from './download.ts';
import { acquireLock } from './lock.ts';
import type { FileSelection } from './selection.ts';

export interface SnapshotOptions extends HubOptions {
  /** The hub cache, for example ~/.cache/huggingface/hub. */
  readonly cacheDir: string;
  /** Nothing is asked of the network: what the cache holds must do. */
  readonly offline?: boolean;
  readonly onProgress?: (progress: DownloadProgress) => void;
  readonly onWarning?: (message: string) => void;
  readonly concurrency?: number;
}

export interface DownloadProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly bytesPerSecond: number;
  /** Undefined until the speed is known. */
  readonly secondsLeft: number | undefined;
}

export function repositoryFolder(cacheDir: string, repository: string): string {
  return path.join(cacheDir, `models--${repository.replace('/', '--')}`);
}

/** Makes `snapshots/<commit>/<path>` point to the blob; copies where links are not to be had. */
async function place(blob: string, target: string): Promise<void> {
  if (await exists(target)) return;
  await mkdir(path.dirname(target), { recursive: true });
  const temporary = `${target}.${process.pid}.sluice`;
  await rm(temporary, { force: true });
  try {
    await symlink(path.relative(path.dirname(target), blob), temporary);
  } catch {
    await copyFile(blob, temporary);
  }
  await rename(temporary, target);
}

function assertRepository(repository: string): void {
  if (!repositoryPattern.test(repository)) {
    throw new SluiceError(
      'hub_refused',
      `"${repository}": the form is org/name, for example Qwen/Qwen3-0.6B`,
    );
  }
}

/**
 * Downloads what is missing. Two processes that ask for the same blob download it once.
 * Throws SluiceError `hub_refused`, `hub_failed`, `storage_full`.
 */
export async function pullSnapshot(
  repository: string,
  revision: string,
  select: FileSelection,
  options: SnapshotOptions,
): Promise<Snapshot> {
  assertRepository(repository);
  const folder = repositoryFolder(options.cacheDir, repository);
  if (options.offline) {
    const cached = await cachedSnapshot(folder, revision, select);
    if (cached !== undefined) return cached;
    throw new SluiceError(
      'hub_refused',
      `${repository}@${revision}: offline (HF_HUB_OFFLINE), and the cache ${options.cacheDir} does not hold all of this revision`,
    );
  }
  const client = new HubClient(options);
  let resolved: HubRevision;
  try {
    resolved = await client.revision(repository, revision);
  } catch (error) {
    // A hub that cannot be reached is no reason to stand still beside a complete copy.
    const unreachable = error instanceof SluiceError && error.code === 'hub_failed';
    const cached = unreachable ? await cachedSnapshot(folder, revision, select) : undefined;
    if (cached === undefined) throw error;
    options.onWarning?.(
      `${(error as Error).message}; the cached commit ${cached.commit} of ${repository}@${revision} is used`,
    );
    return cached;
  }
  const { commit } = resolved;
  const snapshot = path.join(folder, 'snapshots', commit);
  const blobs = path.join(folder, 'blobs');
  const locks = path.join(options.cacheDir, '.locks', path.basename(folder));
  try {
    await mkdir(blobs, { recursive: true });
    await mkdir(snapshot, { recursive: true });
  } catch (cause) {
    throw new SluiceError(
      'storage_full',
      `${folder}: cannot be written (${(cause as NodeJS.ErrnoException).code}); set HF_HOME to a writable folder`,
      { cause },
    );
  }

  const meter = new Meter(options.onProgress);
  const signal = options.signal ?? new AbortController().signal;
  const isPlaced = (file: string): Promise<boolean> => exists(path.join(snapshot, file));
  const locate = async (file: string): Promise<HubFile> => {
    const found = await client.file(repository, commit, file);
    meter.expect(found.bytes);
    return found;
  };
  const fetchFile = async (found: HubFile): Promise<void> => {
    const file = found.path;
    const target = path.join(snapshot, file);
    const blob = path.join(blobs, found.etag);
    const start = await bytesResumable(blob, found.bytes);
    const complete = async (): Promise<boolean> =>
      (await stat(blob).catch(() => undefined))?.size === found.bytes;
    if (!(await complete())) {
      const lock = await acquireLock(
        path.join(locks, `${found.etag}.sluice.lock`),
        () => meter.tick(),
        signal,
      );
      try {
        if (await complete()) meter.add(found.bytes);
        else {
          meter.add(start, false);
          await downloadBlob(found, blob, {
            client,
            locate: () => client.file(repository, commit, file),
            concurrency: options.concurrency ?? 4,
            onBytes: (bytes) => meter.add(bytes),
            signal,
            ...(options.sleep ? { sleep: options.sleep } : {}),
          });
        }
      } finally {
        await lock.release();
      }
    } else meter.add(found.bytes, false);
    await place(blob, target);
  };
  const readText = async (file: string): Promise<string> => {
    if (!(await isPlaced(file))) await fetchFile(await locate(file));
    return readFile(path.join(snapshot, file), 'utf8');
  };

  const files = [...new Set(await select(resolved.files, readText))];
  // All are found before any is downloaded, so that progress knows the whole from the start.
  const missing: HubFile[] = [];
  await eachOf(files, 8, async (file) => {
    if (!(await isPlaced(file))) missing.push(await locate(file));
  });
  await eachOf(missing, 2, fetchFile);

  if (!isCommit(revision) && isPlainPath(revision)) {
    const reference = path.join(folder, 'refs', revision);
    await mkdir(path.dirname(reference), { recursive: true });
    const temporary = `${reference}.${process.pid}.sluice`;
    await writeFile(temporary, commit);
    await rename(temporary, reference);
  }
  meter.tick(true);
  return { folder: snapshot, commit, files };
}

/** Runs `work` on all items, so many at a time; after a failure none is begun any more. */
async function eachOf<T>(
  items: readonly T[],
  concurrency: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const queue = [...items];
  const failed: unknown[] = [];
  const worker = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined && failed.length === 0; item = queue.shift()) {
      await work(item).catch((error: unknown) => failed.push(error));
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  if (failed.length > 0) throw failed[0];
}

/** Sums bytes over files and reports at most ten times a second. */
class Meter {
  readonly #report: SnapshotOptions['onProgress'];
  readonly #startMs = performance.now();
  #done = 0;
  #arrived = 0;
  #total = 0;
  #lastMs = 0;

  constructor(report: SnapshotOptions['onProgress']) {
    this.#report = report;
  }

  expect(bytes: number): void {
    this.#total += bytes;
  }

  /** `arrived`: over the network, so that it counts for the speed. */
  add(bytes: number, arrived = true): void {
    this.#done += bytes;
    if (arrived) this.#arrived += bytes;
    this.tick();
  }

  tick(force = false): void {
    const now = performance.now();
    if (!this.#report || (!force && now - this.#lastMs < 100)) return;
    this.#lastMs = now;
    const seconds = (now - this.#startMs) / 1000;
    const bytesPerSecond = seconds > 0 ? Math.max(0, this.#arrived / seconds) : 0;
    this.#report({
      bytesDone: this.#done,
      bytesTotal: this.#total,
      bytesPerSecond,
      secondsLeft: bytesPerSecond > 0 ? (this.#total - this.#done) / bytesPerSecond : undefined,
    });
  }
}
