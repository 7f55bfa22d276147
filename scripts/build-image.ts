/**
 * Writes a container image without a registry or a daemon, or its root file system, of which the Dockerfiles make theirs:
 *
 *   node scripts/build-image.ts runtime --out sluice-runtime.tar    an OCI archive
 *   node scripts/build-image.ts operator --root /image              files
 *
 * After `npm ci` and `npm run build`, on linux/x64. The time of everything in it is SOURCE_DATE_EPOCH, else 0: the same
 * checkout on the same system gives the same digest.
 */
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { ociArchive } from './image/oci.ts';
import { appEntries, baseEntries, type ImageTarget, recipes, userId } from './image/root-filesystem.ts';
import type { Entry } from './image/tar.ts';

const usage =
  'node scripts/build-image.ts operator|runtime (--out FILE.tar | --root FOLDER) [--name NAME:TAG]';

function main(): void {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { out: { type: 'string' }, root: { type: 'string' }, name: { type: 'string' } },
  });
  const [target] = positionals as [ImageTarget];
  if (
    !Object.hasOwn(recipes, target ?? '') ||
    positionals.length > 1 ||
    (values.out === undefined) === (values.root === undefined)
  )
    throw new Error(`the form is ${usage}`);
  if (process.platform !== 'linux' || process.arch !== 'x64')
    throw new Error(
      `images are built on linux/x64, not ${process.platform}/${process.arch}: what is copied in would not run`,
    );
  const seconds = Number(process.env.SOURCE_DATE_EPOCH ?? 0);
  if (!Number.isSafeInteger(seconds) || seconds < 0)
    throw new Error(
      `SOURCE_DATE_EPOCH "${process.env.SOURCE_DATE_EPOCH}": the form is seconds since 1970, for example 1767225600`,
    );
  const layers = [baseEntries(target), appEntries(target)];
  if (values.root !== undefined) {
    for (const entry of layers.flat().sort((a, b) => (a.path < b.path ? -1 : 1)))
      put(entry, values.root, seconds);
    console.log(`wrote ${values.root}`);
    return;
  }
  const { version } = JSON.parse(readFileSync(path.resolve(import.meta.dirname, '../package.json'), 'utf8'));
  const { bytes, digest } = ociArchive({
    name: values.name ?? `sluice-${target}:${version}`,
    layers,
    entrypoint: ['/usr/local/bin/node', `/app/${recipes[target].program}`],
    user: `${userId}:${userId}`,
    workingFolder: '/app',
    environment: ['PATH=/usr/local/bin:/usr/bin:/bin', 'NODE_ENV=production', 'HOME=/home/sluice'],
    ports: target === 'runtime' ? ['8000'] : ['8080', '8081'],
    labels: {
      'org.opencontainers.image.title': `sluice-${target}`,
      'org.opencontainers.image.version': version,
    },
    seconds,
  });
  writeFileSync(values.out!, bytes);
  console.log(`wrote ${values.out}, ${(bytes.length / 1e6).toFixed(1)} MB, ${digest}`);
}

function put(entry: Entry, folder: string, seconds: number): void {
  const file = path.join(folder, entry.path);
  mkdirSync(path.dirname(file), { recursive: true });
  if (entry.kind === 'folder') {
    mkdirSync(file, { recursive: true });
    chmodSync(file, entry.mode);
  } else if (entry.kind === 'link') symlinkSync(entry.target, file);
  else {
    if (typeof entry.source === 'string') copyFileSync(entry.source, file);
    else writeFileSync(file, entry.source);
    chmodSync(file, entry.executable ? 0o755 : 0o644);
    utimesSync(file, seconds, seconds);
  }
}

try {
  main();
} catch (error) {
  console.error(`build-image: ${(error as Error).message}`);
  process.exitCode = 2;
}
