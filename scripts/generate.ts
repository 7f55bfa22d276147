/**
 * Writes what follows from the code: the CRD (crds/ and the chart's copy) and the tables of docs/reference/.
 * `--check` writes nothing and fails when a file is not as it would be written.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { generatedFiles } from './generated-files.ts';

const root = path.resolve(import.meta.dirname, '..');
const check = process.argv.includes('--check');
const stale: string[] = [];

for (const [file, text] of Object.entries(await generatedFiles())) {
  const target = path.join(root, file);
  if (textOf(target) === text) continue;
  if (check) stale.push(file);
  else {
    mkdirSync(path.dirname(target), { recursive: true });
    writeFileSync(target, text);
    console.log(`wrote ${file}`);
  }
}
if (stale.length > 0) {
  console.error(`not as the code says: ${stale.join(', ')}; run npm run generate`);
  process.exitCode = 1;
}

function textOf(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}
