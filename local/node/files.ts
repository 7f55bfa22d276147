/** Files of containers: folders that an overlay has left behind, messages that a program has. */
import { chmod, readdir, readFile, rm } from 'node:fs/promises';
import path from 'node:path';

/** rm -rf that also gets through what an overlay leaves: folders without any permission. */
export async function removeTree(folder: string): Promise<void> {
  try {
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  } catch {
    await openTree(folder);
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

async function openTree(folder: string): Promise<void> {
  await chmod(folder, 0o700);
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) await openTree(path.join(folder, entry.name));
  }
}

/** The text of a small file, at most `limit` bytes; undefined when there is none or it is empty. */
export async function readSmallFile(file: string, limit: number): Promise<string | undefined> {
  try {
    const bytes = await readFile(file);
    return bytes.length === 0 ? undefined : bytes.subarray(0, limit).toString('utf8');
  } catch {
    return undefined;
  }
}
