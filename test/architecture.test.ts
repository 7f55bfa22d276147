/**
 * The arrows between rooms: each file may import only its own room, the rooms listed for it, and the packages that are
 * not reserved. docs/architecture.md explains the table; this test enforces it.
 */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

const root = path.resolve(import.meta.dirname, '..');

/** Longest prefix wins. A room is a folder, or a file without its extension. */
const arrows: Readonly<Record<string, readonly string[]>> = {
  'runtime/config': [],
  'runtime/graph': [],
  'runtime/driver': [],
  'runtime/preflight': [],
  'runtime/weights': [],
  'runtime/models': ['runtime/graph', 'runtime/weights'],
  'runtime/ort': [],
  'runtime/engine': ['runtime/graph', 'runtime/driver', 'runtime/ort', 'runtime/weights', 'runtime/models'],
  'runtime/kv': [],
  'runtime/scheduler': ['runtime/kv'],
  'runtime/constrain': ['runtime/tokenizer'],
  'runtime/sampling': ['runtime/constrain'],
  'runtime/tokenizer': [],
  'runtime/metrics': [],
  'runtime/generation': ['runtime/sampling'],
  'runtime/llm': [
    'runtime/engine',
    'runtime/driver',
    'runtime/models',
    'runtime/weights',
    'runtime/preflight',
    'runtime/kv',
    'runtime/scheduler',
    'runtime/constrain',
    'runtime/sampling',
    'runtime/tokenizer',
    'runtime/generation',
  ],
  'runtime/serve': [
    'runtime/llm',
    'runtime/generation',
    'runtime/tokenizer',
    'runtime/constrain',
    'runtime/sampling',
    'runtime/config',
    'runtime/metrics',
  ],
  'runtime/cli': ['runtime'],
  'operator/api': ['runtime/config'],
  'operator/resources': ['operator/api', 'runtime/config'],
  'operator/plan': ['operator/api', 'operator/resources', 'runtime/preflight'],
  'operator/kube': [],
  'operator/controller': ['operator/kube'],
  'operator/reconcilers': [
    'operator/api',
    'operator/plan',
    'operator/resources',
    'operator/kube',
    'operator/controller',
  ],
  'operator/config': ['runtime/config'],
  'operator/cli': ['operator', 'runtime/config'],
  local: ['operator/kube'],
};

/** Free for every room. */
const freeModules = ['runtime/errors', 'runtime/dtype', 'runtime/logits', 'runtime/thread-priority'];

/** Packages that only these rooms may import. */
const reserved: Readonly<Record<string, readonly string[]>> = {
  'onnxruntime-node': ['runtime/ort'],
  koffi: ['runtime/ort'],
  '@kubernetes/client-node': ['operator/kube'],
  fastify: ['runtime/serve'],
  '@huggingface/tokenizers': ['runtime/tokenizer'],
  '@huggingface/jinja': ['runtime/tokenizer'],
};

const files = globSync(['runtime/**/*.ts', 'operator/**/*.ts', 'local/**/*.ts'], { cwd: root }).filter(
  (file) => !file.includes('/wasm/'),
);

const within = (file: string, room: string): boolean =>
  file === `${room}.ts` || file.startsWith(`${room}/`) || file.startsWith(`${room}-`);

function roomOf(file: string): string | undefined {
  return Object.keys(arrows)
    .filter((room) => within(file, room))
    .sort((a, b) => b.length - a.length)[0];
}

/** Module names in import, export-from, dynamic import and `new URL('./x.ts', import.meta.url)`. */
function importsOf(file: string): string[] {
  const text = readFileSync(path.join(root, file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, '');
  const pattern =
    /(?:^|\n)\s*(?:import|export)\s[^'";]*?from\s+'([^']+)'|(?:^|\n)\s*import\s+'([^']+)'|\bimport\(\s*'([^']+)'|\brequire(?:\.resolve)?\(\s*'([^']+)'/g;
  return [...text.matchAll(pattern)].map((match) => (match[1] ?? match[2] ?? match[3] ?? match[4])!);
}

test('every source file belongs to a room of the table', () => {
  const strays = files.filter(
    (file) => roomOf(file) === undefined && !freeModules.some((name) => file === `${name}.ts`),
  );
  assert.deepEqual(strays, []);
});

test('every import follows an arrow of the table', () => {
  const wrong: string[] = [];
  for (const file of files) {
    const room = roomOf(file);
    for (const name of importsOf(file)) {
      if (name.startsWith('.')) {
        const target = path.relative(root, path.resolve(root, path.dirname(file), name));
        const allowed = [room ?? '', ...(room ? arrows[room]! : []), ...freeModules];
        if (/\.(json|wasm|html)$/.test(target)) continue;
        if (!allowed.some((to) => to !== '' && within(target, to))) wrong.push(`${file} imports ${target}`);
      } else {
        const owner = Object.keys(reserved).find((known) => name === known || name.startsWith(`${known}/`));
        if (owner && !reserved[owner]!.includes(room ?? '')) wrong.push(`${file} imports ${owner}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

test('the parser of this test sees the imports of a file that surely has some', () => {
  assert.ok(importsOf('runtime/generation.ts').includes('./sampling/parameters.ts'));
});
