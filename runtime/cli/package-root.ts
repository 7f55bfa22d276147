/** Where the package's own files lie, from source and from dist alike. */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** The nearest folder above with a package.json: dist/ has none. */
function packageRoot(): string {
  let folder = import.meta.dirname;
  while (!existsSync(path.join(folder, 'package.json'))) {
    const above = path.dirname(folder);
    if (above === folder) throw new Error(`no package.json above ${import.meta.dirname}`);
    folder = above;
  }
  return folder;
}

const root = packageRoot();

/** The demo model that runs without --model-path. */
export const embeddedModel = path.join(root, 'examples/models/tiny');

export const packageVersion = (
  JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
).version;
