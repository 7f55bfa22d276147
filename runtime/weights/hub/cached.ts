/**
 * What the cache already holds of a repository, without asking the hub. Enters: its folder in the cache, a revision, which
 * files are wanted. Leaves: the snapshot when all of them are there.
 */
import { access, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { SluiceError } from '../../errors.ts';
import { isPlainPath } from './client.ts';
import type { FileSelection } from './selection.ts';

export interface Snapshot {
  readonly folder: string;
  readonly commit: string;
  readonly files: readonly string[];
}

export const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  );

export const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

/** Undefined unless every wanted file of the revision is there. */
export async function cachedSnapshot(
  repositoryFolder: string,
  revision: string,
  select: FileSelection,
): Promise<Snapshot | undefined> {
  const commit = await cachedCommit(repositoryFolder, revision);
  if (commit === undefined) return undefined;
  const folder = path.join(repositoryFolder, 'snapshots', commit);
  const present = await readdir(folder, { recursive: true }).catch(() => []);
  try {
    const files = await select(present, (file) => readFile(path.join(folder, file), 'utf8'));
    // A link without its blob is a download that was broken off.
    const found = await Promise.all(files.map((file) => exists(path.join(folder, file))));
    return found.every(Boolean) ? { folder, commit, files } : undefined;
  } catch (error) {
    if (error instanceof SluiceError) return undefined;
    throw error;
  }
}

async function cachedCommit(repositoryFolder: string, revision: string): Promise<string | undefined> {
  if (isCommit(revision)) return revision;
  if (!isPlainPath(revision)) return undefined;
  const text = await readFile(path.join(repositoryFolder, 'refs', revision), 'utf8').catch(() => '');
  return isCommit(text.trim()) ? text.trim() : undefined;
}
