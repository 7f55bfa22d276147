/**
 * A model repository of the hub as a folder on disk, in the cache layout that Python's huggingface_hub and others share:
 * blobs/<etag>, snapshots/<commit>/<path> -> ../../blobs/<etag>, refs/<branch or tag> holding the commit.
 * Enters: a repository, a revision, which files are wanted. Leaves: the snapshot's folder and the commit.
 */
import { access, copyFile, mkdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { SluiceError } from '../../errors.ts';
import { HubClient, type HubFile, type HubOptions, isPlainPath, repositoryPattern } from './client.ts';
import { bytesResumable, downloadBlob } from './download.ts';
import { acquireLock } from './lock.ts';

export interface SnapshotOptions extends HubOptions {
  /** The hub cache, for example ~/.cache/huggingface/hub. */
  readonly cacheDir: string;
  /** Nothing is asked of the network: what the cache holds must do. */
  readonly offline?: boolean;
  readonly onProgress?: (progress: DownloadProgress) => void;
  readonly concurrency?: number;
}

export interface DownloadProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly bytesPerSecond: number;
  /** Undefined until the speed is known. */
  readonly secondsLeft: number | undefined;
}

export interface Snapshot {
  readonly folder: string;
  readonly commit: string;
  readonly files: readonly string[];
}

/** Chooses among a repository's files; sees the text of an index when there is one. */
export type FileSelection = (
  files: readonly string[],
  readText: (file: string) => Promise<string>,
) => Promise<readonly string[]>;

const companions =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|quantize_config|quant_config)\.json$|^chat_template\.jinja$/;

/** What the runtime reads of a checkpoint: its configuration and tokenizer, and the weights that the index names. */
export const checkpointFiles: FileSelection = async (files, readText) => {
  const wanted = files.filter((file) => companions.test(file));
  if (files.includes('model.safetensors.index.json')) {
    const text = await readText('model.safetensors.index.json');
    let shards: string[];
    try {
      const index = JSON.parse(text) as { weight_map: Record<string, string> };
      shards = [...new Set(Object.values(index.weight_map))];
    } catch (cause) {
      throw new SluiceError(
        'checkpoint_invalid',
        'model.safetensors.index.json of the repository is no index of shards',
        { cause },
      );
    }
    return [...wanted, 'model.safetensors.index.json', ...shards.filter(isPlainPath)];
  }
  if (files.includes('model.safetensors')) return [...wanted, 'model.safetensors'];
  const safetensors = files.filter(
    (file) => /^[^/]+\.safetensors$/.test(file) && !/^(consolidated|adapter)/.test(file),
  );
  if (safetensors.length > 0) return [...wanted, ...safetensors];
  throw new SluiceError(
    'checkpoint_unsupported',
    `the repository holds no safetensors weights${files.some((file) => file.endsWith('.gguf')) ? '; it holds GGUF files: name one with --weight-path org/name/file.gguf' : ''}`,
  );
};

export function repositoryFolder(cacheDir: string, repository: string): string {
  return path.join(cacheDir, `models--${repository.replace('/', '--')}`);
}

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  );

const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

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

/** The commit that a revision names, from the hub, or from the cache when offline. */
export async function resolveCommit(
  repository: string,
  revision: string,
  options: SnapshotOptions,
): Promise<string> {
  assertRepository(repository);
  if (!options.offline) return (await new HubClient(options).revision(repository, revision)).commit;
  return cachedCommit(repository, revision, options.cacheDir);
}

async function cachedCommit(repository: string, revision: string, cacheDir: string): Promise<string> {
  if (isCommit(revision)) return revision;
  const folder = repositoryFolder(cacheDir, repository);
  const text = isPlainPath(revision)
    ? await readFile(path.join(folder, 'refs', revision), 'utf8').catch(() => '')
    : '';
  if (isCommit(text.trim())) return text.trim();
  throw new SluiceError(
    'hub_refused',
    `${repository}@${revision}: offline (HF_HUB_OFFLINE), and the cache ${cacheDir} does not hold this revision`,
  );
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
    const commit = await cachedCommit(repository, revision, options.cacheDir);
    const snapshot = path.join(folder, 'snapshots', commit);
    if (!(await exists(snapshot))) {
      throw new SluiceError(
        'hub_refused',
        `${repository}@${revision}: offline (HF_HUB_OFFLINE), and ${snapshot} does not exist`,
      );
    }
    return { folder: snapshot, commit, files: [] };
  }

  const client = new HubClient(options);
  const resolved = await client.revision(repository, revision);
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
  const fetchFile = async (file: string): Promise<void> => {
    const target = path.join(snapshot, file);
    if (await exists(target)) return;
    const found: HubFile = await client.file(repository, commit, file);
    const blob = path.join(blobs, found.etag);
    const start = await bytesResumable(blob, found.bytes);
    meter.expect(found.bytes);
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
    await fetchFile(file);
    return readFile(path.join(snapshot, file), 'utf8');
  };

  const files = await select(resolved.files, readText);
  const queue = [...new Set(files)];
  const failed: unknown[] = [];
  const worker = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined && failed.length === 0; file = queue.shift()) {
      await fetchFile(file).catch((error: unknown) => failed.push(error));
    }
  };
  await Promise.all([worker(), worker()]);
  if (failed.length > 0) throw failed[0];

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
