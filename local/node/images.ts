/**
 * The node's image store: a table from image names to commands of this machine. Nothing is pulled; a name that is not
 * in the table cannot be pulled, as in a registry that lacks it.
 */
import path from 'node:path';

export interface Image {
  /** What runs when the container has no `command`. */
  readonly entrypoint: readonly string[];
  /** Its arguments when the container has neither `command` nor `args`. */
  readonly arguments?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly workingDirectory?: string;
}

/** By full reference, tag included; `name` alone means `name:latest`. */
export type ImageTable = Readonly<Record<string, Image>>;

const checkout = path.resolve(import.meta.dirname, '../..');
const extension = path.extname(import.meta.filename);
const nodeFolder = path.dirname(process.execPath);
const environment = { PATH: `${nodeFolder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` };

/** The runtime of this checkout under the name that pods ask for it by. */
export function runtimeImage(): Image {
  return {
    entrypoint: [process.execPath, path.join(checkout, `runtime/cli/sluice${extension}`)],
    environment,
    workingDirectory: checkout,
  };
}

/** For tests and trying things out: a shell and Node. */
export const toolImages: ImageTable = {
  'sluice.dev/node:latest': { entrypoint: [process.execPath], environment, workingDirectory: '/' },
  'sluice.dev/shell:latest': { entrypoint: ['/bin/sh'], environment, workingDirectory: '/' },
};

export function findImage(table: ImageTable, name: string): Image | undefined {
  const reference = withTag(name);
  const key = Object.keys(table).find((candidate) => withTag(candidate) === reference);
  return key === undefined ? undefined : table[key];
}

/** The command line that a container of this image runs, before $(VAR) expansion. */
export function commandLine(
  image: Image,
  command: readonly string[] | undefined,
  args: readonly string[] | undefined,
): string[] {
  if (command !== undefined && command.length > 0) return [...command, ...(args ?? [])];
  if (args !== undefined && args.length > 0) return [...image.entrypoint, ...args];
  return [...image.entrypoint, ...(image.arguments ?? [])];
}

function withTag(name: string): string {
  const last = name.slice(name.lastIndexOf('/') + 1);
  return last.includes(':') || last.includes('@') ? name : `${name}:latest`;
}
