/**
 * A folder whose files change all at once, in the form of the kubelet's: the files lie in a dated folder, ..data points
 * to it, and each visible name points into ..data. Must not know where the contents come from.
 */
import { chmod, mkdir, readdir, readFile, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';

export interface FileContent {
  readonly content: Buffer;
  readonly mode: number;
}

/** By path relative to the folder. */
export type FileSet = ReadonlyMap<string, FileContent>;

let serial = 0;

/** Makes the folder hold exactly these files; does nothing when it does already. */
export async function writeAtomically(folder: string, files: FileSet): Promise<void> {
  await mkdir(folder, { recursive: true });
  await chmod(folder, 0o755);
  const link = path.join(folder, '..data');
  const current = await readlink(link).catch(() => undefined);
  if (current !== undefined && (await isEqual(path.join(folder, current), files))) return;

  const next = `..${new Date().toISOString().replaceAll(/[-:.TZ]/g, '_')}${process.pid}_${serial++}`;
  await mkdir(path.join(folder, next));
  await chmod(path.join(folder, next), 0o755);
  for (const [name, { content, mode }] of files) {
    const file = path.join(folder, next, name);
    await mkdir(path.dirname(file), { recursive: true, mode: 0o755 });
    await writeFile(file, content);
    await chmod(file, mode);
  }
  await symlink(next, `${link}_tmp`);
  await rename(`${link}_tmp`, link);

  const visible = new Set([...files.keys()].map((name) => name.split('/')[0]!));
  for (const entry of await readdir(folder)) {
    if (entry === next || entry === '..data') continue;
    if (!visible.delete(entry)) await rm(path.join(folder, entry), { recursive: true, force: true });
  }
  for (const name of visible) await symlink(path.join('..data', name), path.join(folder, name));
}

async function isEqual(folder: string, files: FileSet): Promise<boolean> {
  const present = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) =>
    entry.isFile(),
  );
  if (present.length !== files.size) return false;
  for (const [name, { content }] of files) {
    const bytes = await readFile(path.join(folder, name)).catch(() => undefined);
    if (bytes === undefined || !bytes.equals(content)) return false;
  }
  return true;
}
