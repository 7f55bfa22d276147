/** Completes dist/: copies what tsc does not emit (kernels, JSON, HTML) and makes the programs executable. */
import { chmodSync, cpSync, existsSync, readFileSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');
for (const room of ['runtime', 'operator', 'local']) {
  cpSync(path.join(root, room), path.join(root, 'dist', room), {
    recursive: true,
    filter: (from) => !/\.ts$/.test(from) && !from.includes('node_modules'),
  });
}
const { bin } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
  bin: Record<string, string>;
};
for (const file of Object.values(bin)) {
  if (existsSync(path.join(root, file))) chmodSync(path.join(root, file), 0o755);
}
