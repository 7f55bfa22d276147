/**
 * What is in an image: Node, the shared libraries that it and the packages load, the built program and its production
 * packages, for linux/x64. Enters: the checkout after `npm ci` and a build, this machine's C library. Leaves: entries.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import path from 'node:path';
import type { Entry } from './tar.ts';

export type ImageTarget = 'operator' | 'runtime';

/** The user of the image: no name but this number owns anything. */
export const userId = 65532;

const root = path.resolve(import.meta.dirname, '../..');

interface Recipe {
  /** Folders of dist/. */
  readonly rooms: readonly string[];
  /** Production packages that this program does not need. */
  readonly without: readonly string[];
  readonly program: string;
  readonly more: readonly string[];
}

export const recipes: Readonly<Record<ImageTarget, Recipe>> = {
  operator: {
    rooms: ['operator', 'runtime'],
    without: ['onnxruntime-node', 'koffi', 'fastify', '@huggingface/jinja', '@huggingface/tokenizers'],
    program: 'dist/operator/cli/sluice-operator.js',
    more: ['crds'],
  },
  runtime: {
    rooms: ['runtime'],
    without: ['@kubernetes/client-node'],
    program: 'dist/runtime/cli/sluice.js',
    more: ['examples/models/tiny'],
  },
};

const appFolder = 'app';

/** The C library, Node and what all programs need of a system. Its content follows from the machine, not from our code. */
export function baseEntries(target: ImageTarget): Entry[] {
  const node = path.join(root, 'node_modules/node/bin/node');
  const loaded = [node, ...(target === 'runtime' ? nativeLibraries() : [])];
  const libraries = [...new Set(loaded.flatMap(sharedLibraries))];
  return withFolders([
    { kind: 'file', path: 'usr/local/bin/node', source: node, executable: true },
    ...libraries.map(
      (file): Entry => ({ kind: 'file', path: file.slice(1), source: realpathSync(file), executable: true }),
    ),
    text(
      'etc/passwd',
      `root:x:0:0:root:/root:/sbin/nologin\nsluice:x:${userId}:${userId}:sluice:/home/sluice:/sbin/nologin\n`,
    ),
    text('etc/group', `root:x:0:\nsluice:x:${userId}:\n`),
    text('etc/nsswitch.conf', 'hosts: files dns\n'),
    { kind: 'folder', path: 'tmp', mode: 0o1777 },
    ...['proc', 'sys', 'dev', 'cache', 'home/sluice'].map(
      (each): Entry => ({ kind: 'folder', path: each, mode: 0o755 }),
    ),
  ]);
}

export function appEntries(target: ImageTarget): Entry[] {
  const { rooms, without, more, program } = recipes[target];
  if (!existsSync(path.join(root, program))) throw new Error(`${program} is not there: npm run build first`);
  const files = [
    'package.json',
    'LICENSE',
    ...rooms.flatMap((room) => filesIn(`dist/${room}`).filter((file) => !file.endsWith('.d.ts'))),
    ...more.flatMap((folder) => filesIn(folder)),
    ...packagesOf(without).flatMap(packageFiles),
  ];
  return withFolders(
    files.map(
      (file): Entry => ({
        kind: 'file',
        path: `${appFolder}/${file}`,
        source: path.join(root, file),
        executable: (statSync(path.join(root, file)).mode & 0o100) !== 0,
      }),
    ),
  );
}

/** Folders of node_modules/ that production needs, as the lockfile has them. */
function packagesOf(without: readonly string[]): string[] {
  const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<
      string,
      { dependencies?: Record<string, string>; optionalDependencies?: Record<string, string> }
    >;
  };
  const found = new Set<string>();
  const visit = (from: string): void => {
    const { dependencies, optionalDependencies } = packages[from] ?? {};
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) {
      if (from === '' && without.includes(name)) continue;
      const folder = resolvePackage(packages, from, name);
      if (folder === undefined || found.has(folder) || !existsSync(path.join(root, folder))) continue;
      found.add(folder);
      visit(folder);
    }
  };
  visit('');
  // Its install script and its own addon are not used: only its library is.
  for (const unused of ['adm-zip', 'global-agent']) found.delete(`node_modules/${unused}`);
  return [...found].sort();
}

/** As Node looks for it: beside, then in each folder above. */
function resolvePackage(packages: object, from: string, name: string): string | undefined {
  for (let folder = from; ; folder = folder.slice(0, Math.max(0, folder.lastIndexOf('/node_modules/')))) {
    const candidate = `${folder === '' ? '' : `${folder}/`}node_modules/${name}`;
    if (Object.hasOwn(packages, candidate)) return candidate;
    if (folder === '') return undefined;
  }
}

const onnxruntimeLibrary = /^node_modules\/onnxruntime-node\/bin\/napi-v\d+\/linux\/x64\/libonnxruntime\.so/;
const notNeeded = /\.(d\.[cm]?ts|map|md|markdown|ts|flow|cc|h|c|txt|html|gz)$/i;
/** Folders at the top of a package. */
const foldersNotNeeded = ['test', 'tests', 'doc', 'docs', 'example', 'examples', 'vendor', 'musl_x64'];

function packageFiles(folder: string): string[] {
  const files = filesIn(
    folder,
    (name, within) => name !== 'node_modules' && !(within === folder && foldersNotNeeded.includes(name)),
  );
  if (folder === 'node_modules/onnxruntime-node')
    return files.filter((file) => onnxruntimeLibrary.test(file) || file.endsWith('/package.json'));
  return files.filter((file) => /licen[cs]e[^/]*$/i.test(file) || !notNeeded.test(file));
}

function nativeLibraries(): string[] {
  const koffi = filesIn('node_modules/@koromix/koffi-linux-x64').find((file) =>
    file.endsWith('linux_x64/koffi.node'),
  );
  const library = filesIn('node_modules/onnxruntime-node').find((file) => onnxruntimeLibrary.test(file));
  if (koffi === undefined || library === undefined)
    throw new Error('npm ci has not installed the packages for linux/x64');
  return [koffi, library].map((file) => path.join(root, file));
}

/** Paths of what the dynamic loader would load for a program, the loader included. */
function sharedLibraries(program: string): string[] {
  const output = execFileSync('ldd', [program], { encoding: 'utf8' });
  return [...output.matchAll(/(?:=> |^\s*)(\/\S+) \(0x/gm)].map((match) => match[1]!);
}

/** `enter` is asked for each folder, with the one that it lies in. */
function filesIn(folder: string, enter: (name: string, within: string) => boolean = () => true): string[] {
  return readdirSync(path.join(root, folder), { withFileTypes: true })
    .flatMap((entry) => {
      const file = `${folder}/${entry.name}`;
      if (entry.isDirectory()) return enter(entry.name, folder) ? filesIn(file, enter) : [];
      return entry.isFile() ? [file] : [];
    })
    .sort();
}

function text(file: string, content: string): Entry {
  return { kind: 'file', path: file, source: Buffer.from(content), executable: false };
}

/** Every folder on the way, once. */
function withFolders(entries: readonly Entry[]): Entry[] {
  const known = new Map(entries.map((entry) => [entry.path, entry]));
  for (const entry of entries) {
    for (let folder = path.dirname(entry.path); folder !== '.'; folder = path.dirname(folder)) {
      if (!known.has(folder)) known.set(folder, { kind: 'folder', path: folder, mode: 0o755 });
    }
  }
  return [...known.values()];
}
