/**
 * Compiles every AssemblyScript kernel under runtime/engine/kernels/wasm/ to a .wasm file beside it.
 * Enters: *.ts there. Leaves: *.wasm (ignored by git, shipped in dist/).
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');
const folder = path.join(root, 'runtime/engine/kernels/wasm');
const options =
  '-O3 --runtime stub --importMemory --sharedMemory --initialMemory 16 --maximumMemory 65536 ' +
  '--enable simd,threads,relaxed-simd --noAssert --use abort=';

const sources = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('.ts')) : [];
for (const source of sources) {
  const from = path.join(folder, source);
  const to = from.replace(/\.ts$/, '.wasm');
  execFileSync(
    process.execPath,
    [path.join(root, 'node_modules/assemblyscript/bin/asc.js'), from, '-o', to, ...options.split(' ')],
    { stdio: 'inherit' },
  );
}
